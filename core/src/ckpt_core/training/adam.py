"""What the optimizers of torch and of those who follow it keep: states of single parameters, and groups of hyper-parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ckpt_core.errors import FormatError, NotCarried
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.tensors.assembly import of_shards, whole
from ckpt_core.training.moments import MOMENTS, Kind
from ckpt_core.training.state import ADAM, ADAMW, Group

if TYPE_CHECKING:
    from ckpt_core.tensors.source import SourceFiles

_DROP = "leave it behind with --training-state drop"
_STEP = "step"
# What groups of Adam say at values that change nothing of its steps, and what they must not say: torch's, those of Apex, and of the old transformers.
_INERT = {"amsgrad": False, "maximize": False, "bias_correction": True, "correct_bias": True}


def group_of(said: Mapping[str, Any], names: Iterable[str], file: str) -> Group:
    """The group of parameters `names` by the hyper-parameters of torch's AdamW, Apex' or Transformer Engine's FusedAdam.

    `NotCarried` for a variant of Adam with other steps, `FormatError` for what is not a number.
    """
    for key, usual in _INERT.items():
        if said.get(key, usual) not in (usual, None):
            raise NotCarried(
                f"the optimizer steps with {key}={said[key]!r:.40}, which is another one than Adam",
                file=file,
                fix=_DROP,
            )
    if (
        "differentiable" in said and "amsgrad" not in said
    ):  # torch's RAdam, which keeps what Adam keeps and steps otherwise
        raise NotCarried(
            "the optimizer is not Adam: a group of torch's says amsgrad",
            file=file,
            found=", ".join(map(str, said)),
            fix=_DROP,
        )
    betas = said.get("betas")
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise NotCarried(
            "the optimizer is not Adam: its groups have no two betas",
            file=file,
            found=", ".join(map(str, said)),
            fix=_DROP,
        )
    initial = said.get("initial_lr")
    return Group(
        tuple(names),
        number(said.get("lr"), "lr", file),
        (number(betas[0], "betas", file), number(betas[1], "betas", file)),
        number(said.get("eps"), "eps", file),
        number(said.get("weight_decay", 0.0), "weight_decay", file),
        None if initial is None else number(initial, "initial_lr", file),
    )


def kind_of(groups: Iterable[Mapping[str, Any]], file: str) -> str:
    """`adamw`, or `adam` where weight decay is added to the gradient, by what the groups of an optimizer say."""
    decoupled = {group.get("decoupled_weight_decay", True) for group in groups if group.get("weight_decay")}
    if len(decoupled) > 1:
        raise NotCarried(
            "some groups of the optimizer have decoupled weight decay, and some have not", file=file, fix=_DROP
        )
    return ADAM if decoupled == {False} else ADAMW


def said_by(group: Group, parameters: list[Any], optimizer: str = ADAMW) -> dict[str, Any]:
    """A group as torch's AdamW saves it, with `parameters` by what the format calls them."""
    return {
        "weight_decay": group.weight_decay,
        "lr": group.lr,
        "betas": tuple(group.betas),
        "eps": group.eps,
        "amsgrad": False,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "decoupled_weight_decay": optimizer == ADAMW,
        "initial_lr": group.lr if group.initial_lr is None else group.initial_lr,
        "params": parameters,
    }


def states_of(
    found: Mapping[str, Mapping[str, Any]], file: str, files: Iterable[FileState]
) -> tuple[int, dict[Kind, dict[str, StoredTensor]]]:
    """The step and the moments in the states of parameters, by name.

    Raises what `one_step` does, and, by the name of a parameter: a moment that is missing, steps that differ, and a state that is not Adam's.
    """
    moments: dict[Kind, dict[str, StoredTensor]] = {kind: {} for kind in MOMENTS}
    steps: dict[str, object] = {}
    for name, state in found.items():
        check_state(name, state, StoredTensor, file)
        for kind in MOMENTS:
            moments[kind][name] = state[kind]
        if _STEP in state:
            steps[name] = state[_STEP]
    return one_step(steps, file, files), moments


def check_state(name: str, state: Mapping[str, Any], kind_of_tensor: type, file: str) -> None:
    """`NotCarried` where the state of a parameter is not Adam's, and `FormatError` where it lacks a moment, which is a `kind_of_tensor`."""
    if others := sorted(map(str, state.keys() - {*MOMENTS, _STEP})):
        raise NotCarried(f"the optimizer keeps {others[0]} of {name!r}, and is not Adam", file=file, fix=_DROP)
    for kind in MOMENTS:
        if not isinstance(state.get(kind), kind_of_tensor):
            raise FormatError(
                f"{kind} of {name!r} is missing",
                file=file,
                found=", ".join(map(str, state)) or "nothing",
                expected=", ".join(MOMENTS),
            )


def one_step(steps: Mapping[str, object], file: str, files: Iterable[FileState]) -> int:
    """The step of all parameters. A step is a number, or a tensor of one.

    `NotCarried` where there is none, and `FormatError`, naming two of them, where they differ.
    """
    if not steps:
        raise NotCarried(
            "no state of the optimizer has a step: it has taken none yet, or keeps no moments", file=file, fix=_DROP
        )
    from ckpt_core.tensors.source import SourceFiles

    source = SourceFiles(files)
    try:
        known: dict[int, str] = {}
        for name, value in steps.items():
            known.setdefault(_counted(scalar(value, source), name, file), name)
    finally:
        source.close()
    if len(known) > 1:
        (one, first), (other, second) = list(known.items())[:2]
        raise FormatError(
            "the moments are of different steps",
            file=file,
            found=f"{second!r} of step {other}",
            expected=f"step {one}, as {first!r}",
            fix="copy the files of one step again",
        )
    return next(iter(known))


def scalar(value: object, source: SourceFiles) -> object:
    """The value of a tensor of one element; anything else as it is."""
    if not isinstance(value, StoredTensor) or value.elements != 1:
        return value
    box = tuple((0, 1) for _ in value.shape)
    if not value.dtype.floating:
        return int(source.read(of_shards(_STEP, value.shape, whole(value)), box).item())
    return float(source.floats(of_shards(_STEP, value.shape, whole(value)), box).item())


def _counted(value: object, name: str, file: str) -> int:
    if type(value) not in (int, float) or value != int(value) or value < 0:  # type: ignore[call-overload, operator]
        raise FormatError(f"the step of {name!r} is not a count", file=file, found=f"{value!r:.60}")
    return int(value)  # type: ignore[call-overload]


def number(value: object, key: str, file: str) -> float:
    """A finite number of a group; `FormatError` for anything else."""
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise FormatError(f"{key} of the optimizer is not a number", file=file, found=f"{value!r:.60}")
    return float(value)  # type: ignore[arg-type]
