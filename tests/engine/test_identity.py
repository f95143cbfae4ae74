"""The lines that a plan is hashed by say what `str` says of its parts: a journal of an earlier version is resumed by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest

from ckpt_core.engine.identity import Words
from ckpt_core.layout import Link, Tile
from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes.output import Checksum
from ckpt_core.storage.dtypes import BF16, BY_NAME, FP32
from ckpt_core.storage.tensor import Operand, Quantised, Record, StoredTensor
from ckpt_core.tensors.assembly import StoredPart


@dataclass(frozen=True, slots=True)
class Doubled:
    """A scheme as a plugin has one."""

    block: tuple[int, int]

    def decode(self, stored: Sequence[np.ndarray], first: int, rows: int) -> np.ndarray:
        return 2 * stored[0].astype(np.float32)


RECORD = Record("a b.pt", "data/0", 64, 6, 12345)
CODES = StoredTensor("it's.safetensors", BY_NAME["fp8_e4m3"], (2, 3), 8, (3, 1))
SCALES = replace(CODES, dtype=FP32, shape=(1,), offset=14, strides=(1,), record=RECORD)
OPERANDS = Operand("w", CODES, 3), Operand("w_scale", SCALES, 1, 0, 2, True)
TILE = Tile((Link(2, 0, 1, 0, 3), Link(3, 1, 1, 0, 1)), (4, 0), (7,))
PLAIN = StoredPart("f\n\udc80", BF16, 12, TILE, RECORD)
CODED = Quantised(Doubled((1, 2)), OPERANDS, 1, 2, 3)


@pytest.mark.parametrize(
    "block",
    [
        PLAIN,
        replace(PLAIN, quantised=CODED),
        replace(PLAIN, quantised=replace(CODED, operands=OPERANDS[:1], beside=OPERANDS, what="x", exact=True)),
        replace(PLAIN, quantised=replace(CODED, scheme=Doubled((3, 4)), operands=())),
        replace(PLAIN, tile=Tile((), (), (0,))),
    ],
)
def test_a_block_is_told_as_str_tells_it(block: StoredPart) -> None:
    words = Words()
    words.block(replace(PLAIN, quantised=CODED))
    assert words.block(block) == str(block)


def test_a_checksum_is_told_as_str_tells_it() -> None:
    for checksum in Checksum(0, 5, ()), Checksum(3, 7, (1, 2)):
        assert Words().checksum(checksum) == str(checksum)


def test_no_field_of_a_part_is_left_out() -> None:
    """One that a class gets has to be told, too, where it is told by `str`."""
    told = Words().block(replace(PLAIN, quantised=CODED))
    for kind in (StoredPart, Quantised, Operand, StoredTensor):
        assert all(f"{field.name}=" in told for field in fields(kind) if field.repr), kind
