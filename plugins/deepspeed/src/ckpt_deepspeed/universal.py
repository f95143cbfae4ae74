"""Universal checkpoints: a folder of fp32 tensors per parameter, whatever ranks wrote them and whatever ranks load them.

    zero/NAME/fp32.pt     {"param": full tensor, "cat_dim": ...}, or the bare flat tensor (from ZeRO-3)
              exp_avg.pt exp_avg_sq.pt step.pt
    zero/optimizer_state.pt

Of a tied parameter's alias the file holds the rounded weight, not a master (DeepSpeed 0.19.8); it is not read or written.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ckpt_core.sdk import (
    FormatError,
    StoredTensor,
    TargetBuilder,
    dtypes,
    errors,
    layouts,
    ledgers,
    reading,
    torch_files,
)
from ckpt_deepspeed.files import FP32 as FP32_FILE
from ckpt_deepspeed.files import UNIVERSAL, Folder
from ckpt_deepspeed.flat import Flat, Kept, piece
from ckpt_deepspeed.zero import Shapes

PARAMETER = "param"
DS_VERSION = "0.19.8"
NEW_MOMENTS = ledgers.Loss(
    "assumed",
    "Adam moments",
    "zeros: the optimizer begins anew, from these weights; those of the source, if it has any, are not carried",
)
_MOMENTS = ("exp_avg.pt", "exp_avg_sq.pt")
STEP, OPTIMIZER_STATE = "step.pt", "optimizer_state.pt"
# The loader goes through its own parameter groups and these side by side, and loads nothing for those beyond.
_GROUPS = 64


def read_universal(folder: Folder, aliases: Collection[str], shapes: Shapes) -> dict[str, Kept]:
    """Every parameter but `aliases`; `shapes` are those of the tensors that are kept flat."""
    found: dict[str, Kept] = {}
    problems = errors.Problems(f"reading {folder.path}")
    for name, path in folder.universal.items():
        if name in aliases:
            continue
        content = torch_files.read_torch_file(path)
        stored = content.get(PARAMETER) if isinstance(content, dict) else content
        if not isinstance(stored, StoredTensor):
            problems.add(
                FormatError(
                    "the file holds no parameter",
                    file=path,
                    found=torch_files.brief(content),
                    expected=f"a tensor, or a dict with {PARAMETER!r}",
                )
            )
        elif isinstance(content, dict):
            found[name] = stored
        elif len(stored.shape) != 1:
            problems.add(FormatError("a bare tensor is not flat", file=path, found=f"shape {stored.shape}"))
        else:
            found[name] = Flat((piece(stored, 0, stored.elements),), shapes.get(name))
    problems.raise_any()
    return found


def add_nest(
    builder: TargetBuilder, path: str, value: object, known: Mapping[tuple, bytes] = MappingProxyType({})
) -> dict[tuple, int]:
    """A torch file of the target; returns where its tensors begin. `known` is the data of tensors that hold no weights."""
    file, offsets = torch_files.plan_nest(path, value)
    literals = (*file.literals, *((offsets[inside], data) for inside, data in known.items()))
    builder.files.append(replace(file, literals=literals))
    return offsets


def add_parameter(
    builder: TargetBuilder,
    folder: str,
    name: str,
    parts: Sequence[layouts.Native],
    *,
    flat: bool,
    beside: Mapping[str, object],
    rows: Mapping[str, layouts.Native],
    moments: bool,
    state: Mapping[reading.Kind, layouts.Native] = MappingProxyType({}),
    step: int = 0,
) -> None:
    """The files of one parameter: `parts` are its blocks of rows, most often one.

    `beside` is what stands beside it in the dict, and `rows` single rows of it that do, too. `state` are its moments after `step` updates; without them
    those that are written are zeros.
    """
    first = parts[0].shape  # a number of an activation has no axes, and no blocks of rows
    shape = (sum(part.shape[0] for part in parts), *first[1:]) if first else ()
    for file in (FP32_FILE, *(_MOMENTS if moments else ())):
        path = f"{folder}/{UNIVERSAL}/{name}/{file}"
        if flat:
            start = add_nest(builder, path, torch_files.TensorSpec(dtypes.FP32, (math.prod(shape),)))[()]
        else:
            extra = {key: torch_files.TensorSpec(dtypes.FP32, native.shape) for key, native in rows.items()}
            content = {**beside, **extra, PARAMETER: torch_files.TensorSpec(dtypes.FP32, shape)}
            offsets = add_nest(builder, path, content)
            start = offsets[(PARAMETER,)]
            for key, native in rows.items() if file == FP32_FILE else ():
                builder.place(native, path, offsets[(key,)], dtypes.FP32)
        held: Sequence[layouts.Native] = parts
        if file != FP32_FILE:
            moment = next((native for kind, native in state.items() if f"{kind}.pt" == file), None)
            held = () if moment is None else (moment,)  # zeros: an optimizer that begins anew
        for part in held:
            builder.place(part, path, start, dtypes.FP32)
            start += math.prod(part.shape) * dtypes.FP32.size
    if moments and not flat:
        # torch's AdamW asks for it
        path = f"{folder}/{UNIVERSAL}/{name}/{STEP}"
        file, _ = torch_files.plan_nest(path, torch_files.TensorSpec(dtypes.FP32, ()), {(): _bytes(step)})
        builder.files.append(file)


def add_optimizer_state(builder: TargetBuilder, folder: str) -> None:
    """What the loaders of 0.19.8 ask for besides parameters: the groups and the step of the builder's state, or of an optimizer before its first step."""
    training = builder.training
    groups: list[dict[str, Any]] = [{"params": [number]} for number in range(_GROUPS)]
    settings: dict[str, Any] = {}
    if training is not None:
        said = (
            reading.adam.said_by(group, [number], training.optimizer) for number, group in enumerate(training.groups)
        )
        groups = list(said)
        if len(groups) == 1:  # a program's own division in more groups changes nothing then
            groups += [{**groups[0], "params": []} for _ in range(_GROUPS - 1)]
        settings = {} if training.clip_grad is None else {"clip_grad": training.clip_grad}
    path = f"{folder}/{UNIVERSAL}/{OPTIMIZER_STATE}"
    value = {
        "ds_version": DS_VERSION,
        **settings,
        "param_groups": groups,
        "optimizer_state_dict": {
            "state": {0: {"step": torch_files.TensorSpec(dtypes.FP32, ())}},
            # ZeRO-3 gives what the first says to all of its groups, the weight decay too (zero/stage3.py, load_hp_checkpoint_state_...)
            "param_groups": groups[:1] if training is None else [group for group in groups if group["params"]],
        },
    }
    step = _bytes(0 if training is None else training.step)
    file, _ = torch_files.plan_nest(path, value, {("optimizer_state_dict", "state", 0, "step"): step})
    builder.files.append(file)


def _bytes(step: int) -> bytes:
    """A step as torch keeps it: a tensor of one float."""
    return struct.pack("<f", float(step))


def torch_size(shape: tuple[int, ...]) -> torch_files.Opaque:
    """A shape as DeepSpeed pickles it."""
    return torch_files.Opaque("torch", "Size", args=(shape,))
