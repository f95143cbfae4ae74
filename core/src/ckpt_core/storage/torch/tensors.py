"""Tensors in a torch pickle: a storage, and a strided view of it.

torch pickles a tensor as `_rebuild_tensor_v2(storage, offset, size, stride, ...)`, all in
elements, where `storage` is a persistent id that names a record of the file. Several
tensors may view one storage, with any strides. The makers here turn that into a
`StoredTensor` after checking that the view lies inside the record.

dtypes that are older than torch 1.13 have a storage class (`FloatStorage`); newer ones
(float8, uint16...) are an `UntypedStorage`, counted in bytes, and `_rebuild_tensor_v3`
that carries the dtype.
"""

from __future__ import annotations

import math
from typing import Any

from ckpt_core.lean import dataclass
from ckpt_core.storage.dtypes import BY_NAME, DType
from ckpt_core.storage.pickle.makers import Args, Maker, Reading
from ckpt_core.storage.pickle.opaque import Opaque, brief
from ckpt_core.storage.pickle.reader import PLAIN_MAKERS
from ckpt_core.storage.tensor import Record, StoredTensor

# torch/storage.py, _dtype_to_storage_type_map (torch 2.13); the names have not changed since torch 0.2.
STORAGE_CLASSES = {
    "DoubleStorage": BY_NAME["fp64"],
    "FloatStorage": BY_NAME["fp32"],
    "HalfStorage": BY_NAME["fp16"],
    "BFloat16Storage": BY_NAME["bf16"],
    "LongStorage": BY_NAME["int64"],
    "IntStorage": BY_NAME["int32"],
    "ShortStorage": BY_NAME["int16"],
    "CharStorage": BY_NAME["int8"],
    "ByteStorage": BY_NAME["uint8"],
    "BoolStorage": BY_NAME["bool"],
    "UntypedStorage": BY_NAME["uint8"],
}
_MAX_DIMENSIONS = 64
_MAX_BYTES = 1 << 62
_MAX_REPEATED_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class StoredStorage:
    """A record of raw elements: `elements` of `dtype` from byte `offset` of `file` on.

    It is in a result only where someone saved a bare storage.
    """

    file: str
    dtype: DType
    offset: int
    elements: int
    untyped: bool = False
    record: Record | None = None


def storage_class(reference: object, reading: Reading) -> tuple[DType, bool]:
    """The element type of a storage class named in a persistent id, and whether it is untyped."""
    if isinstance(reference, Opaque) and reference.is_reference and reference.module.split(".")[0] == "torch":
        if reference.name in STORAGE_CLASSES:
            return STORAGE_CLASSES[reference.name], reference.name == "UntypedStorage"
        kind = (
            "a quantised"
            if reference.name.startswith("Q")
            else "a complex"
            if "Complex" in reference.name
            else "an unknown"
        )
        reading.fail(f"{kind} tensor is not read", found=reference.qualname, expected=", ".join(STORAGE_CLASSES))
    reading.fail("a tensor's storage has no class", found=brief(reference))


def check_count(value: object, what: str, reading: Reading) -> int:
    """`value` as a count of something in a file: an integer from 0 to 2**62."""
    if type(value) is not int or not 0 <= value <= _MAX_BYTES:
        reading.fail(f"{what} is impossible", found=brief(value), expected="an integer from 0 on")
    return value


def _sizes(value: object, what: str, reading: Reading) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > _MAX_DIMENSIONS:
        reading.fail(f"{what} is impossible", found=brief(value), expected=f"at most {_MAX_DIMENSIONS} integers")
    return tuple(check_count(size, what, reading) for size in value)


def _view(
    storage: StoredStorage, dtype: DType, offset: Any, shape: Any, strides: Any, reading: Reading
) -> StoredTensor:
    """The tensor of `shape` and `strides` (in elements of `dtype`) that starts `offset` elements into `storage`."""
    start = check_count(offset, "a tensor's offset in its storage", reading)
    shape = _sizes(shape, "a tensor's shape", reading)
    strides = _sizes(strides, "a tensor's strides", reading)
    if len(shape) != len(strides):
        reading.fail("a tensor has not as many strides as dimensions", found=f"shape {shape}, strides {strides}")
    reading.charge(96 + 16 * len(shape))
    elements = math.prod(shape)
    if elements == 0:
        if math.prod(size for size in shape if size) > _MAX_BYTES:
            reading.fail("a tensor's shape is impossible", found=shape)
        return StoredTensor(storage.file, dtype, shape, storage.offset, strides, storage.record)
    available = storage.elements * storage.dtype.size // dtype.size
    last = start + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= available:
        reading.fail(
            "a tensor reaches past the end of its storage",
            found=f"shape {shape}, strides {strides} from element {start} on: {last + 1} elements",
            expected=f"at most {available} elements",
        )
    if elements > available and elements * dtype.size > _MAX_REPEATED_BYTES:
        reading.fail(
            "a tensor repeats a small storage to a very large size",
            found=f"shape {shape} over {available} elements",
            expected=f"at most {_MAX_REPEATED_BYTES} bytes",
        )
    return StoredTensor(storage.file, dtype, shape, storage.offset + start * dtype.size, strides, storage.record)


def _rebuild(name: str, args: Args, dtype: Any, metadata: Any, reading: Reading) -> Any:
    """The view that the first four of `args` describe; `dtype` None means that of the storage."""
    storage = args[0]
    if isinstance(storage, Opaque):  # pickled without torch.save: the bytes are not a record of this file
        return Opaque("torch._utils", name, args)
    if not isinstance(storage, StoredStorage):
        reading.fail("a tensor without a storage", found=brief(storage))
    if metadata and (not isinstance(metadata, dict) or any(metadata.values())):
        # torch sets the bits `conj` and `neg` for lazy views: the stored values are not those of the tensor.
        reading.fail(
            "a conjugated or negated tensor is not read",
            found=brief(metadata),
            fix="save tensor.resolve_neg().resolve_conj()",
        )
    if dtype is None:
        dtype = storage.dtype
    elif not isinstance(dtype, DType):
        reading.fail("a tensor of a dtype that is not read", found=brief(dtype), expected=", ".join(BY_NAME))
    return _view(storage, dtype, args[1], args[2], args[3], reading)


def _make_tensor(args: Args, reading: Reading) -> Any:
    _check_arguments("_rebuild_tensor_v2", args, 4, 7, reading)
    return _rebuild("_rebuild_tensor_v2", args, None, args[6] if len(args) > 6 else None, reading)


def _make_tensor_of_dtype(args: Args, reading: Reading) -> Any:
    _check_arguments("_rebuild_tensor_v3", args, 7, 8, reading)
    return _rebuild("_rebuild_tensor_v3", args, args[6], args[7] if len(args) > 7 else None, reading)


def _make_parameter(args: Args, reading: Reading) -> Any:
    _check_arguments("_rebuild_parameter", args, 2, 4, reading)
    if not isinstance(args[0], StoredTensor | Opaque):
        reading.fail("a parameter without a tensor", found=brief(args[0]))
    return args[0]


def _make_from_type(args: Args, reading: Reading) -> Any:
    """`_rebuild_from_type_v2(function, class, args, state)`: a tensor with attributes, or of a subclass."""
    _check_arguments("_rebuild_from_type_v2", args, 4, 4, reading)
    function, cls, inner, state = args
    if not isinstance(function, Opaque) or not isinstance(cls, Opaque) or type(inner) is not tuple:
        reading.fail("a tensor subclass is stored in a way that is not known", found=brief(function))
    maker = _REBUILD.get(function.qualname)
    if maker is None:  # a wrapper such as DTensor: its parts are in `state`
        return Opaque(cls.module, cls.name, inner, state)
    return maker(inner, reading)


def _make_from_cpu_tensor(args: Args, reading: Reading) -> Any:
    _check_arguments("_rebuild_device_tensor_from_cpu_tensor", args, 4, 4, reading)
    data, dtype = args[:2]
    if not isinstance(data, StoredTensor) or data.dtype != dtype:
        reading.fail("a device tensor is stored in a way that is not known", found=brief(data))
    return data


def _check_arguments(name: str, args: Args, least: int, most: int, reading: Reading) -> None:
    if not least <= len(args) <= most:
        reading.fail(f"{name} with {len(args)} arguments", expected=f"{least} to {most}")


def _refuse(kind: str, fix: str) -> Maker:
    def maker(args: Args, reading: Reading) -> Any:
        reading.fail(f"a {kind} tensor is not read", expected="dense tensors", fix=fix)

    return maker


_DENSE = "save it as a dense tensor (`tensor.to_dense()`)"
_REBUILD: dict[str, Maker] = {
    "torch._utils._rebuild_tensor": _make_tensor,
    "torch._utils._rebuild_tensor_v2": _make_tensor,
    "torch._utils._rebuild_tensor_v3": _make_tensor_of_dtype,
    "torch._utils._rebuild_parameter": _make_parameter,
    "torch._utils._rebuild_parameter_with_state": _make_parameter,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _make_from_cpu_tensor,
    "torch._utils._rebuild_qtensor": _refuse("quantised", "save `tensor.dequantize()`"),
    "torch._utils._rebuild_sparse_tensor": _refuse("sparse", _DENSE),
    "torch._utils._rebuild_sparse_csr_tensor": _refuse("sparse", _DENSE),
    "torch._utils._rebuild_nested_tensor": _refuse("nested", _DENSE),
}
TORCH_MAKERS: dict[str, Maker] = {
    **PLAIN_MAKERS,
    **_REBUILD,
    "torch._tensor._rebuild_from_type_v2": _make_from_type,
    "torch.tensor._rebuild_from_type_v2": _make_from_type,
}
