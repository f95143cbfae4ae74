"""Which pipeline stage holds which tensor, and under which name: layers are numbered from 0 in each stage."""

from __future__ import annotations

import re

from ckpt_core.sdk import Refusal, schema
from ckpt_nemo.vit.weights import LAYERS

_LAYER = re.compile(rf"{re.escape(LAYERS)}\.(\d+)\.(.+)")
_LAST = ("backbone.transformer.final_layernorm.", "head.")


@schema.dataclass(frozen=True)
class Stages:
    """`pp` stages of equal size; embeddings lie on the first, the last norm and the head on the last."""

    pp: int
    layers: int

    def __post_init__(self) -> None:
        if self.layers % self.pp:
            raise Refusal(f"pp={self.pp} does not divide the {self.layers} layers", expected="stages of equal size")

    def name(self, name: str, stage: int) -> str | None:
        """The name that a tensor of the tables has on a stage, or None where it is not there."""
        match = _LAYER.fullmatch(name)
        if match is None:
            return name if stage == (self.pp - 1 if name.startswith(_LAST) else 0) else None
        owner, local = divmod(int(match[1]), self.layers // self.pp)
        return f"{LAYERS}.{local}.{match[2]}" if owner == stage else None


def order(name: str) -> int:
    """Where a tensor stands among the modules: before the layers, in them, after them."""
    return 1 if _LAYER.fullmatch(name) else 2 if name.startswith(_LAST) else 0
