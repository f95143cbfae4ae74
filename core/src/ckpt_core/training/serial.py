"""The state of a training as JSON, without its tensors: strict, and with a version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.errors import FormatError
from ckpt_core.training.state import ADAM, ADAMW, Group, Schedule, Training

SCHEMA = 1
"""The version of the form. A later one is not read."""

_COUNTS = ("iterations", "consumed_samples", "consumed_tokens", "skipped_steps")
_NUMBERS = ("loss_scale", "clip_grad")
_UNITS = ("step", "sample")


def to_json(training: Training) -> dict[str, Any]:
    """Everything but the tensors."""
    schedule = training.schedule
    return {
        "schema": SCHEMA,
        "optimizer": training.optimizer,
        "step": training.step,
        "groups": [
            {
                "lr": group.lr,
                "initial_lr": group.initial_lr,
                "betas": list(group.betas),
                "eps": group.eps,
                "weight_decay": group.weight_decay,
                "parameters": list(group.parameters),
            }
            for group in training.groups
        ],
        "schedule": {
            "position": schedule.position,
            "unit": schedule.unit,
            "next_lr": schedule.next_lr,
            "native": dict(schedule.native),
        },
        **{name: getattr(training, name) for name in (*_COUNTS, *_NUMBERS)},
        "frozen": list(training.frozen),
        "own_masters": training.own_masters,
    }


def from_json(body: Mapping[str, Any], file: str) -> Training:
    """The state that `to_json` said, without tensors. `FormatError`, naming `file`, for anything else."""
    try:
        if body["schema"] != SCHEMA:
            raise FormatError(
                "the state of the training has another version", file=file, found=body["schema"], expected=SCHEMA
            )
        known = {"schema", "optimizer", "step", "groups", "schedule", *_COUNTS, *_NUMBERS, "frozen", "own_masters"}
        if unknown := sorted(body.keys() - known):
            raise FormatError(
                f"unknown field {unknown[0]!r} of the state of the training",
                file=file,
                expected=", ".join(sorted(known)),
            )
        if body["optimizer"] not in (ADAM, ADAMW):
            raise ValueError(f"optimizer {body['optimizer']!r:.40}")
        schedule = body["schedule"]
        if schedule["unit"] not in _UNITS or not isinstance(schedule["native"], dict):
            raise ValueError("schedule")
        return Training(
            _count(body["step"]),
            tuple(_group(group) for group in body["groups"]),
            body["optimizer"],
            Schedule(
                _optional(_count, schedule["position"]),
                schedule["unit"],
                _optional(_number, schedule["next_lr"]),
                schedule["native"],
            ),
            **{name: _optional(_count, body[name]) for name in _COUNTS},
            **{name: _optional(_number, body[name]) for name in _NUMBERS},
            frozen=_names(body["frozen"]),
            own_masters=_flag(body["own_masters"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            "this is not the state of a training", file=file, found=f"{type(error).__name__}: {error}"
        ) from None


def _group(body: Mapping[str, Any]) -> Group:
    first, second = body["betas"]
    return Group(
        _names(body["parameters"]),
        _number(body["lr"]),
        (_number(first), _number(second)),
        _number(body["eps"]),
        _number(body["weight_decay"]),
        _optional(_number, body["initial_lr"]),
    )


def _optional(read: Any, value: Any) -> Any:
    return None if value is None else read(value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a count")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{value!r:.40} is not a number")
    return float(value)


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r:.40} is not true or false")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("a list of names is not one")
    return tuple(value)
