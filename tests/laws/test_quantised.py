"""Numbers that are computed of codes and scales are the same, whatever part of them is read, and by way of which view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from ckpt_core.errors import FormatError
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.dtypes import BF16, BY_NAME, FP32, decode, encode
from ckpt_core.storage.tensor import Operand, Quantised, StoredTensor
from ckpt_core.tensors import Shard, SourceFiles
from ckpt_core.tensors.assembly import of_shards

INT8 = BY_NAME["int8"]
MATRICES, ROWS, COLUMNS, PER = 3, 7, 5, 4


@dataclass(frozen=True, slots=True)
class RowsTimes:
    """int8 codes, times a scale for each `PER` rows, times one for each matrix."""

    def decode(self, stored: Sequence[np.ndarray], first: int, rows: int) -> np.ndarray:
        codes, scales, whole = stored
        shared = scales[(first % PER + np.arange(rows)) // PER]
        return codes.view(np.int8).astype(np.float32) * shared * whole


@pytest.fixture
def numbers(tmp_path: Path) -> tuple[Quantised, np.ndarray, list[FileState]]:
    """Numbers in two files, what they are, and the files."""
    random = np.random.default_rng(7)
    codes = random.integers(-128, 128, (MATRICES, ROWS, COLUMNS), np.int8)
    scales = random.uniform(0.5, 2, (MATRICES, 2, 1)).astype(np.float32)
    whole = random.uniform(0.5, 2, MATRICES).astype(np.float32)
    one, other = tmp_path / "codes", tmp_path / "scales"
    one.write_bytes(b"12345" + codes.tobytes())
    other.write_bytes(scales.tobytes() + whole.tobytes())
    operands = (
        Operand("codes", StoredTensor.contiguous(str(one), INT8, codes.shape, 5), COLUMNS),
        Operand("scales", StoredTensor.contiguous(str(other), FP32, scales.shape, 0), 1, rows=PER, scale=True),
        Operand("whole", StoredTensor.contiguous(str(other), FP32, whole.shape, scales.nbytes), 1, rows=0, scale=True),
    )
    expected = codes.astype(np.float32) * np.repeat(scales, PER, axis=1)[:, :ROWS] * whole[:, None, None]
    files = [FileState.of(str(one)), FileState.of(str(other))]
    return Quantised(RowsTimes(), operands, MATRICES, ROWS, COLUMNS), expected, files


def _read(stored: StoredTensor, files: list[FileState], box: tuple[tuple[int, int], ...]) -> np.ndarray:
    source = SourceFiles(files)
    try:
        lazy = of_shards("numbers", stored.shape, [Shard((0,) * len(stored.shape), stored)])
        return decode(source.read(lazy, box), stored.dtype)
    finally:
        source.close()


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_every_box_is_that_of_the_whole(numbers, dtype) -> None:
    quantised, expected, files = numbers
    expected = decode(encode(expected, dtype), dtype)
    stored = quantised.tensor(dtype, expected.shape)
    views = {
        "as it is": (stored, expected),
        "flat": (quantised.tensor(dtype, (expected.size,)), expected.reshape(-1)),
        "transposed": (
            replace(stored, shape=(MATRICES, COLUMNS, ROWS), strides=(ROWS * COLUMNS, 1, COLUMNS)),
            expected.transpose(0, 2, 1),
        ),
        "every second row": (
            replace(stored, shape=(MATRICES, 3, COLUMNS), strides=(ROWS * COLUMNS, 2 * COLUMNS, 1), offset=COLUMNS * dtype.size),
            expected[:, 1::2],
        ),
    }  # fmt: skip
    random = np.random.default_rng(3)
    for name, (view, whole) in views.items():
        for _ in range(30):
            box = tuple(tuple(sorted(random.choice(size + 1, 2, replace=False).tolist())) for size in whole.shape)
            cut = whole[tuple(slice(*one) for one in box)]
            assert np.array_equal(_read(view, files, box), cut), (name, box)


def test_a_scale_that_is_no_number_is_named(numbers) -> None:
    quantised, expected, files = numbers
    path = quantised.operands[1].stored.file
    damaged = bytearray(Path(path).read_bytes())
    damaged[4:8] = np.float32(np.nan).tobytes()
    Path(path).write_bytes(damaged)
    stored = quantised.tensor(BF16, expected.shape)
    changed = [files[0], FileState.of(path)]
    assert _read(stored, changed, ((0, 1), (0, PER), (0, COLUMNS))).size  # the scale of the rows behind these
    with pytest.raises(FormatError, match="'scales' has scales that are no numbers"):
        _read(stored, changed, ((0, 1), (0, PER + 1), (0, COLUMNS)))


def test_the_bytes_of_a_part_are_its_share(numbers) -> None:
    quantised, expected, _ = numbers
    lazy = of_shards("numbers", expected.shape, [Shard((0, 0, 0), quantised.tensor(BF16, expected.shape))])
    assert [block.stored_bytes for block in lazy.blocks] == [expected.size + 4 * 6 + 4 * 3]
    assert {*lazy.paths()} == {operand.stored.file for operand in quantised.operands}
    assert lazy.unrounded.dtype == FP32 and lazy.unrounded.blocks[0].dtype == FP32
