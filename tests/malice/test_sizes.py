"""Files that are hostile by their number of entries end in seconds: done, or refused by a limit that is named.

The times are of CPU, and far above what is needed: what these were before was minutes, or without end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckpt_core.errors import FormatError
from ckpt_core.storage.archive.tar import list_tar
from ckpt_core.storage.chunks.dcp import METADATA, read_distributed
from ckpt_core.storage.chunks.tensor import Span, tiles
from ckpt_core.storage.dtypes import FP32
from ckpt_core.storage.tensor import StoredTensor
from ckpt_nanotron.files import parse_slices
from ckpt_tests.sizes import metadata_of_keys, slices, write_tar


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.process_time()
    yield
    assert time.process_time() - started < seconds


def test_a_metadata_of_too_many_keys(tmp_path: Path) -> None:
    (tmp_path / METADATA).write_bytes(metadata_of_keys(500_001))
    with within(30), pytest.raises(FormatError, match="describes too much") as caught:
        read_distributed(tmp_path)
    assert "500,001 tensors" in str(caught.value) and "at most 500,000" in str(caught.value)


def test_a_metadata_of_too_many_bytes_is_not_read(tmp_path: Path) -> None:
    """That of a tensor in 400,000 chunks has 54 MB."""
    with (tmp_path / METADATA).open("wb") as file:
        file.truncate(54 << 20)
    with within(5), pytest.raises(FormatError, match="the metadata is too large") as caught:
        read_distributed(tmp_path)
    assert "at most 33554432" in str(caught.value)


def test_a_tar_of_many_members(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, 50_000)
    with path.open("rb") as stream, within(10):
        assert len(list_tar(stream, str(path), path.stat().st_size).files) == 50_000


def test_chunks_that_peel_off_one_by_one() -> None:
    """A row and a column of what the rows and columns before have left: every cut separates a single one."""
    half = 20_000
    boxes = [((half, half), (half, half))]
    for at in range(half):
        boxes += [((at, at), (1, 2 * half - at)), ((at + 1, at), (2 * half - at - 1, 1))]
    with within(10):
        assert tiles((2 * half, 2 * half), boxes)
        assert not tiles((2 * half, 2 * half), [*boxes[:-1], boxes[-2]])


def test_chunks_whose_corners_are_too_many() -> None:
    """Halves of halves, along one axis after the other: they tile, but no framework cuts so, and each has 2**22 corners."""

    def halves(axes: int) -> list[Span]:
        first = [
            ((0,) * at + (1,) + (0,) * (axes - at - 1), (1,) * at + (1,) + (2,) * (axes - at - 1)) for at in range(axes)
        ]
        return [*first, ((0,) * axes, (1,) * axes)]

    assert tiles((2,) * 8, halves(8))
    with within(5):
        assert not tiles((2,) * 22, halves(22))


def test_a_tensor_of_nanotron_in_too_many_slices() -> None:
    def parse(count: int) -> int:
        return len(parse_slices(slices(count), StoredTensor("x", FP32, (count,), 0, (1,)), (count,), "x"))

    assert parse(10_000) == 10_000
    with within(5), pytest.raises(FormatError, match="too many slices") as caught:
        parse(200_000)
    assert "found: 200000" in str(caught.value) and "at most 10000" in str(caught.value)
