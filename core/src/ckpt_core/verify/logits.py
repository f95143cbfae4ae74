"""Running two checkpoints on the same tokens, through whatever engine is installed, and comparing their logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckpt_core.checkpoint import Checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.plugins.discovery import all_plugins

_BATCH = 2
_SEED = 20240229


@dataclass(frozen=True)
class LogitsReport:
    """How two models differ on `positions` random tokens; `agreement` is the share of equal most likely tokens."""

    positions: int
    largest: float
    mean: float
    agreement: float
    engines: tuple[str, str]

    def within(self, tolerance: float) -> bool:
        """Whether no logit differs by more; NaN is never within."""
        return self.largest <= tolerance


def compare_logits(left: Checkpoint, right: Checkpoint, positions: int) -> LogitsReport:
    """Logits of both on a seeded batch of two rows of `positions` tokens below both vocabularies.

    Raises `CkptError` if a model has no vocabulary, or no installed engine runs it.
    """
    sizes = [side.architecture.tokens.vocabulary for side in (left, right) if side.architecture.tokens is not None]
    if len(sizes) < 2:
        raise CkptError("a model that reads no tokens has no logits to compare")
    vocabulary = min(sizes)
    tokens = np.random.default_rng(_SEED).integers(0, vocabulary, (_BATCH, positions), dtype=np.int64)
    (one, first), (two, second) = (_logits(side, tokens) for side in (left, right))
    one, two = (values[..., :vocabulary].astype(np.float32) for values in (one, two))
    if one.shape != two.shape:
        raise CkptError("the engines return logits of different shapes", found=f"{one.shape} and {two.shape}")
    apart = np.abs(one - two)
    agreement = float((one.argmax(-1) == two.argmax(-1)).mean())
    return LogitsReport(_BATCH * positions, float(apart.max()), float(apart.mean()), agreement, (first, second))


def _logits(checkpoint: Checkpoint, tokens: np.ndarray) -> tuple[np.ndarray, str]:
    for plugin in all_plugins():
        if plugin.broken is None:
            values = plugin.hooks.ckpt_logits(checkpoint=checkpoint, tokens=tokens)
            if values is not None:
                return values, plugin.name
    raise CkptError(
        "no installed engine runs this model, so its logits can't be compared",
        file=checkpoint.path,
        fix='install one (for example: pip install "ckpt-hf[models]"), or leave out --logits',
    )
