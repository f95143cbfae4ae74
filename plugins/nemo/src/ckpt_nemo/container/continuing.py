"""What a `.ckpt` of NeMo 1 holds for a run to go on: the optimizer as Apex' FusedAdam keeps it, the schedule, and the counters of Lightning's loops."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import TargetBuilder, dtypes, errors, layouts, ledgers, reading, torch_files
from ckpt_megatron.sdk import lightning, masters
from ckpt_nemo.container.optimizer import Undecayed

_DROP = "convert the weights alone, with --training-state drop"
Path = tuple[str | int, ...]


def step_name(training: reading.Training) -> str:
    """The name of a checkpoint, out of which NeMo takes the consumed samples. What ends in -last is found by `resume_if_exists`."""
    return f"step={lightning.iterations(training)}-consumed_samples={training.consumed_samples or 0}.0-last"


def unsaid(training: reading.Training) -> list[ledgers.Loss]:
    """What the name can't say."""
    if training.consumed_samples is not None:
        return []
    why = "NeMo takes them out of the file's name, and the source does not count them: the data begins anew"
    return [ledgers.Loss("assumed", "0 consumed samples", why)]


class Groups:
    """The groups of an optimizer, as NeMo divides the parameters of a model. `undecayed` says which are in the second."""

    def __init__(self, builder: TargetBuilder, undecayed: Undecayed, drops_empty: bool = False) -> None:
        training = builder.training
        assert training is not None
        if training.frozen:
            raise errors.NotCarried(
                "NeMo steps every parameter of a model, and the source does not train some",
                found=f"{training.frozen[0]}, and {len(training.frozen)} in all",
                fix=_DROP,
            )
        if training.optimizer != reading.ADAMW and any(group.weight_decay for group in training.groups):
            raise errors.NotCarried(
                "the source adds weight decay to the gradients (L2), and NeMo's fused_adam decays the weights (AdamW)",
                fix=_DROP,
            )
        self.undecayed, self.drops_empty = undecayed, drops_empty
        names: list[dict[str, None]] = [{}, {}]
        for native in builder.natives().values():
            if not native.row.copy:
                into = names[undecayed(native.name, len(native.shape))]
                into |= dict.fromkeys(piece.parameter for piece in native.pieces)
        self.groups, losses = reading.regrouped(training, [list(of) for of in names], [None, 0.0])
        self.losses = [*losses, *reading.assumed_of(training, self.groups)]
        builder.training = replace(training, groups=tuple(group for group in self.groups if group.parameters))
        self.step = training.step

    def listed(self) -> list[dict[str, Any]]:
        """The groups without their parameters, as distributed checkpoints have them. Since 2.0, NeMo makes none without parameters."""
        bodies = zip(self.bodies(None), self.groups, strict=True)
        return [body for body, group in bodies if group.parameters or not self.drops_empty]

    def bodies(self, numbers: Sequence[list[int]] | None) -> list[dict[str, Any]]:
        """The groups as they are saved; `numbers` are the parameters of each, where they are listed."""
        found = [
            {
                "lr": group.lr,
                "bias_correction": True,
                "betas": list(group.betas),
                "eps": group.eps,
                "weight_decay": group.weight_decay,
                "initial_lr": group.lr if group.initial_lr is None else group.initial_lr,
                "step": self.step,
            }
            for group in self.groups
        ]
        return found if numbers is None else [body | {"params": of} for body, of in zip(found, numbers, strict=True)]


def optimizer_of_rank(
    builder: TargetBuilder, groups: Groups, stages: Sequence[Mapping[str, layouts.Native]], apart: Collection[str] = ()
) -> tuple[Any, dict[Path, layouts.Native]]:
    """The optimizer of a rank whose `stages` have these tensors by stored name, and the place of each of its tensors in it.

    `apart` are second names of modules that have another, by which the optimizer does not know them.
    """
    members: list[list[layouts.Native]] = [[], []]
    for stage in stages:
        for name, native in stage.items():
            if name not in apart:
                members[groups.undecayed(native.name, len(native.shape))].append(native)
    places: dict[Path, layouts.Native] = {}
    numbers: list[list[int]] = [[], []]
    states: dict[int, dict[str, torch_files.TensorSpec]] = {}
    own = builder.training is not None and builder.training.own_masters
    inside: Path = ("optimizer",) if own else ()
    kept: list[list[torch_files.TensorSpec]] = [[], []]
    for group, natives in enumerate(members):
        for native in natives:
            number = len(states)
            numbers[group].append(number)
            spec = torch_files.TensorSpec(dtypes.FP32, native.shape)
            states[number] = dict.fromkeys(reading.MOMENTS, spec)
            for kind in reading.MOMENTS:
                places[*inside, "state", number, kind] = _of(builder, kind, native)
            if own and builder.dtype_of(native).size < dtypes.FP32.size:
                places[masters.KEY, group, len(kept[group])] = _of(builder, reading.MASTER, native)
                kept[group].append(spec)
    inner = {"state": states, "param_groups": groups.bodies(numbers)}
    return ({"optimizer": inner, masters.KEY: kept} if own else inner), places


def distributed_optimizer(builder: TargetBuilder, groups: Groups) -> Any:
    """What common.pt holds of an optimizer whose tensors lie by the keys of the weights."""
    inner = {"param_groups": groups.listed()}
    own = builder.training is not None and builder.training.own_masters
    return {"optimizer": inner, masters.KEY: [[] for _ in groups.listed()]} if own else inner


def distributed_kinds(builder: TargetBuilder) -> Iterator[tuple[str, reading.Kind]]:
    """What the keys of the tensors of an optimizer begin with, by kind."""
    if builder.training is not None:
        yield from ((f"optimizer.state.{kind}.", kind) for kind in reading.MOMENTS)
        if builder.training.own_masters:
            yield "optimizer.state.fp32_param.", reading.MASTER


def moment_of(builder: TargetBuilder, kind: reading.Kind, native: layouts.Native) -> layouts.Native:
    """The tensor that holds a kind of what a tensor of the weights, or a part of one, holds."""
    return _of(builder, kind, native)


def _of(builder: TargetBuilder, kind: reading.Kind, native: layouts.Native) -> layouts.Native:
    (found,) = builder.moments(kind, {native.name: native}).values()
    return found
