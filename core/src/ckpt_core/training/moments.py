"""Moments as tensors with the axes of their parameter: the same native tensor, under another name and another power of its value map.

w = c w'    a weight that is stored as w'       v(w) = v(w') / c^2       m(w) = m(w') / c
w = w' + 1                                      v(w) = v(w')             m(w) = m(w')
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from ckpt_core.architecture import Parameter
from ckpt_core.errors import NotCarried
from ckpt_core.layout import Add, Native, Scale, ValueMap

Kind = Literal["master", "exp_avg", "exp_avg_sq"]

MASTER: Kind = "master"
EXP_AVG: Kind = "exp_avg"
EXP_AVG_SQ: Kind = "exp_avg_sq"
MOMENTS: tuple[Kind, ...] = (EXP_AVG, EXP_AVG_SQ)
"""What Adam keeps of the gradients: the mean, and the mean of the squares."""
KINDS: tuple[Kind, ...] = (MASTER, *MOMENTS)
"""What a training keeps of each parameter. A master is the weight itself, in the precision that the optimizer steps in."""

_POWERS: dict[Kind, int] = {EXP_AVG: -1, EXP_AVG_SQ: -2}


def named(kind: Kind, parameter: str) -> str:
    """The canonical name of a tensor of the state: `optimizer.exp_avg/layers.0.mlp.up.weight`."""
    return f"optimizer.{kind}/{parameter}"


def moment_of(kind: Kind, parameter: Parameter) -> Parameter:
    """A tensor of the state as a parameter: its own name, the axes of the weight."""
    return replace(parameter, name=named(kind, parameter.name))


def moment_native(kind: Kind, native: Native) -> Native:
    """The native tensor that holds `kind` of the parameters that `native` holds, arranged alike.

    `NotCarried` where what is stored is another function of the weight than a multiple of it and a shift.
    """
    row = replace(native.row, via=moment_map(kind, native.row.via, native.name), dtype="fp32")
    pieces = tuple(replace(piece, parameter=named(kind, piece.parameter)) for piece in native.pieces)
    return replace(native, pieces=pieces, row=row)


def moment_map(kind: Kind, via: ValueMap | None, name: str) -> ValueMap | None:
    """What a value map of a weight does to `kind` of it: a multiple acts by its power, a shift does not act on a gradient."""
    if via is None or kind == MASTER:
        return via
    if isinstance(via, Scale):
        return Scale(via.factor ** _POWERS[kind])
    if isinstance(via, Add):
        return None
    raise NotCarried(
        f"the moments of {name} can't be carried: they are those of another function of the parameter",
        found=str(via),
        expected="a multiple of it, or a shift",
        fix="leave the state of the training behind with --training-state drop",
    )
