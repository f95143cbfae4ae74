"""The element types of checkpoints, and their exact way to float32 and back.

NumPy has no bfloat16 and no float8, and the engine must run without torch, so
an element type here is a name, a size and two functions on raw NumPy arrays.
`decode` is exact for every type of 32 bits or fewer; `encode` rounds to nearest
even, as torch and XLA do.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import field

from ckpt_core import numpy as np
from ckpt_core.errors import FormatError, UsageError, nearest
from ckpt_core.lean import dataclass
from ckpt_core.storage.floats import E2M1, E4M3, E5M2, HALF, narrow_bf16, widen_bf16

__all__ = [
    "BF16",
    "BY_NAME",
    "BY_SAFETENSORS",
    "BY_TORCH",
    "E2M1",
    "E4M3",
    "FP16",
    "FP32",
    "FP64",
    "DType",
    "commonest",
    "decode",
    "dtype_named",
    "encode",
]


@dataclass(frozen=True, slots=True)
class DType:
    """An element type: `name` as users say it, `raw` the NumPy type its bytes are handled as."""

    name: str
    safetensors: str
    torch: str
    raw: str
    floating: bool = True
    size: int = field(init=False, repr=False, compare=False)
    """Bytes per element."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", int(self.raw[2:]))

    @property
    def numpy(self) -> np.dtype:
        """The NumPy type the raw bytes are handled as (`uint16` for bf16)."""
        return np.dtype(self.raw)

    @property
    def bits(self) -> int:
        """Significant bits of an element, the one that is not stored among them."""
        return _BITS.get(self.name, 8 * self.size)

    def __str__(self) -> str:
        return self.name


_BITS = {"fp64": 53, "fp32": 24, "fp16": 11, "bf16": 8, "fp8_e4m3": 4, "fp8_e5m2": 3, "fp8_e8m0": 1}

# name        safetensors  torch              raw bytes as
# fmt: off
_TABLE = [
    DType("fp64",     "F64",     "float64",         "<f8"),
    DType("fp32",     "F32",     "float32",         "<f4"),
    DType("fp16",     "F16",     "float16",         "<f2"),
    DType("bf16",     "BF16",    "bfloat16",        "<u2"),
    DType("fp8_e4m3", "F8_E4M3", "float8_e4m3fn",   "|u1"),
    DType("fp8_e5m2", "F8_E5M2", "float8_e5m2",     "|u1"),
    DType("fp8_e8m0", "F8_E8M0", "float8_e8m0fnu",  "|u1"),
    DType("int64",    "I64",     "int64",           "<i8", floating=False),
    DType("int32",    "I32",     "int32",           "<i4", floating=False),
    DType("int16",    "I16",     "int16",           "<i2", floating=False),
    DType("int8",     "I8",      "int8",            "|i1", floating=False),
    DType("uint8",    "U8",      "uint8",           "|u1", floating=False),
    DType("uint16",   "U16",     "uint16",          "<u2", floating=False),
    DType("uint32",   "U32",     "uint32",          "<u4", floating=False),
    DType("uint64",   "U64",     "uint64",          "<u8", floating=False),
    DType("bool",     "BOOL",    "bool",            "|u1", floating=False),
]
# fmt: on

BY_NAME = {dtype.name: dtype for dtype in _TABLE}
"""The dtypes by our names: `bf16`."""
BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in _TABLE}
"""The dtypes by the names that safetensors has for them: `BF16`."""
BY_TORCH = {dtype.torch: dtype for dtype in _TABLE}
"""The dtypes by the names that torch has for them: `bfloat16`."""

FP64, FP32, FP16, BF16 = (BY_NAME[name] for name in ("fp64", "fp32", "fp16", "bf16"))


def dtype_named(name: str) -> DType:
    """The element type called `name` by us, torch or safetensors; `UsageError` if there is none."""
    for table in (BY_NAME, BY_TORCH, BY_SAFETENSORS):
        if name in table:
            return table[name]
    raise UsageError(f"unknown dtype {name!r}", expected=", ".join(BY_NAME), fix=_meant(name, BY_NAME.values()))


def written_dtype(name: str) -> DType:
    """The element type to write weights in that is called `name` by us, torch or safetensors; `UsageError` if there is none.

    >>> str(written_dtype("bfloat16")), str(written_dtype("F32"))
    ('bf16', 'fp32')
    """
    known = [BY_NAME[one] for one in WRITTEN]
    found = next((one for one in known if name in (one.name, one.torch, one.safetensors)), None)
    if found is None:
        raise UsageError(
            f"weights can't be written in dtype {name!r:.60}",
            expected=", ".join(("keep", *WRITTEN)),
            fix=_meant(name, known),
        )
    return found


_SPOKEN = {"half": "fp16", "float": "fp32", "double": "fp64"}
"""What torch and CUDA also call them."""


def _meant(name: str, known: Iterable[DType]) -> str | None:
    """The name of ours that was meant, where the one given is like one that somebody has for it."""
    width = sorted(filter(str.isdigit, name))  # who asks for float8 does not mean fp64
    called = {
        spelling: one.name
        for one in known
        for spelling in (one.name, one.torch, one.safetensors.lower())
        if width in ([], sorted(filter(str.isdigit, spelling)))
    }
    guess = nearest(_SPOKEN.get(name.lower().removeprefix("torch."), name.lower().removeprefix("torch.")), called)
    return f"did you mean {called[guess]!r}?" if guess else None


def _float8_values(exponent_bits: int, mantissa_bits: int, bias: int, has_infinity: bool) -> np.ndarray:
    codes = np.arange(256)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = codes & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits)
    values = np.where(
        exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent.astype(float) - bias)
    )
    top = exponent == (1 << exponent_bits) - 1
    if has_infinity:
        values = np.where(top, np.where(mantissa == 0, np.inf, np.nan), values)
    else:  # e4m3fn: only the all-ones code is NaN, there is no infinity
        values = np.where(top & (mantissa == (1 << mantissa_bits) - 1), np.nan, values)
    return (sign * values).astype(np.float32)


def _powers_of_two() -> np.ndarray:
    """E8M0: exponents alone. 0 is 2**-127, which float32 has as a subnormal, and 255 is NaN."""
    values = np.ldexp(np.ones(256), np.arange(256) - 127)
    values[255] = np.nan
    return values.astype(np.float32)


@functools.cache
def _float8(name: str) -> np.ndarray:
    """The float32 of each code of an 8-bit float."""
    if name == "fp8_e8m0":
        return _powers_of_two()
    return (
        _float8_values(4, 3, 7, has_infinity=False)
        if name == "fp8_e4m3"
        else _float8_values(5, 2, 15, has_infinity=True)
    )


_FLOAT8 = ("fp8_e8m0", "fp8_e4m3", "fp8_e5m2")


def commonest(dtypes: Iterable[DType]) -> DType:
    """The element type that most have; of several, the one that comes first."""
    return Counter(dtypes).most_common(1)[0][0]


_NARROW = {"fp8_e4m3": E4M3, "fp8_e5m2": E5M2, "fp16": HALF}


def decode(raw: np.ndarray, dtype: DType, out: np.ndarray | None = None) -> np.ndarray:
    """Raw elements of `dtype`, an array of any shape, as a float32 array of the same shape: `out`, if it is given, which is C-contiguous.

    Exact for every floating type up to 32 bits; float64 rounds. Float32 is returned as it is, without a copy, where there is no `out`.
    Raises `FormatError` for integer and boolean types: model weights are floating.
    """
    if not dtype.floating:
        raise FormatError(f"a weight of dtype {dtype} has no floating value", expected="a floating dtype")
    if dtype.name == "fp32" and out is None:
        return raw
    if out is None:
        out = np.empty(raw.shape, np.float32)
    if dtype.name == "bf16":
        widen_bf16(raw, out)
    elif dtype.name in _NARROW:
        raw = np.ascontiguousarray(raw)
        if _NARROW[dtype.name].widen(raw, out):
            out[...] = _special(raw, dtype)
    elif dtype.name in _FLOAT8:
        out[...] = np.take(_float8(dtype.name), raw)
    else:
        out[...] = raw
    return out


def _special(raw: np.ndarray, dtype: DType) -> np.ndarray:
    """Raw elements as float32, where some are infinite or NaN."""
    return raw.astype(np.float32) if dtype.name == "fp16" else np.take(_float8(dtype.name), raw)


def encode(values: np.ndarray, dtype: DType, out: np.ndarray | None = None) -> np.ndarray:
    """Float32 values, an array of any shape, as raw elements of `dtype` in the same shape, rounded to nearest even: `out`, if it is given,
    which is C-contiguous.

    Raises `UsageError` for types that can't be written (float8, integers).
    """
    if dtype.name not in WRITTEN:
        raise UsageError(f"cannot write dtype {dtype}", expected=", ".join(WRITTEN))
    if dtype == FP32 and out is None:
        return values.astype(np.float32, copy=False)
    if out is None:
        out = np.empty(values.shape, dtype.numpy)
    if dtype.name in ("bf16", "fp16"):
        values = np.ascontiguousarray(values, dtype=np.float32)
        (narrow_bf16 if dtype.name == "bf16" else _narrow_half)(values, out)
    else:
        out[...] = values
    return out


WRITTEN = ("fp64", "fp32", "fp16", "bf16")
"""The dtypes that weights are written in."""
_OVERFLOW = 65520.0
"""From here on a number rounds to an infinite half."""


def _narrow_half(values: np.ndarray, out: np.ndarray) -> None:
    if max(values.max(initial=0), -values.min(initial=0)) < _OVERFLOW:  # nor is any NaN
        HALF.narrow(values, out)
    else:
        with np.errstate(over="ignore"):  # an overflow is counted and reported by the engine
            out[...] = values
