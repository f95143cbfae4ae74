"""CRC-32 of pieces in any order, with zlib-ng and without."""

import importlib.util
import random
import sys
import types
import zlib

import pytest

from ckpt_core.storage.bytes import crc32 as installed


def copy() -> types.ModuleType:
    """The module executed anew beside the one that everybody has."""
    spec = importlib.util.spec_from_file_location("copy_of_crc32", installed.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["zlib-ng", "zlib"])
def crc32(request, monkeypatch):
    """The module as it is where zlib-ng is installed, and where it is not."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "zlib_ng.zlib_ng", None)
    return copy()


def test_zlib_stands_in_for_zlib_ng(crc32, request):
    assert (crc32.crc32 is zlib.crc32) == (request.node.callspec.params["crc32"] == "zlib")


@pytest.mark.parametrize("cuts", [[], [1], [0, 300, 301], [64, 64, 999], list(range(1, 1000, 7))])
def test_pieces_add_up_in_any_order(crc32, cuts):
    data = random.Random(0).randbytes(1000)
    pieces = list(zip([0, *cuts], [*cuts, len(data)], strict=True))
    random.Random(1).shuffle(pieces)
    whole = 0
    for start, stop in pieces:
        whole ^= crc32.shifted(crc32.remainder(memoryview(data)[start:stop]), len(data) - stop)
    assert crc32.of_remainder(whole, len(data)) == zlib.crc32(data)
    assert crc32.remainder(data[5:], crc32.remainder(data[:5])) == whole  # or one behind the other


def test_zeros_that_nobody_writes_add_nothing(crc32):
    data = bytes(100) + b"weights" + bytes(1 << 20)
    whole = crc32.shifted(crc32.remainder(b"weights"), 1 << 20)
    assert crc32.of_remainder(whole, len(data)) == zlib.crc32(data)


def test_lengths_beyond_32_bits(crc32):
    """10 GiB of zeros: by their length, and by putting pieces of 1 GiB behind each other."""
    gib = crc32.of_remainder(0, 1 << 30)
    assert gib == crc32.of_remainder(crc32.shifted(0, 7), 1 << 30)
    crc, length = 0, 0
    for _ in range(10):
        crc, length = crc32.crc32_combine(crc, gib, 1 << 30), length + (1 << 30)
    assert crc32.of_remainder(0, length) == crc


def test_the_fallback_agrees_with_zlib_ng(monkeypatch):
    fast = pytest.importorskip("zlib_ng.zlib_ng")
    monkeypatch.setitem(sys.modules, "zlib_ng.zlib_ng", None)
    slow = copy().crc32_combine
    for length in (0, 1, 5, 4096, 100_001, (1 << 32) + 3, (1 << 42) + 12345):
        assert slow(0x12345678, 0x9ABCDEF0, length) == fast.crc32_combine(0x12345678, 0x9ABCDEF0, length)
