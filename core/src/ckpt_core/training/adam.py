"""What the optimizers of torch and of those who follow it keep: states of single parameters, and groups of hyper-parameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ckpt_core.errors import FormatError, NotCarried
from ckpt_core.lazily import hints_in
from ckpt_core.ledger import Loss
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.dtypes import FP64
from ckpt_core.storage.pickle.opaque import brief
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.tensors.assembly import of_shards, whole
from ckpt_core.text import plural
from ckpt_core.training.moments import MOMENTS, Kind
from ckpt_core.training.state import ADAM, ADAMW, Group

if TYPE_CHECKING:
    from ckpt_core.tensors.source import SourceFiles
else:
    hints_in(__name__, {"ckpt_core.tensors.source": "SourceFiles"})

_DROP = "leave it behind with --training-state drop"
_STEP = "step"
_NO_GRADIENT = "what has no gradient makes no step: an expert without tokens, a layer that was frozen for a while"
# What groups of Adam say at values that change nothing of its steps, and what they must not say: torch's, those of Apex, and of the old transformers.
_INERT = {"amsgrad": False, "maximize": False, "bias_correction": True, "correct_bias": True}
# What else groups of Adam say: what it steps with, how torch runs it, what names its parameters, and what schedules of torch and scripts remember in them.
_KNOWN = {
    *("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay"),
    *("foreach", "capturable", "differentiable", "fused"),
    *("params", "param_names", _STEP),
    *("initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum", "lr_scale"),
}


def group_of(said: Mapping[str, Any], names: Iterable[str], file: str, others: Collection[str] = ()) -> Group:
    """The group of parameters `names` by the hyper-parameters of torch's AdamW, Apex' or Transformer Engine's FusedAdam.

    `others` are the keys that the format itself adds to a group. `NotCarried` for a variant of Adam with other steps, and for a hyper-parameter that
    Adam does not have; `FormatError` for a number that is none, or with which Adam can't step.
    """
    said = _without_tensors(said)
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
    # LAMB, Yogi and AdamP keep what Adam keeps too. A text names a group, and is no hyper-parameter.
    strange = [key for key, value in said.items() if not isinstance(value, str | None)]
    if strange := [key for key in strange if key not in (*_KNOWN, *_INERT, *others)]:
        raise NotCarried(
            f"the optimizer may not be Adam: its groups say {strange[0]}, which Adam does not have",
            file=file,
            found=f"{strange[0]}={brief(said[strange[0]], 40)}",
            fix=_DROP,
        )
    initial = said.get("initial_lr")
    first, second = (_within(beta, "betas", 1.0, file) for beta in betas)
    return Group(
        tuple(names),
        _within(said.get("lr"), "lr", math.inf, file),
        (first, second),
        _within(said.get("eps"), "eps", math.inf, file),
        _within(said.get("weight_decay", 0.0), "weight_decay", math.inf, file),
        None if initial is None else number(initial, "initial_lr", file),
    )


def _without_tensors(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """A group with numbers in the place of tensors of one element: the learning rate of an optimizer in a CUDA graph (`capturable`), and its betas (torch 2.7)."""
    kept = [one for value in said.values() for one in _each(value) if isinstance(one, StoredTensor)]
    if not kept:
        return said
    from ckpt_core.tensors.source import SourceFiles

    source = SourceFiles({value.file: FileState.of(value.file) for value in kept}.values())
    try:
        return {
            key: type(value)(scalar(one, source) for one in value)
            if isinstance(value, list | tuple)
            else scalar(value, source)
            for key, value in said.items()
        }
    finally:
        source.close()


def _each(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else (value,)


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
    found: Mapping[str, Mapping[str, Any]], bodies: Iterable[Mapping[str, Any]], file: str, files: Iterable[FileState]
) -> tuple[int, dict[Kind, dict[str, StoredTensor]]]:
    """The step and the moments in the states of parameters, by name; `bodies` are the groups, which may count the steps.

    Raises what `steps_of` and `one_step` do, and, by the name of a parameter: a moment that is missing, and a state that is not Adam's.
    """
    moments: dict[Kind, dict[str, StoredTensor]] = {kind: {} for kind in MOMENTS}
    for name, state in found.items():
        check_state(name, state, StoredTensor, file)
        for kind in MOMENTS:
            moments[kind][name] = state[kind]
    return one_step(steps_of(found, bodies, file), file, files, of_one_program=True), moments


def steps_of(
    states: Mapping[str, Mapping[str, Any]], bodies: Iterable[Mapping[str, Any]], file: str
) -> dict[str, object]:
    """The steps of the states, by what they are called; where these have none, those that FusedAdam counts for groups.

    DeepSpeed's FusedAdam says a step in both, and counts in the states alone: that of a group stays at 0, or at what a run began with
    (ops/adam/fused_adam.py, 0.10 to 0.19). `FormatError`, naming one, where some states have a step and others have none, or some groups.
    """
    counted = {name: state[_STEP] for name, state in states.items() if _STEP in state}
    if not counted:
        return steps_of_groups({f"group {number}": body for number, body in enumerate(bodies)}, file)
    _check_counted(states, counted, file)
    return counted


def steps_of_groups(groups: Mapping[str, Mapping[str, Any]], file: str) -> dict[str, object]:
    """The steps of groups by what they are called. `FormatError`, naming one, where some groups have a step and others have none.

    An empty group has no step: FusedAdam passes it by. A group that does not list its parameters may be empty on the rank that wrote the file,
    where these are divided among data parallel ranks (Megatron-LM core 0.6 to 0.13, optimizer/distrib_optimizer.py, `state_dict`).
    """
    found = {name: body[_STEP] for name, body in groups.items() if _STEP in body}
    _check_counted([name for name, body in groups.items() if body.get("params")], found, file)
    return found


def _check_counted(names: Iterable[str], counted: Mapping[str, object], file: str) -> None:
    if lacking := [name for name in names if name not in counted and counted]:
        raise FormatError(
            f"the step of {lacking[0]!r} is missing",
            file=file,
            expected=f"a step, as {next(iter(counted))!r} has",
            fix="copy the files of one step again",
        )


def missed_steps(step: int, iterations: int | None, loss_scale: float | None, counter: str) -> list[Loss]:
    """That an optimizer made fewer steps than the model, which nothing explains: no loss scale is there that skips some. `counter` is what counts `iterations`."""
    if iterations is None or loss_scale is not None or iterations <= step:
        return []
    subject = f"an optimizer that made {plural(step, 'step')}, {iterations - step:,} less than the model"
    why = f"{counter} counts {iterations}, and no loss scale is there that skips steps: is the optimizer of an older checkpoint, or was it begun anew?"
    return [Loss("assumed", subject, why)]


def check_progress(said: Mapping[str, Mapping[str, object]]) -> None:
    """The files of all ranks `said` the same of where the run stands, by their keys. `FormatError`, naming a file, where they did not."""
    first, told = next(iter(said.items()))
    for file, of_file in said.items():
        for key, value in of_file.items():
            if value != told[key]:
                raise FormatError(
                    "the ranks are of different steps",
                    file=file,
                    found=f"{key} {brief(value)}",
                    expected=f"{brief(told[key])}, as in {first}",
                    fix="copy the files of one step again",
                )


def check_groups(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The groups in the files of all ranks are stepped alike. `FormatError`, naming a file, where they are not: it is of another step or of another run.

    The parameters of groups are a rank's own, and steps are compared with those of parameters.
    """
    said = {
        file: [
            _without_tensors({key: value for key, value in body.items() if key not in ("params", _STEP)})
            for body in bodies
        ]
        for file, bodies in found.items()
    }
    first, told = next(iter(said.items()))
    for file, bodies in said.items():
        if bodies != told:
            mine, other = _first_difference(bodies, told)
            raise FormatError(
                "the ranks have other groups of the optimizer than each other",
                file=file,
                found=mine,
                expected=f"{other}, as in {first}",
                fix="copy the files of one step again",
            )


def _first_difference(mine: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    for number, (one, two) in enumerate(zip(mine, other, strict=False)):
        for key in [*one, *two]:
            if (value := one.get(key)) != (told := two.get(key)):
                return f"{key} {_shown(value)} of group {number}", _shown(told)
    return f"{len(mine)} groups", f"{len(other)}"


def _shown(value: object) -> str:
    numbers = isinstance(value, list | tuple) and all(type(one) in (int, float) for one in value)
    return f"{value!r:.60}" if numbers else brief(value)


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


def one_step(steps: Mapping[str, object], file: str, files: Iterable[FileState], of_one_program: bool = False) -> int:
    """The step of all parameters. A step is a number, or a tensor of one.

    `NotCarried` where there is none, and `FormatError`, naming two of them, where they differ. `of_one_program`: the states of all parameters were saved
    together. torch passes by what has no gradient, so that they may differ there, which is `NotCarried`.
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
        if of_one_program:
            raise NotCarried(
                "parameters have made different numbers of steps, and a state has one",
                file=file,
                found=f"{second!r} made {other}",
                expected=f"{one}, as {first!r}",
                fix=f"{_NO_GRADIENT}; {_DROP}",
            )
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
    tensor = of_shards(_STEP, value.shape, whole(value))
    if not value.dtype.floating:
        return int(source.read(tensor, box).item())
    read = source.read if value.dtype == FP64 else source.floats  # `floats` are float32
    return float(read(tensor, box).item())


def _counted(value: object, name: str, file: str) -> int:
    if type(value) not in (int, float) or not (value >= 0 and math.isfinite(value) and value == int(value)):  # type: ignore[arg-type, call-overload, operator]
        raise FormatError(f"the step of {name!r} is not a count", file=file, found=brief(value))
    return int(value)  # type: ignore[call-overload]


def _within(value: object, key: str, end: float, file: str) -> float:
    """A number from 0 to below `end`."""
    found = number(value, key, file)
    if not 0.0 <= found < end:
        expected = f"at least 0, and less than {end:g}" if math.isfinite(end) else "at least 0"
        raise FormatError(f"Adam does not step with {key} {found:g}", file=file, expected=expected)
    return found


def number(value: object, key: str, file: str) -> float:
    """A finite number of a group; `FormatError` for anything else."""
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise FormatError(f"{key} of the optimizer is not a number", file=file, found=brief(value))
    return float(value)  # type: ignore[arg-type]
