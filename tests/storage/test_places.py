"""Where buffers begin, and where writes end: both decide how fast the kernel copies."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ckpt_core.storage.bytes.files import pwrite_all
from ckpt_core.storage.scratch import place_between, scratch


@pytest.mark.parametrize("place", [0, 8, 56, 2104])
def test_a_buffer_begins_where_it_is_asked_to(place: int) -> None:
    array = scratch("test of places", (3, 5), np.dtype(np.uint16), place)
    assert array.ctypes.data % 4096 == place
    assert array.shape == (3, 5) and array.flags.c_contiguous and array.flags.writeable


def test_a_buffer_of_another_place_is_the_same_memory() -> None:
    first, second = (scratch("test of reuse", (1 << 16,), np.dtype(np.uint8), place) for place in (0, 2104))
    assert second.ctypes.data - first.ctypes.data == 2104


@pytest.mark.parametrize("source", [0, 8, 24, 240, 2048, 4090])
@pytest.mark.parametrize("target", [0, 8, 56, 248, 4099, 10_001])
def test_a_place_suits_both_files(source: int, target: int) -> None:
    place = place_between(source, target)
    assert place % 8 == 0 and 0 <= place < 4096
    assert (target - place) % 64 < 8  # alike in a line of the cache
    assert not 0 < (place - source) % 4096 < 64  # not just ahead of what is read


def test_long_writes_are_cut_where_the_file_has_a_multiple(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, real, seen = np.random.default_rng(1).bytes(1_300_001), os.pwrite, []

    def pwrite(descriptor: int, view: memoryview, offset: int) -> int:
        seen.append((offset, len(view)))
        return real(descriptor, view[:300_000], offset)  # a call may write less than it is asked to

    monkeypatch.setattr(os, "pwrite", pwrite)
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    pwrite_all(descriptor, memoryview(data), 248)
    pwrite_all(descriptor, memoryview(data)[:500_000], 2_000_000)
    assert os.pread(descriptor, len(data), 248) == data and os.pread(descriptor, 500_000, 2_000_000) == data[:500_000]
    os.close(descriptor)
    cuts = [offset for offset, _ in seen if 248 < offset < 1_000_000]
    assert cuts == [256 << 10, 512 << 10, 768 << 10]
    assert all(size < 512 << 10 for _, size in seen)
