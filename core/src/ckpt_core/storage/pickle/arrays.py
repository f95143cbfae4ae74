"""NumPy arrays, scalars and dtypes in a pickle, rebuilt from checked parts.

    numpy.dtype("f4", False, True)                     then BUILD (3, "<", None, None, None, -1, -1, 0)
    numpy.core.multiarray._reconstruct(ndarray, ...)   then BUILD (1, shape, dtype, column-major, bytes)
    numpy.core.multiarray.scalar(dtype, bytes)
    numpy.core.numeric._frombuffer(bytes, dtype, shape, order)          protocol 5

BUILD calls NumPy's own `__setstate__`, after checking that the dtype is a number
or text (never objects, which would hold pointers) and that the bytes fit the shape.
"""

from __future__ import annotations

import math
import re
from typing import Any

from ckpt_core import numpy as np
from ckpt_core.storage.pickle.makers import Args, Maker, Reading
from ckpt_core.storage.pickle.opaque import Opaque, brief

_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,5})", re.ASCII)


def _numpy_dtype(args: Args, reading: Reading) -> np.dtype[Any]:
    """`numpy.dtype("f4", False, True)`. A fresh object: BUILD sets its byte order in place."""
    code = args[0] if args else None
    if type(code) is not str or not _DTYPE.fullmatch(code):
        reading.fail("a NumPy array of a type that is not read", found=brief(code), expected="numbers or text")
    return np.dtype(code, align=False, copy=True)


def is_of_numpy(target: object) -> bool:
    """Whether it is an array or a dtype. A pickle without any does not import NumPy."""
    return type(target).__module__.partition(".")[0] == "numpy"


def set_numpy_state(target: Any, state: object, reading: Reading) -> None:
    """BUILD of a NumPy array or dtype."""
    (_set_array_state if isinstance(target, np.ndarray) else _set_dtype_state)(target, state, reading)


def _set_dtype_state(dtype: np.dtype[Any], state: object, reading: Reading) -> None:
    """BUILD of a NumPy dtype: (3, byte order, no sub-array, no names, no fields, size, alignment, flags)."""
    if not isinstance(state, tuple) or not 8 <= len(state) <= 9 or state[1] not in ("<", ">", "|", "="):
        reading.fail("the state of a NumPy dtype is damaged", found=brief(state))
    if state[0] not in (3, 4) or any(part is not None for part in (*state[2:5], *state[8:])):
        reading.fail("a NumPy dtype with fields or metadata is not read", found=brief(state))
    sizes = state[5:8]
    # Numbers leave the sizes out; text states (bytes, alignment, flags), where flag 8 means "needs setting up".
    by_kind = {"U": (dtype.itemsize, 4, 8), "S": (dtype.itemsize, 1, 0)}
    if sizes != by_kind.get(dtype.kind, (-1, -1, 0)):
        reading.fail("the state of a NumPy dtype is damaged", found=brief(state))
    checked = (3, state[1], None, None, None, *sizes)
    dtype.__setstate__(checked)  # type: ignore[attr-defined]


def _empty_array(args: Args, reading: Reading) -> np.ndarray[Any, Any]:
    """`_reconstruct(numpy.ndarray, (0,), b"b")`: an array that BUILD fills."""
    if len(args) != 3 or not isinstance(args[0], Opaque) or args[0].qualname != "numpy.ndarray" or args[1] != (0,):
        reading.fail(
            "numpy _reconstruct is asked for something that is not an array", found=brief(args[0] if args else None)
        )
    return np.empty(0, np.int8)


def _array_bytes(
    data: object, dtype: object, shape: object, reading: Reading
) -> tuple[bytes, np.dtype[Any], tuple[int, ...]]:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        reading.fail("a NumPy array of a type that is not read", found=brief(dtype), expected="numbers or text")
    if (
        not isinstance(shape, tuple)
        or len(shape) > 32
        or not all(type(size) is int and 0 <= size < 2**48 for size in shape)
    ):
        reading.fail("a NumPy array with an impossible shape", found=brief(shape))
    if isinstance(data, str):  # Python 2 stored it as text, which our reader decoded as UTF-8 where it could
        data = data.encode("utf-8", "surrogatepass")
    if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape) * dtype.itemsize:
        reading.fail(
            "a NumPy array whose data does not fit its shape", found=f"{brief(data)} for shape {shape} of {dtype}"
        )
    reading.charge(len(data))
    return bytes(data), dtype, shape


def _set_array_state(array: np.ndarray[Any, Any], state: object, reading: Reading) -> None:
    """BUILD of a NumPy array: (1, shape, dtype, whether column-major, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[3], bool | int):
        reading.fail("the state of a NumPy array is damaged", found=brief(state))
    data, dtype, shape = _array_bytes(state[4], state[2], state[1], reading)
    try:
        array.__setstate__((1, shape, dtype, bool(state[3]), data))  # type: ignore[arg-type]
    except (ValueError, TypeError, MemoryError):  # a shape such as (0, 2**47, 2**47)
        reading.fail("a NumPy array with an impossible shape", found=brief(shape))


def _array_from_buffer(args: Args, reading: Reading) -> np.ndarray[Any, Any]:
    """`numpy.core.numeric._frombuffer(data, dtype, shape, order)`: protocol 5."""
    if len(args) != 4 or args[3] not in ("C", "F"):
        reading.fail("numpy _frombuffer with odd arguments", found=f"{len(args)} arguments")
    data, dtype, shape = _array_bytes(args[0], args[1], args[2], reading)
    return np.frombuffer(data, dtype).reshape(shape, order=args[3])


def _scalar(args: Args, reading: Reading) -> Any:
    """`numpy.core.multiarray.scalar(dtype, bytes)`, as the plain Python number or text."""
    if len(args) != 2:
        reading.fail("a NumPy scalar with odd arguments", found=f"{len(args)} arguments")
    data, dtype, _ = _array_bytes(args[1], args[0], (), reading)
    return np.frombuffer(data, dtype)[0].item()


NUMPY_MAKERS: dict[str, Maker] = {"numpy.dtype": _numpy_dtype}
for _core in ("numpy.core", "numpy._core"):  # renamed in NumPy 2
    NUMPY_MAKERS |= {
        f"{_core}.multiarray._reconstruct": _empty_array,
        f"{_core}.multiarray.scalar": _scalar,
        f"{_core}.numeric._frombuffer": _array_from_buffer,
    }
