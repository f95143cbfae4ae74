"""The dtype and the values in which a tensor is stored."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_core import numpy as np
from ckpt_core.errors import Refusal
from ckpt_core.layout import Native, ValueMap
from ckpt_core.storage.dtypes import DType, decode, dtype_named, encode
from ckpt_core.tensors.assembly import LazyParameter

_WIDER = {"fp64": 4, "fp32": 3, "bf16": 1, "fp16": 1, "fp8_e4m3": 0, "fp8_e5m2": 0, "fp8_e8m0": 0}


def storage_dtype(native: Native, tensors: Mapping[str, LazyParameter], wanted: DType | None) -> DType:
    """The dtype a native tensor is stored in: what its row fixes, else `wanted`, else the widest of its parts.

    A part whose values were computed (an attention scale folded into it) is at least float32, so that nothing is rounded.
    """
    if native.row.dtype is not None:
        return dtype_named(native.row.dtype)
    if wanted is not None:
        return wanted
    parts = [tensors[piece.parameter] for piece in native.pieces]
    if len(parts) == 1 and not parts[0].computed:
        return parts[0].dtype  # as of most
    dtypes = [part.dtype for part in parts] + [part.value_dtype for part in parts if part.computed]
    return max(dtypes, key=lambda dtype: _WIDER[dtype.name])


def stored_values(values: np.ndarray, dtype: DType, target: DType, maps: tuple[ValueMap, ...], name: str) -> np.ndarray:
    """Canonical values (raw elements of `dtype`, an array of any shape) as raw elements of `target` in the same shape, after
    `maps`. `Refusal`, naming the tensor `name`, where a value does not fit fp16.
    """
    if target == dtype and not maps:
        return values
    floats = decode(values, dtype)
    for value_map in maps:
        floats = value_map.apply(floats)
    encoded = encode(floats, target)
    if target.name == "fp16" and np.isinf(encoded).sum() > np.isinf(floats).sum():
        largest = np.abs(floats[np.isfinite(floats)]).max()
        raise Refusal(
            f"{name} does not fit fp16",
            found=f"a value of {largest:g}",
            expected="at most 65504",
            fix="use --dtype bf16 or fp32",
        )
    return encoded
