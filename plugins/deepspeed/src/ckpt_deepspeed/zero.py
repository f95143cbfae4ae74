"""fp32 master weights out of ZeRO's optimizer files.

ZeRO-1 and 2, and the BF16_Optimizer of pipeline models    each parameter group is one flat tensor, cut into a part per
    (`single_partition_of_fp32_groups`)                    data parallel rank; `param_shapes` lists what lies in it
ZeRO-3 (`fp32_flat_groups`)                                each parameter is cut by itself, the last part padded, and
                                                           a rank's parts lie one after the other in its subgroups

`param_slice_mappings` says the same as `param_shapes`, and is used only where that is None (DeepSpeed since 0.14, bf16
with stage 0, whose optimizer names no zero_stage): with `round_robin_gradients` its entries are in an order that the tensors are not in (0.19.8).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ckpt_core.sdk import CkptError, FormatError, StoredTensor, disk, dtypes, schema, torch_files
from ckpt_deepspeed.contents import enter_partition
from ckpt_deepspeed.files import Folder, ranks, read_states, section
from ckpt_deepspeed.flat import Flat, Kept, piece, pieces_of

if TYPE_CHECKING:
    import numpy as np

_PARTITIONED, _FLAT_GROUPS = "single_partition_of_fp32_groups", "fp32_flat_groups"
_STAGES = {_PARTITIONED: (1, 2), _FLAT_GROUPS: (3,)}
_SAMPLE = 64  # elements

Shapes = dict[str, tuple[int, ...]]


@schema.dataclass(frozen=True)
class Partition:
    """The optimizer state of one data parallel rank."""

    path: str
    state: Mapping[str, Any]

    def tensors(self, key: str) -> list[StoredTensor]:
        """The flat tensors under a key, one per group."""
        found = self.state.get(key)
        if not isinstance(found, list) or not all(
            isinstance(one, StoredTensor) and len(one.shape) == 1 for one in found
        ):
            raise FormatError(f"{key} is not a list of flat tensors", file=self.path, found=torch_files.brief(found))
        return found

    def holding(self, tensors: Sequence[StoredTensor]) -> Partition:
        """The partition with other flat tensors, one per group, in the place of its masters."""
        key = _FLAT_GROUPS if _FLAT_GROUPS in self.state else _PARTITIONED
        return Partition(self.path, {**self.state, key: list(tensors)})


@schema.dataclass(frozen=True)
class Reading:
    """One way to find the masters in the optimizer files: `by` says which."""

    by: str
    masters: dict[str, Flat]


def partitions(folder: Folder, mp: int, models: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Partition]:
    """The optimizer states of all data parallel ranks of one model parallel rank, in order."""
    count = ranks(
        {dp for rank, dp in folder.optimizers if rank == mp},
        f"the optimizer of model parallel rank {mp}, data parallel rank",
        folder.path,
    )
    found = []
    for dp in range(count):
        path = folder.optimizers[mp, dp]
        content = read_states(path)
        found.append(Partition(path, section(content, "optimizer_state_dict", path)))
        enter_partition(folder.ledger, path, content, found[-1].state)
        counts = found[-1].state.get("partition_count", count)
        if any(said != count for said in (counts if isinstance(counts, list) else [counts])):
            raise FormatError(
                "the optimizer was divided over another number of ranks",
                file=path,
                found=torch_files.brief(counts),
                expected=f"{count} files",
            )
    for path, model in models:
        said = model.get("dp_world_size", count)
        if said != count:
            raise FormatError(
                f"dp_world_size is {torch_files.brief(said)}",
                file=path,
                expected=f"{count}, the number of optimizer files",
                fix="files are missing, or stale",
            )
    _check_stages(folder, found, models)
    return found


def _check_stages(folder: Folder, parts: Sequence[Partition], models: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raises where the stage that a file names is not that of the tensors in it, of its name, or of another file."""
    for part in parts:
        kept = {key: stages for key, stages in _STAGES.items() if key in part.state}
        said = stage_of(part.state.get("zero_stage"))
        if said is not None and kept and not any(said in stages for stages in kept.values()):
            raise FormatError(
                f"zero_stage is {said}, and the masters are kept as another stage keeps them",
                file=part.path,
                found=", ".join(kept),
                expected=" or ".join(f"{key} (stage {stages[0]})" for key, stages in _STAGES.items() if said in stages)
                or "stage 1, 2 or 3",
            )
        if kept and (_FLAT_GROUPS in kept) != bool(folder.partitioned):
            raise FormatError(
                "the masters are of another stage than the model states, of which only ZeRO-3 has a file per rank",
                file=part.path,
                found=f"{', '.join(kept)} beside {os.path.basename(models[0][0])}",
                fix="remove the files of the other run, or use --weights model",
            )
        for path, model in models:
            configured = section(section(model, "ds_config", path), "zero_optimization", path).get("stage")
            if said is not None and stage_of(configured) not in (None, said):
                raise FormatError(
                    f"zero_stage is {said} in the optimizer's file, and {stage_of(configured)} in the model's config",
                    file=part.path,
                    found=f"ds_config.zero_optimization.stage = {stage_of(configured)} in {path}",
                    fix="the files are of two runs; use --weights model",
                )


def stage_of(value: object) -> int | None:
    """A ZeRO stage, as a number or as DeepSpeed's enum; None where no number is said."""
    if isinstance(value, torch_files.Opaque) and value.args and len(value.args) == 1:
        (value,) = value.args
    return value if type(value) is int else None


def readings(model: Mapping[str, Any], path: str, parts: Sequence[Partition]) -> list[Reading]:
    """The ways to find the masters, the best first. `model` are the model states in the file at `path`."""
    stage = stage_of(parts[0].state.get("zero_stage"))
    if "param_shapes" not in model or (model["param_shapes"] is None and stage):
        raise FormatError(
            "param_shapes is missing, which DeepSpeed saves with every stage of ZeRO",
            file=path,
            found="no such key" if "param_shapes" not in model else f"None, beside zero_stage {stage}",
            expected="the shapes of the parameters, by name and in order",
            fix="use --weights model",
        )
    if _FLAT_GROUPS in parts[0].state:
        return [Reading("param_shapes, ZeRO-3", _partitioned_parameters(param_shapes(model, path), path, parts))]
    groups = [part.tensors(_PARTITIONED) for part in parts]
    if len({len(group) for group in groups}) > 1:
        raise FormatError(
            "the ranks have different numbers of parameter groups",
            file=parts[0].path,
            found=", ".join(str(len(group)) for group in groups),
        )
    found = []
    if model.get("param_shapes") is not None:
        found.append(Reading("param_shapes", _partitioned_groups(param_shapes(model, path), path, parts, groups)))
    if all(part.state.get("param_slice_mappings") is not None for part in parts):
        found.append(Reading("param_slice_mappings", _slices(parts, groups)))
    if not found:
        raise FormatError(
            "nothing says which parameters the fp32 masters are of",
            file=path,
            expected="param_shapes, or param_slice_mappings",
        )
    return found


def param_shapes(model: Mapping[str, Any], path: str) -> list[Shapes]:
    """`param_shapes`: per parameter group, the shapes by name in order."""
    given = model.get("param_shapes")
    groups = [given] if isinstance(given, dict) else given
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise FormatError("param_shapes is not a list of groups", file=path, found=torch_files.brief(given))
    return [
        {str(name): shape_of(shape, f"param_shapes[{name!r}]", path) for name, shape in group.items()}
        for group in groups
    ]


def shape_of(value: object, what: str, path: str) -> tuple[int, ...]:
    """A stored torch.Size."""
    if not isinstance(value, tuple | list) or not all(type(size) is int and 0 <= size < 1 << 40 for size in value):
        raise FormatError(f"{what} is not a shape", file=path, found=torch_files.brief(value))
    return tuple(value)


def _partitioned_groups(
    shapes: list[Shapes], path: str, parts: Sequence[Partition], groups: Sequence[Sequence[StoredTensor]]
) -> dict[str, Flat]:
    if len(shapes) != len(groups[0]):
        raise FormatError(
            "param_shapes has another number of parameter groups than the optimizer",
            file=path,
            found=len(shapes),
            expected=len(groups[0]),
        )
    paddings = parts[0].state.get("param_alignment_paddings")
    found: dict[str, Flat] = {}
    align = 2 * len(parts)
    for number, group in enumerate(shapes):
        sequence = [rank[number] for rank in groups]
        total, position = sum(stored.elements for stored in sequence), 0
        for index, (name, shape) in enumerate(group.items()):
            found[name] = Flat(pieces_of(sequence, position, math.prod(shape)), shape)
            position += math.prod(shape) + _padding(paddings, number, index)
        # The end is padded so that every rank's part begins at an even number of elements, and may have been cut off.
        if -(-position // align) != -(-total // align):
            raise FormatError(
                f"parameter group {number} does not have the elements of its parameters",
                file=parts[0].path,
                found=f"{total} elements over {len(parts)} ranks",
                expected=f"{position}, by param_shapes in {path}",
            )
    return found


def _padding(paddings: object, group: int, index: int) -> int:
    try:
        count = paddings[group][index]  # type: ignore[index]
    except (IndexError, KeyError, TypeError):
        return 0
    return count if type(count) is int and count >= 0 else 0


def _slices(parts: Sequence[Partition], groups: Sequence[Sequence[StoredTensor]]) -> dict[str, Flat]:
    pieces: dict[str, list[StoredTensor]] = {}
    for part, tensors in zip(parts, groups, strict=True):
        mappings = part.state["param_slice_mappings"]
        if (
            not isinstance(mappings, list)
            or len(mappings) != len(tensors)
            or not all(isinstance(one, dict) for one in mappings)
        ):
            raise FormatError(
                "param_slice_mappings is not one dict per parameter group",
                file=part.path,
                found=torch_files.brief(mappings),
            )
        for mapping, stored in zip(mappings, tensors, strict=True):
            for name, address in mapping.items():
                fields = address.fields() if isinstance(address, torch_files.Opaque) else {}
                start, count = fields.get("start"), fields.get("numel")
                if (
                    type(start) is not int
                    or type(count) is not int
                    or not 0 <= start <= start + count <= stored.elements
                ):
                    raise FormatError(
                        f"param_slice_mappings[{name!r}] is not a range of its group",
                        file=part.path,
                        found=f"{torch_files.brief(start)} + {torch_files.brief(count)} of {stored.elements}",
                    )
                pieces.setdefault(str(name), []).append(piece(stored, start, count))
    return {name: Flat(tuple(found)) for name, found in pieces.items()}


def _partitioned_parameters(shapes: list[Shapes], path: str, parts: Sequence[Partition]) -> dict[str, Flat]:
    sequences = [part.tensors(_FLAT_GROUPS) for part in parts]
    found: dict[str, Flat] = {}
    offset = 0
    for group in shapes:
        for name, shape in group.items():
            size = -(-math.prod(shape) // len(parts))
            found[name] = Flat(tuple(_shares(sequences, offset, size, math.prod(shape))), shape)
            offset += size
    for part, sequence in zip(parts, sequences, strict=True):
        total = sum(stored.elements for stored in sequence)
        if total != offset:
            raise FormatError(
                "the rank's partition does not have the elements of the parameters",
                file=part.path,
                found=total,
                expected=f"{offset}, by param_shapes in {path}",
            )
    return found


def _shares(
    sequences: Sequence[Sequence[StoredTensor]], offset: int, size: int, elements: int
) -> Iterator[StoredTensor]:
    """A parameter's part on every rank, `size` elements from `offset` of the rank's sequence, without the padding."""
    for rank, sequence in enumerate(sequences):
        yield from pieces_of(sequence, offset, max(0, min(size, elements - rank * size)))


def frozen(models: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Kept]:
    """The parameters without gradients, which no optimizer has; `models` are the model states of all ranks that have their own."""
    path, first = models[0]
    shapes = {
        str(name): shape_of(shape, f"frozen_param_shapes[{name!r}]", path)
        for name, shape in section(first, "frozen_param_shapes", path).items()
    }
    found: dict[str, Kept] = {}
    for name, shape in shapes.items():
        fragments = [section(model, "frozen_param_fragments", file).get(name) for file, model in models]
        if not all(isinstance(one, StoredTensor) for one in fragments):
            raise FormatError(
                f"the frozen parameter {name!r} is missing", file=path, expected="frozen_param_fragments of every rank"
            )
        if len(models) == 1 and fragments[0].shape == shape:
            found[name] = fragments[0]
            continue
        size = -(-math.prod(shape) // len(models))
        found[name] = Flat(tuple(_shares([[one] for one in fragments], 0, size, math.prod(shape))), shape)
    return found


# --- which reading is right ------------------------------------------------------------------------------------------


def rounds(master: Flat, stored: StoredTensor) -> bool:
    """Whether a master's first and last elements round to those of the stored weight, which it was rounded to."""
    import numpy as np

    count = min(_SAMPLE, master.elements)
    if master.elements != stored.elements or not count or not _contiguous(stored):
        return master.elements == stored.elements
    flat = piece(stored, 0, stored.elements)
    for start in {0, stored.elements - count}:
        values = np.concatenate(
            [dtypes.decode(_raw(part), part.dtype) for part in pieces_of(master.pieces, start, count)]
        )
        if not np.array_equal(
            dtypes.encode(values, stored.dtype).view(np.uint8), _raw(piece(flat, start, count)).view(np.uint8)
        ):
            return False
    return True


def _contiguous(stored: StoredTensor) -> bool:
    return stored.strides == StoredTensor.contiguous(stored.file, stored.dtype, stored.shape, 0).strides


def _raw(stored: StoredTensor) -> np.ndarray:
    import numpy as np

    return np.frombuffer(
        disk.read_range(stored.file, stored.offset, stored.elements * stored.dtype.size), stored.dtype.numpy
    )


def fitting(found: Sequence[Reading], weights: Mapping[str, StoredTensor], path: str) -> Reading:
    """The first reading whose masters round to the weights stored beside them; raises if none does.

    Without weights (ZeRO-3 stores none) the first reading stands.
    """
    wrong: list[str] = []
    for reading in found:
        wrong = [
            name
            for name, stored in weights.items()
            if name in reading.masters and not rounds(reading.masters[name], stored)
        ]
        if not wrong:
            return reading
    raise CkptError(
        "the fp32 masters do not round to the weights that are stored beside them",
        file=path,
        found=", ".join(repr(name) for name in wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""),
        expected="masters that the stored weights were rounded from",
        fix="use --weights model: the weights were changed after they were saved, or the optimizer files belong to another step",
    )
