"""Values: digests that see values only, dtypes that round as torch does, maps that undo themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from ckpt_core.errors import FormatError, UsageError
from ckpt_core.layout import neg_exp, plus_one, scale
from ckpt_core.storage.dtypes import BF16, BY_NAME, BY_TORCH, FP16, FP32, FP64, DType, decode, dtype_named, encode
from ckpt_core.storage.floats import BLOCK, E2M1, E4M3
from ckpt_core.tensors import digest as digests
from ckpt_core.tensors.digest import LeafDigest, TreeDigest, fingerprint, of_leaves, version_of

FLOATING = [dtype for dtype in BY_NAME.values() if dtype.floating]


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def assert_same_values(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal bits, signed zeros included; any NaN equals any other."""
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    real = ~np.isnan(theirs)
    np.testing.assert_array_equal(bits(ours[real]), bits(theirs[real]))


def as_torch(raw: np.ndarray, dtype: DType) -> torch.Tensor:
    signed = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}[dtype.size]
    return torch.from_numpy(raw.view(signed).copy()).view(getattr(torch, dtype.torch))


def every_code(dtype: DType) -> np.ndarray:
    """All raw values of a small dtype; for larger ones random bits and the dangerous ones."""
    if dtype.size <= 2:
        return np.arange(1 << (8 * dtype.size), dtype=f"<u{dtype.size}").view(dtype.numpy)
    random = np.random.default_rng(5).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    special = np.array([0, 1 << 31, 1, 0x7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF, 0xFFC00000], np.uint32)
    values = np.concatenate([random, special]).view(np.float32)
    with np.errstate(all="ignore"):
        return values.astype(dtype.numpy)


# --- dtypes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_decode_is_torch(dtype: DType) -> None:
    raw = every_code(dtype)
    with np.errstate(all="ignore"):
        assert_same_values(decode(raw, dtype), as_torch(raw, dtype).float().numpy())


def hard_floats() -> np.ndarray:
    """Every sign and exponent, with mantissas that are halfway between two bf16 or fp16 neighbours, or next to it."""
    upper = np.arange(0, 1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return (upper[:, None] | lower).reshape(-1).view(np.float32)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32, FP64], ids=str)
def test_encode_rounds_as_torch_does(dtype: DType) -> None:
    values = hard_floats()
    with np.errstate(all="ignore"):
        ours = as_torch(encode(values, dtype), dtype).float().numpy()
        theirs = torch.from_numpy(values.copy()).to(getattr(torch, dtype.torch)).float().numpy()
    assert_same_values(ours, theirs)


def test_codes_of_e4m3_are_torchs() -> None:
    values = hard_floats()
    values = values[np.abs(values) <= 448]
    codes = np.empty(values.shape, np.uint8)
    E4M3.narrow(values, codes)
    np.testing.assert_array_equal(codes, torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy())


def test_numbers_of_four_bits() -> None:
    codes, values = np.arange(16, dtype=np.uint8) << 4, np.empty(16, np.float32)
    assert not E2M1.widen(codes, values)
    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    np.testing.assert_array_equal(bits(values), bits(np.array([*positive, *(-one for one in positive)], np.float32)))


@pytest.mark.parametrize("dtype", [one for one in FLOATING if one.size <= 4], ids=str)
def test_values_go_where_they_are_wanted(dtype: DType) -> None:
    """Into an array that is given, in a piece that is no whole block, with what is special behind the first block."""
    raw = np.resize(every_code(dtype), 2 * BLOCK + 77)
    raw[:BLOCK] = raw[1]
    room = np.full(raw.size + 2, 7, np.float32)
    found = decode(raw, dtype, room[1:-1])
    assert np.shares_memory(found, room) and room[0] == room[-1] == 7
    assert_same_values(room[1:-1], as_torch(raw, dtype).float().numpy())


@settings(max_examples=50)
@given(nps.arrays(np.uint32, 64))
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_encode_of_random_bits_is_torch(dtype: DType, raw: np.ndarray) -> None:
    values = raw.view(np.float32)
    with np.errstate(all="ignore"):
        ours = as_torch(encode(values, dtype), dtype).float().numpy()
        theirs = torch.from_numpy(values.copy()).to(getattr(torch, dtype.torch)).float().numpy()
    assert_same_values(ours, theirs)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_encode_undoes_decode_bit_for_bit(dtype: DType) -> None:
    raw = every_code(dtype)
    back = encode(decode(raw, dtype), dtype)
    real = ~np.isnan(decode(raw, dtype))
    np.testing.assert_array_equal(back[real].view(f"<u{dtype.size}"), raw[real].view(f"<u{dtype.size}"))


@pytest.mark.parametrize("dtype", [dtype for dtype in BY_NAME.values() if not dtype.floating], ids=str)
def test_integers_are_no_weights(dtype: DType) -> None:
    with pytest.raises(FormatError, match=dtype.name):
        decode(np.zeros(2, dtype.numpy), dtype)


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "int32"])
def test_what_cannot_be_written_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        encode(np.zeros(2, np.float32), BY_NAME[name])


@pytest.mark.parametrize("dtype", BY_NAME.values(), ids=str)
def test_a_dtype_has_three_names_and_one_size(dtype: DType) -> None:
    assert dtype_named(dtype.name) is dtype_named(dtype.torch) is dtype_named(dtype.safetensors) is dtype
    assert dtype.size == getattr(torch, dtype.torch).itemsize


# --- digests -------------------------------------------------------------------------------------------------------------


def digest(values: np.ndarray, dtype: DType, cuts: list[int] | None = None) -> str:
    found, flat = TreeDigest(), values.reshape(-1)
    for part in np.split(flat, sorted(cuts or [])):
        found.update(part, dtype)
    return of_leaves(found.leaves)


@settings(max_examples=100)
@given(
    nps.arrays(np.uint16, st.integers(0, 200)),
    st.lists(st.integers(0, 200), max_size=5),
    st.lists(st.integers(0, 200), max_size=5),
)
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_a_digest_sees_neither_dtype_nor_chunks(dtype: DType, raw: np.ndarray, one: list[int], two: list[int]) -> None:
    """Half precision values have the digest of the same values in fp32 and fp64, however they are fed."""
    raw = raw.view(dtype.numpy)
    with np.errstate(all="ignore"):
        raw = raw[~np.isnan(decode(raw, dtype))]
        wide = decode(raw, dtype)
        expected = digest(raw, dtype)
        assert digest(raw, dtype, [cut for cut in one if cut <= raw.size]) == expected
        assert digest(wide, FP32, [cut for cut in two if cut <= raw.size]) == expected
        assert digest(wide.astype(np.float64), FP64) == expected


@settings(max_examples=100)
@given(nps.arrays(np.uint32, st.integers(0, 200)), st.lists(st.integers(0, 200), max_size=5))
def test_a_digest_of_fp32_does_not_see_chunks(raw: np.ndarray, cuts: list[int]) -> None:
    values = raw.view(np.float32)
    assert digest(values, FP32, [cut for cut in cuts if cut <= values.size]) == digest(values, FP32)


def test_low_halves_after_many_zeros_count() -> None:
    """Low halves that begin after a megabyte of zeros are hashed at their place."""
    values = np.zeros(1_200_000, np.float32)
    values[-1] = np.float32(1 + 2**-20)
    moved = np.zeros_like(values)
    moved[0] = values[-1]
    assert digest(values, FP32) == digest(values, FP32, [3, 1_000_000])
    assert len({digest(values, FP32), digest(moved, FP32), digest(np.zeros_like(values), FP32)}) == 3
    mixed = TreeDigest()
    mixed.update(np.zeros(1_100_000, np.uint16), BF16)
    mixed.update(values[1_100_000:], FP32)
    assert of_leaves(mixed.leaves) == digest(values, FP32)


@settings(max_examples=100)
@given(nps.arrays(np.uint32, st.integers(1, 40)), st.integers(0, 39), st.integers(0, 31))
def test_a_digest_sees_every_bit(raw: np.ndarray, at: int, bit: int) -> None:
    changed = raw.copy()
    changed[at % raw.size] ^= np.uint32(1 << bit)
    assert digest(raw.view(np.float32), FP32) != digest(changed.view(np.float32), FP32)


def test_a_digest_sees_the_order_and_the_sign_of_zero() -> None:
    values = np.array([0.0, 1.5, 2.5], np.float32)
    assert len({digest(values, FP32), digest(values[::-1].copy(), FP32), digest(-values * [1, -1, -1], FP32)}) == 3


# What version 1 said, and says.
OLD = [
    (np.arange(-3, 8, dtype=np.float32) * np.float32(0.37), FP32, "5536419936437270e132c25eb5c1f6ac84ed02e0f2ca92998e54e3233e0a93e0"),
    (np.arange(7, dtype=np.uint16), BF16, "7943e993d3a82651b77febfc8bc52286bd16528ef3aa307a54ce73fbdccf1ac5"),
    (np.zeros(0, np.float32), FP32, "82878ed8a480ee41775636820e05a934ca5c747223ca64306658ee5982e6c227"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "dtype", "expected"), OLD, ids=["fp32", "bf16", "none"])
def test_version_1_is_still_computed(values: np.ndarray, dtype: DType, expected: str) -> None:
    found = LeafDigest()
    found.update(values, dtype)
    assert found.leaves == [expected] == [of_leaves([expected], version=1)]
    assert digest(values, dtype) == of_leaves([expected] if values.size else [])


@settings(max_examples=60)
@given(nps.arrays(np.uint16, st.integers(0, 99)), st.integers(1, 40), st.data())
def test_a_digest_is_that_of_its_leaves_whoever_hashes_them(raw: np.ndarray, size: int, data: st.DataObject) -> None:
    """Any part that begins where a leaf does can be hashed apart from the others, in any dtype."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "LEAF", size)
        whole = digest(raw, BF16)
        starts = [0, *sorted(data.draw(st.sets(st.sampled_from(range(0, 400, size)))) - {0})]
        leaves = []
        for start, stop in zip(starts, [*starts[1:], raw.size], strict=True):
            part = TreeDigest()
            part.update(raw[start:stop] if start % 3 else decode(raw[start:stop], BF16), BF16 if start % 3 else FP32)
            leaves += part.leaves
        assert of_leaves(leaves) == whole
        assert len(leaves) == -(-raw.size // size)


def test_a_leaf_has_two_to_the_24_elements() -> None:
    values = np.zeros((1 << 24) + 3, np.uint16)
    found = []
    for part in (values[: 1 << 24], values[1 << 24 :]):
        leaf = LeafDigest()
        leaf.update(part, BF16)
        found.append(leaf.hexdigest())
    assert digest(values, BF16) == of_leaves(found)


BASE = [("a", (2, 3), 64 * "0"), ("b", (6,), 64 * "1")]
FINGERPRINTS = {
    "another name": [("c", (2, 3), 64 * "0"), ("b", (6,), 64 * "1")],
    "another shape": [("a", (3, 2), 64 * "0"), ("b", (6,), 64 * "1")],
    "another digest": [("a", (2, 3), 64 * "2"), ("b", (6,), 64 * "1")],
    "another version": [(name, shape, f"v2-{digest}") for name, shape, digest in BASE],
    "a tensor less": [("a", (2, 3), 64 * "0")],
    "digests exchanged": [("a", (2, 3), 64 * "1"), ("b", (6,), 64 * "0")],
}


def test_a_fingerprint_is_of_one_version() -> None:
    assert version_of(fingerprint(BASE)) == 1 and version_of(fingerprint(FINGERPRINTS["another version"])) == 2
    with pytest.raises(ValueError, match="several versions"):
        fingerprint([BASE[0], FINGERPRINTS["another version"][1]])
    for strange in ("v3-" + 64 * "0", 63 * "0", "", "v2-", "v1-" + 64 * "0", "v02-" + 64 * "0"):
        with pytest.raises(FormatError, match="not known"):
            version_of(strange)


def test_a_fingerprint_does_not_see_the_order() -> None:
    assert fingerprint(BASE) == fingerprint(reversed(BASE))


@pytest.mark.parametrize("other", FINGERPRINTS.values(), ids=FINGERPRINTS)
def test_a_fingerprint_sees(other: list) -> None:
    assert fingerprint(other) != fingerprint(BASE)


# --- maps ----------------------------------------------------------------------------------------------------------------


# a map, a stored value, its canonical value
MAPS = [(plus_one, 0.25, 1.25), (scale(0.125), 3.0, 0.375), (scale(3.0), -2.0, -6.0), (neg_exp, 0.0, -1.0)]


@pytest.mark.parametrize(("value_map", "stored", "canonical"), MAPS, ids=lambda value: str(value))
def test_a_map_and_its_inverse(value_map, stored: float, canonical: float) -> None:
    values = np.array([stored], np.float32)
    mapped = value_map.apply(values)
    assert mapped.dtype == np.float32
    assert mapped[0] == np.float32(canonical)
    assert value_map.inverse().apply(mapped)[0] == pytest.approx(stored, abs=1e-7)
    assert value_map.inverse().inverse().apply(values)[0] == pytest.approx(canonical, rel=1e-6)


def test_torch_knows_every_dtype() -> None:
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in BY_TORCH)
