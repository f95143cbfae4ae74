"""The part of a tensor that one rank holds: DTensors, and the ShardedTensors of FSDP1, as a pickle describes them.

    DTensor(..., state={_local_tensor: Tensor, _spec: DTensorSpec(mesh, placements, tensor_meta)})
    ShardedTensor(state=([Shard(tensor, ShardMetadata(shard_offsets, shard_sizes))], ShardedTensorMetadata(size), ...))

torch moved these classes more than once (`torch.distributed._tensor` until 2.5, `torch.distributed.tensor` since), so they are
known by their own names. Nothing here is believed: where a part lies follows from the mesh and the placements, and the tensor
that is stored must have the shape that follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, TypeGuard

from ckpt_core.sdk import FormatError, StoredTensor, dtypes, lazy, schema, torch_files
from ckpt_fsdp.mesh import Mesh, read_mesh

_MOST_DIMENSIONS = 64


@schema.dataclass(frozen=True)
class Part:
    """What one rank holds of a tensor of `shape`.

    `copy` tells the copies of the tensor apart: parts of one copy are put together, and copies must be equal. `said` is what
    every rank must say alike.
    """

    shape: tuple[int, ...]
    dtype: dtypes.DType
    shards: tuple[lazy.Shard, ...]
    copy: tuple[object, ...]
    said: str


@schema.dataclass
class Parts:
    """The parts in the files of all ranks. `world` is the number of ranks; meshes are checked once."""

    world: int
    _meshes: set[Mesh] = field(default_factory=set)
    _last: tuple[object, Mesh] | None = None

    def of(self, name: str, value: object, rank: int, file: str) -> Part:
        """The part that is stored under `name` in the file of `rank`; `FormatError` for one that can't be."""
        if isinstance(value, StoredTensor):  # a buffer, or a parameter that FSDP leaves whole: every rank has it
            whole = lazy.Shard((0,) * len(value.shape), value)
            return Part(value.shape, value.dtype, (whole,), (rank,), f"a whole {value.dtype} tensor of {value.shape}")
        try:
            if isinstance(value, torch_files.Opaque) and value.name == "DTensor":
                return self._dtensor(value.fields(), rank, file)
            if isinstance(value, torch_files.Opaque) and value.name == "ShardedTensor":
                return _sharded(value.state, rank, self.world, file)
        except FormatError as problem:
            raise _about(name, problem) from None
        raise FormatError(
            f"{name!r} is neither a tensor nor a part of one",
            file=file,
            found=torch_files.brief(value),
            expected="a DTensor",
        )

    def _dtensor(self, fields: Mapping[str, Any], rank: int, file: str) -> Part:
        local, spec = fields.get("_local_tensor"), fields.get("_spec")
        if not isinstance(spec, torch_files.Opaque) or spec.name != "DTensorSpec":
            raise FormatError("a DTensor has no spec", file=file, found=torch_files.brief(spec))
        if not isinstance(local, StoredTensor):
            raise FormatError(
                "the local part of a DTensor is not a dense tensor", file=file, found=torch_files.brief(local)
            )
        said = spec.fields()
        shape, dtype = _meta(said.get("tensor_meta"), file)
        if fields.get("2") != shape or local.dtype != dtype:
            raise FormatError(
                "a DTensor says two things of itself",
                file=file,
                found=f"{local.dtype} of {torch_files.brief(fields.get('2'))}",
                expected=f"{dtype} of {shape}, as in its spec",
            )
        mesh = self._mesh(said.get("mesh"), rank, file)
        placements = _placements(said.get("placements"), mesh, len(shape), file)
        coordinate = mesh.coordinate(rank)
        assert coordinate is not None
        origin, size = _box(shape, mesh, coordinate, _order(placements, said.get("shard_order"), mesh, file))
        # An empty part is stored as an empty tensor of whatever shape.
        empty = 0 in size and not local.elements
        if local.shape != size and not empty:
            raise FormatError(
                "the local part of a DTensor is not of the size that its mesh and placements give",
                file=file,
                found=f"{local.shape}",
                expected=f"{size} at {origin} of {shape}: rank {rank} of {mesh}, placed {_words(placements)}",
            )
        replicas = tuple(place for place, how in zip(coordinate, placements, strict=True) if how.dim is None)
        shards = () if empty else (lazy.Shard(origin, local),)
        return Part(
            shape,
            dtype,
            shards,
            # Until torch 2.8 a slice of a mesh kept its own ranks alone: other slices have other first ranks.
            (mesh.ranks[0], mesh.base(rank), *replicas),
            f"{dtype} {shape} over {mesh}, placed {_words(placements)}",
        )

    def _mesh(self, value: object, rank: int, file: str) -> Mesh:
        if self._last is not None and self._last[0] is value:  # the tensors of a file share one object
            return self._last[1]
        mesh = read_mesh(value, file)
        coordinate = mesh.coordinate(rank)
        if max(mesh.ranks) >= self.world or len(mesh.ranks) > self.world or coordinate is None:
            raise FormatError(
                "a device mesh is not of this world",
                file=file,
                found=f"{mesh} of ranks up to {max(mesh.ranks)}" + ("" if coordinate else f", without rank {rank}"),
                expected=f"ranks 0 to {self.world - 1}, as the names of the files say",
                fix="the file is of another run, or of another rank: copy the files of one step again",
            )
        if mesh not in self._meshes:
            mesh.check(file)
            self._meshes.add(mesh)
        fields = value.fields() if isinstance(value, torch_files.Opaque) else {}
        own = fields.get("_rank", rank), fields.get("_coordinate_on_dim", coordinate)
        if own[0] not in (None, rank) or (own[1] is not None and _listed(own[1]) != list(coordinate)):
            raise FormatError(
                "the file was written by another rank than its name says",
                file=file,
                found=f"rank {torch_files.brief(own[0])} at {own[1] if isinstance(own[1], tuple) else torch_files.brief(own[1])}",
                expected=f"rank {rank} at {coordinate}",
                fix="give the files their own names back",
            )
        self._last = value, mesh
        return mesh


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value


@schema.dataclass(frozen=True)
class _Placement:
    """`dim` is None for a replica; `factor` is that of a `_StridedShard`: the ranks that cut the dimension before it."""

    dim: int | None
    factor: int | None = None

    def __str__(self) -> str:
        if self.dim is None:
            return "Replicate"
        return f"Shard({self.dim})" if self.factor is None else f"_StridedShard({self.dim}, {self.factor})"


def _placements(value: object, mesh: Mesh, dimensions: int, file: str) -> list[_Placement]:
    if not isinstance(value, tuple | list) or len(value) != len(mesh.sizes):
        raise FormatError(
            "a DTensor has not one placement for each dimension of its mesh",
            file=file,
            found=f"{len(value)} placements" if isinstance(value, tuple | list) else torch_files.brief(value),
            expected=f"{len(mesh.sizes)}: {mesh}",
        )
    return [_placement(one, dimensions, file) for one in value]


def _placement(value: object, dimensions: int, file: str) -> _Placement:
    kind = value.name if isinstance(value, torch_files.Opaque) else ""
    fields = value.fields() if isinstance(value, torch_files.Opaque) else {}
    if kind == "Replicate":
        return _Placement(None)
    dim, factor = fields.get("dim", fields.get("0")), fields.get("split_factor")
    if kind in ("Shard", "_StridedShard") and type(dim) is int and 0 <= dim < dimensions:
        if kind == "Shard":
            return _Placement(dim)
        if type(factor) is int and factor >= 1:
            return _Placement(dim, factor)
    if kind in ("Partial", "_Partial"):
        raise FormatError(
            "a DTensor holds a partial sum",
            file=file,
            found="Partial",
            fix="save the state dict of the model, not activations",
        )
    raise FormatError(
        "a placement of a DTensor is not one that is read",
        file=file,
        found=f"{kind or torch_files.brief(value)} of dimension {torch_files.brief(dim)}",
        expected=f"Replicate, or Shard of a dimension below {dimensions}",
    )


def _order(placements: Sequence[_Placement], stated: object, mesh: Mesh, file: str) -> dict[int, list[int]]:
    """By the tensor's dimension: the dimensions of the mesh that cut it, one after the other.

    FSDP on a tensor that tensor parallelism cut before is `(_StridedShard(0, 2), Shard(0))` on a mesh (dp, tp): first tp cuts, then dp.
    """
    order: dict[int, list[int]] = {}
    last: dict[int, int] = {}
    for number, how in enumerate(placements):
        if how.dim is not None and how.factor is not None:
            if how.dim in last or how.dim in order:
                raise _unread_order(placements, file)
            last[how.dim] = number
        elif how.dim is not None:
            order.setdefault(how.dim, []).append(number)
    for dim, number in last.items():
        before = 1
        for other in order.get(dim, ()):
            before *= mesh.sizes[other]
        if placements[number].factor != before:
            raise _unread_order(placements, file)
        order.setdefault(dim, []).append(number)
    for entry in stated if isinstance(stated, tuple | list) else ():  # since torch 2.10
        fields = entry.fields() if isinstance(entry, torch_files.Opaque) else {}
        cut, along = fields.get("tensor_dim", fields.get("0")), fields.get("mesh_dims", fields.get("1"))
        if type(cut) is not int or not isinstance(along, tuple | list) or sorted(order.get(cut, ())) != _sorted(along):
            raise _unread_order(placements, file)
        if cut in last and list(along) != order[cut]:
            raise _unread_order(placements, file)
        order[cut] = list(along)
    return order


def _sorted(values: Sequence[Any]) -> list[Any]:
    return sorted(values) if all(type(value) is int for value in values) else [None]


def _unread_order(placements: Sequence[_Placement], file: str) -> FormatError:
    return FormatError(
        "the order in which ranks cut a dimension of a DTensor is not one that is read",
        file=file,
        found=_words(placements),
        fix="save a full state dict (get_model_state_dict with full_state_dict), or with torch.distributed.checkpoint",
    )


def _box(
    shape: tuple[int, ...], mesh: Mesh, coordinate: tuple[int, ...], order: Mapping[int, Sequence[int]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the part of a coordinate begins, and its size. Every cut is torch.chunk: the last ranks have less, or nothing."""
    origin, size = [0] * len(shape), list(shape)
    for dim, along in order.items():
        for number in along:
            each = -(-size[dim] // mesh.sizes[number])
            start = min(coordinate[number] * each, size[dim])
            origin[dim], size[dim] = origin[dim] + start, min(each, size[dim] - start)
    return tuple(origin), tuple(size)


def _words(placements: Sequence[_Placement]) -> str:
    return ", ".join(map(str, placements))


def _meta(value: object, file: str) -> tuple[tuple[int, ...], dtypes.DType]:
    fields = value.fields() if isinstance(value, torch_files.Opaque) else {}
    shape, dtype = fields.get("shape", fields.get("0")), fields.get("dtype", fields.get("2"))
    if not _is_shape(shape) or not isinstance(dtype, dtypes.DType):
        raise FormatError(
            "a DTensor has no shape and dtype",
            file=file,
            found=f"{torch_files.brief(shape)}, {torch_files.brief(dtype)}",
        )
    return tuple(shape), dtype


def _is_shape(value: object) -> TypeGuard[tuple[int, ...] | list[int]]:
    return (
        isinstance(value, tuple | list)
        and len(value) <= _MOST_DIMENSIONS
        and all(type(size) is int and 0 <= size < 1 << 62 for size in value)
    )


def _sharded(state: object, rank: int, world: int, file: str) -> Part:
    """A ShardedTensor: (local shards, metadata, process group, sharding spec, rrefs), as its `__getstate__` gives it."""
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[0], list):
        raise FormatError("a ShardedTensor is not as torch saves it", file=file, found=torch_files.brief(state))
    described, group = ({} if not isinstance(one, torch_files.Opaque) else one.fields() for one in state[1:3])
    own = group.get("global_rank", rank), group.get("global_world_size", world)
    if own != (rank, world):
        raise FormatError(
            "the file was written by another rank than its name says",
            file=file,
            found=f"rank {torch_files.brief(own[0])} of {torch_files.brief(own[1])}",
            expected=f"rank {rank} of {world}",
            fix="give the files their own names back",
        )
    shape, shards, held = described.get("size"), [], set()
    if not _is_shape(shape):
        raise FormatError("a ShardedTensor has no shape", file=file, found=torch_files.brief(shape))
    for shard in state[0]:
        fields = shard.fields() if isinstance(shard, torch_files.Opaque) else {}
        tensor, place = fields.get("tensor"), fields.get("metadata")
        box = place.fields() if isinstance(place, torch_files.Opaque) else {}
        origin, size = box.get("shard_offsets"), box.get("shard_sizes")
        if not isinstance(tensor, StoredTensor) or not _is_shape(origin) or not _is_shape(size):
            raise FormatError("a shard of a ShardedTensor is damaged", file=file, found=torch_files.brief(tensor))
        if tensor.shape != tuple(size) or len(origin) != len(shape):
            raise FormatError(
                "a shard is not of the size that its metadata says",
                file=file,
                found=f"{tensor.shape}",
                expected=f"{tuple(size)}",
            )
        held.add(tensor.dtype)
        if tensor.elements:
            shards.append(lazy.Shard(tuple(origin), tensor))
    properties = described.get("tensor_properties")
    dtype = _dtype_of(properties) or next(iter(held), None)
    if dtype is None or not held <= {dtype}:
        raise FormatError(
            "the dtype of a ShardedTensor is not clear", file=file, found=", ".join(map(str, held)) or "none"
        )
    return Part(tuple(shape), dtype, tuple(shards), (), f"{dtype} {tuple(shape)} in shards")


def _dtype_of(properties: object) -> dtypes.DType | None:
    """The dtype of TensorProperties, which pickles itself as a tuple that begins with it."""
    state = properties.state if isinstance(properties, torch_files.Opaque) else None
    first = state[0] if isinstance(state, tuple) and state else state.get("dtype") if isinstance(state, dict) else None
    return first if isinstance(first, dtypes.DType) else None


def _about(name: str, problem: FormatError) -> FormatError:
    return FormatError(
        f"{name}: {problem.problem}", file=problem.file, found=problem.found, expected=problem.expected, fix=problem.fix
    )
