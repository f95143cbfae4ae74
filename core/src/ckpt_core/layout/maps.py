"""Named scalar maps: what is not a permutation, but still exact enough to undo.

A row's `via` says how the canonical value follows from the stored one; `inverse` gives the way back.
Arithmetic is done in float32.
"""

from __future__ import annotations

from ckpt_core import numpy as np
from ckpt_core.lean import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """canonical = stored * factor."""

    factor: float

    def apply(self, values: np.ndarray) -> np.ndarray:
        return values * np.float32(self.factor)

    def inverse(self) -> Scale:
        return Scale(1.0 / self.factor)

    def __str__(self) -> str:
        return f"scale({self.factor:.9g})"


@dataclass(frozen=True, slots=True)
class Add:
    """canonical = stored + term."""

    term: float

    def apply(self, values: np.ndarray) -> np.ndarray:
        return values + np.float32(self.term)

    def inverse(self) -> Add:
        return Add(-self.term)

    def __str__(self) -> str:
        return f"add({self.term:g})"


@dataclass(frozen=True, slots=True)
class NegExp:
    """canonical = -exp(stored), the way state-space models store their decay."""

    def apply(self, values: np.ndarray) -> np.ndarray:
        return -np.exp(values)

    def inverse(self) -> NegExpInverse:
        return NegExpInverse()

    def __str__(self) -> str:
        return "neg_exp"


@dataclass(frozen=True, slots=True)
class NegExpInverse:
    """canonical = log(-stored)."""

    def apply(self, values: np.ndarray) -> np.ndarray:
        return np.log(-values)

    def inverse(self) -> NegExp:
        return NegExp()

    def __str__(self) -> str:
        return "log_neg"


ValueMap = Scale | Add | NegExp | NegExpInverse
"""What a row may do to values on the way (`via=`): each is one float32 operation with an inverse."""

plus_one = Add(1.0)
"""The canonical value is the stored one plus 1: norms that are stored around zero."""
neg_exp = NegExp()
"""The canonical value is -exp of the stored one."""


def scale(factor: float) -> Scale:
    """The canonical value is the stored one times `factor`."""
    return Scale(factor)
