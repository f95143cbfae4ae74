"""fp32 masters that a distributed optimizer stores flat, shard by shard, cut wherever a rank's share ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ckpt_core.storage.dtypes import BY_NAME
from ckpt_core.storage.tensor import StoredTensor
from ckpt_megatron.flattened import FlattenedTensor, boxes, unflattened

FP32 = BY_NAME["fp32"]


@dataclass
class Stored:
    """A tensor in a file, cut along its last axis into chunks."""

    file: Path
    shape: tuple[int, ...]
    cuts: tuple[int, ...]
    dtype = FP32

    def stored(self):
        grid, at = self.shape[:-1], 0
        ends = [*self.cuts, self.shape[-1]]
        for start, stop in zip([0, *self.cuts], ends, strict=True):
            shape = (*grid, stop - start)
            yield (*([0] * len(grid)), start), StoredTensor.contiguous(str(self.file), FP32, shape, at)
            at += 4 * math.prod(shape)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (7,), (1, 1, 4), (2, 2, 2, 3)])
def test_boxes_are_every_element_of_a_range_once_and_in_order(shape: tuple[int, ...]) -> None:
    numbers = np.arange(math.prod(shape)).reshape(shape)
    for start in range(numbers.size + 1):
        for stop in range(start, numbers.size + 1):
            found = []
            for origin, sizes, at in boxes(shape, start, stop):
                part = numbers[tuple(slice(first, first + size) for first, size in zip(origin, sizes, strict=True))]
                assert part.ravel().tolist() == list(range(at, at + part.size))
                found += part.ravel().tolist()
            assert found == list(range(start, stop))


@pytest.mark.parametrize(
    ("shape", "grid", "cuts"),
    [
        ((6, 8), (2, 1), ()),
        ((6, 8), (2, 1), (5, 16)),
        ((2, 12, 5), (2, 4, 1), (1, 7, 8)),
        ((3, 4, 6), (3, 2, 3), (3,)),
        ((10,), (1,), (3, 4)),
    ],
)
def test_shards_come_together(
    shape: tuple[int, ...], grid: tuple[int, ...], cuts: tuple[int, ...], tmp_path: Path
) -> None:
    whole = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    sizes = tuple(size // count for size, count in zip(shape, grid, strict=True))
    flat = np.empty((*grid, math.prod(sizes)), np.float32)
    for index in np.ndindex(*grid):
        box = tuple(slice(n * size, (n + 1) * size) for n, size in zip(index, sizes, strict=True))
        flat[index] = whole[box].ravel()
    parts = np.split(flat, cuts, axis=-1)
    (tmp_path / "file").write_bytes(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))
    tensor = unflattened(Stored(tmp_path / "file", flat.shape, cuts), shape)  # type: ignore[arg-type]
    assert isinstance(tensor, FlattenedTensor)
    data, found = (tmp_path / "file").read_bytes(), np.full(shape, np.nan, np.float32)
    for origin, stored in tensor.stored():
        box = tuple(slice(first, first + size) for first, size in zip(origin, stored.shape, strict=True))
        assert np.isnan(found[box]).all(), "an element comes twice"
        count = math.prod(stored.shape)
        found[box] = np.frombuffer(data, np.float32, count, stored.offset).reshape(stored.shape)
    assert np.array_equal(found, whole)


@pytest.mark.parametrize("flat", [(2, 1, 23), (4, 1, 12), (2, 24), (0, 1, 24), (5, 1, 12)])
def test_what_is_no_tensor_in_shards_is_none(flat: tuple[int, ...], tmp_path: Path) -> None:
    assert unflattened(Stored(tmp_path / "file", flat, ()), (6, 8)) is None  # type: ignore[arg-type]
