"""Device meshes as pickles keep them: which rank has which coordinate.

torch 2.13 keeps a layout (sizes and strides) over the positions of the root mesh, and `_rank_map`, the rank at each position.
Until 2.8 a mesh kept `mesh`, the tensor of its ranks. Both are data here: no process group is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ckpt_core.sdk import FormatError, StoredTensor, disk, lazy, schema, torch_files

_MOST_RANKS = 1 << 20
Leaf = tuple[int, int]
"""A size and its stride, in positions of the root mesh."""


@schema.dataclass(frozen=True)
class Mesh:
    """`ranks` is the rank at each position of the root mesh; `dimensions` are those of this mesh, each one or more leaves."""

    ranks: tuple[int, ...]
    dimensions: tuple[tuple[Leaf, ...], ...]
    names: tuple[str, ...] = ()

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(size for size, _ in leaves) for leaves in self.dimensions)

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {rank: position for position, rank in enumerate(self.ranks)}

    def coordinate(self, rank: int) -> tuple[int, ...] | None:
        """Where a rank stands along each dimension; None if the mesh does not have it."""
        position = self._positions.get(rank)
        return None if position is None else tuple(self._along(leaves, position) for leaves in self.dimensions)

    def base(self, rank: int) -> int:
        """Which of the meshes of this layout a rank is in: a root mesh is cut into several where this one is a slice of it."""
        position = self._positions[rank]
        return position - sum(
            position // stride % size * stride for leaves in self.dimensions for size, stride in leaves
        )

    @staticmethod
    def _along(leaves: Sequence[Leaf], position: int) -> int:
        place = 0
        for size, stride in leaves:
            place = place * size + position // stride % size
        return place

    def __str__(self) -> str:
        names = self.names or tuple(f"dimension {number}" for number in range(len(self.sizes)))
        return " x ".join(f"{name} {size}" for name, size in zip(names, self.sizes, strict=False)) or "no dimension"

    def check(self, file: str) -> None:
        """`FormatError` unless every rank has a coordinate of its own in its mesh, and every coordinate a rank."""
        taken: dict[int, set[tuple[int, ...] | None]] = {}
        for rank in self.ranks:
            taken.setdefault(self.base(rank), set()).add(self.coordinate(rank))
        count = math.prod(self.sizes)
        if len(self._positions) != len(self.ranks) or any(len(found) != count for found in taken.values()):
            raise FormatError(
                "a device mesh does not have one rank at each coordinate",
                file=file,
                found=f"{self}, ranks {', '.join(map(str, self.ranks[:8]))}{' ...' if len(self.ranks) > 8 else ''}",
                expected=f"{count} ranks, each once",
            )


def read_mesh(value: object, file: str) -> Mesh:
    """The mesh that a pickled DeviceMesh describes; `FormatError` for one that is impossible."""
    if not isinstance(value, torch_files.Opaque) or value.name != "DeviceMesh":
        raise FormatError("a DTensor has no device mesh", file=file, found=torch_files.brief(value))
    fields = value.fields()
    names = fields.get("_mesh_dim_names", fields.get("mesh_dim_names")) or ()
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise _impossible(file, f"names {torch_files.brief(names)}")
    stored = fields.get("mesh", fields.get("_mesh"))
    if isinstance(stored, StoredTensor):
        ranks = _values(stored, file)
        steps = lazy.contiguous_strides(stored.shape)
        leaves: list[tuple[Leaf, ...]] = [((size, step),) for size, step in zip(stored.shape, steps, strict=True)]
    else:
        ranks = _rank_map(fields, file)
        leaves = list(_dimensions(fields.get("_layout"), file))
    if names and len(names) != len(leaves):
        raise _impossible(file, f"{len(names)} names for {len(leaves)} dimensions")
    return Mesh(ranks, tuple(leaves), tuple(names))


def _rank_map(fields: dict[str, Any], file: str) -> tuple[int, ...]:
    held = fields.get("_rank_map")
    if isinstance(held, StoredTensor):
        return _values(held, file)
    flat = fields.get("_flatten_rank_map")
    if not isinstance(flat, tuple | list) or not all(type(rank) is int and rank >= 0 for rank in flat):
        raise _impossible(file, f"ranks {torch_files.brief(flat)}")
    return tuple(flat)


def _dimensions(layout: object, file: str) -> Iterator[tuple[Leaf, ...]]:
    if not isinstance(layout, torch_files.Opaque):
        raise _impossible(file, f"layout {torch_files.brief(layout)}")
    fields = layout.fields()
    axes = fields.get("axes")
    if axes is None:  # before torch 2.13: one layout, whose sizes and strides are nested where dimensions are joined
        pairs = list(zip(_tuple(fields.get("shape")), _tuple(fields.get("stride")), strict=False))
    elif isinstance(axes, tuple | list) and all(isinstance(axis, torch_files.Opaque) for axis in axes):
        pairs = [(axis.fields().get("shape"), axis.fields().get("stride")) for axis in axes]
    else:
        raise _impossible(file, f"axes {torch_files.brief(axes)}")
    for size, stride in pairs:
        yield tuple(_leaves(size, stride, file))


def _tuple(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def _leaves(size: object, stride: object, file: str) -> Iterator[Leaf]:
    if isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride):
        for inner, step in zip(size, stride, strict=True):
            yield from _leaves(inner, step, file)
    elif type(size) is int and type(stride) is int and 1 <= size <= _MOST_RANKS and 1 <= stride <= _MOST_RANKS:
        yield size, stride
    else:
        raise _impossible(file, f"size {torch_files.brief(size)}, stride {torch_files.brief(stride)}")


def _values(stored: StoredTensor, file: str) -> tuple[int, ...]:
    """The ranks in a small tensor of whole numbers."""
    if stored.dtype.name not in ("int32", "int64") or not 0 < stored.elements <= _MOST_RANKS:
        raise _impossible(file, f"{stored.dtype} {stored.shape}")
    if stored.strides != lazy.contiguous_strides(stored.shape):
        raise _impossible(file, f"strides {stored.strides} of shape {stored.shape}")
    data = disk.read_range(stored.file, stored.offset, stored.elements * stored.dtype.size)
    ranks = tuple(int(rank) for rank in np.frombuffer(data, stored.dtype.numpy))
    if min(ranks) < 0:
        raise _impossible(file, f"rank {min(ranks)}")
    return ranks


def _impossible(file: str, found: str) -> FormatError:
    return FormatError("a device mesh is impossible", file=file, found=found)
