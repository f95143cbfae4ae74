"""Tensors of blocks: their numbers, computed of the rows that are read, and rows made of numbers.

The arithmetic is that of the package gguf, which llama.cpp's own converter uses: bit for bit what ggml computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ckpt_core.sdk import Checkpoint, FormatError, Refusal, StoredTensor, dtypes, layouts, lazy, schema
from ckpt_gguf.kinds import Kind

_BYTE = dtypes.dtype_named("uint8")
_LARGEST = 127 * 65504.0
"""The largest number of a block of Q8_0, whose scale is a float16."""


@schema.dataclass(frozen=True, slots=True)
class Blocks:
    """The numbers of tensor `name`, whose rows are blocks of a `kind`."""

    kind: str
    name: str

    def decode(self, stored: Sequence[np.ndarray], first: int, rows: int) -> np.ndarray:
        import gguf

        with np.errstate(all="ignore"):
            numbers = gguf.quants.dequantize(stored[0], gguf.GGMLQuantizationType[self.kind])
        if not np.isfinite(numbers).all():
            raise FormatError(
                f"tensor {self.name!r} has blocks of no numbers",
                found=f"in rows {first} to {first + rows}",
                expected="finite scales",
                fix="the file is damaged: copy it again, or quantise the model again",
            )
        return np.ascontiguousarray(numbers, np.float32)

    def encode(self, values: np.ndarray, first: int) -> Sequence[np.ndarray]:
        import gguf

        if not (np.abs(values) <= _LARGEST).all():  # nor is a NaN
            raise Refusal(f"{self.kind} does not hold it", found="a number that is not finite, or above 8319008")
        return (gguf.quants.quantize(values, gguf.GGMLQuantizationType[self.kind]),)


def kept_of(checkpoint: Checkpoint, natives: Mapping[str, layouts.Native], fix: str) -> dict[str, lazy.Quantised]:
    """The blocks of a source in GGUF that lie in a tensor of the target as they lie in the source, by the name of the tensor.

    Raises `Refusal` where there are none, or where some lie otherwise in every tensor; `fix` says what to do then.
    """
    parts = {
        name: {block.tile: block.quantised for block in tensor.value_blocks if block.quantised is not None}
        for name, tensor in checkpoint.tensors.items()
    }
    if checkpoint.format != "gguf" or not any(parts.values()):
        raise Refusal(
            "there are no blocks to keep: the source has none, or is of another format", file=checkpoint.path, fix=fix
        )
    kept = {native.name: one for native in natives.values() if (one := _whole(native, parts)) is not None}
    held = set(kept.values())
    lost = [name for name, blocks in parts.items() if any(one not in held for one in blocks.values())]
    if lost:
        raise Refusal(
            f"{len(lost)} tensors can't keep their blocks, which another tensor shares or splits",
            found=f"{lost[0]} among them",
            fix=fix,
        )
    return kept


def _whole(native: layouts.Native, parts: Mapping[str, Mapping[layouts.Tile, lazy.Quantised]]) -> lazy.Quantised | None:
    """The blocks of the source that hold just what a native tensor holds, element for element."""
    strides = lazy.contiguous_strides(native.shape)
    found = {parts[piece.parameter].get(lazy.flat_tile(piece.tile, strides)) for piece in native.pieces}
    one = found.pop() if len(found) == 1 else None
    whole = one is not None and one.matrices * one.rows * one.columns == math.prod(native.shape)
    return one if whole else None


def numbers_of(kind: Kind, name: str, shape: tuple[int, ...], file: str, offset: int) -> StoredTensor:
    """The numbers of a tensor of blocks that begins at byte `offset` of a file, as float32. `shape` has the rows first."""
    *matrices, rows, columns = shape if len(shape) > 1 else (1, *shape)
    count, width = int(np.prod(matrices, dtype=np.int64)), kind.bytes_of(columns)
    stored = StoredTensor.contiguous(file, _BYTE, (count * rows, width), offset)
    operand = lazy.Operand(name, stored, width)
    blocks = lazy.Quantised(Blocks(kind.name, name), (operand,), count, rows, columns, what=f"blocks of {kind.name}")
    return blocks.tensor(dtypes.FP32, shape)
