"""Which pipeline stage holds which tensor, and under which name.

Stages before `split` are the encoder's, the others the decoder's; layers are numbered from 0 in each. What several stages
use is copied to each of them: the embedding, and the relative bias of a stack.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckpt_core.sdk import Refusal, schema
from ckpt_nemo.t5.weights import LAST_STAGE_TOKENS, LAYERS, ROOT

_LAYER = {stack: re.compile(rf"{re.escape(prefix)}\.(\d+)\.(.+)") for stack, prefix in LAYERS.items()}
SPLIT = "pipeline_model_parallel_split_rank"


@schema.dataclass(frozen=True)
class Stages:
    """`pp` stages, the first `split` of them of the encoder; `layers` counts those of each stack. A single stage holds both."""

    pp: int
    split: int
    layers: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.pp > 1 and not 0 < self.split < self.pp:
            raise Refusal(
                f"{SPLIT} leaves a stack without a stage",
                found=f"{SPLIT}={self.split} of pp={self.pp}",
                expected=f"1 to {self.pp - 1}",
            )
        for stack, count in self.layers.items():
            if count % len(self.of(stack)):
                raise Refusal(
                    f"the {len(self.of(stack))} stages do not divide the {count} layers of the {stack}",
                    found=f"pp={self.pp} {SPLIT}={self.split}",
                    fix="another --pp or split",
                )

    def of(self, stack: str) -> range:
        """The stages of a stack."""
        if self.pp == 1:
            return range(1)
        return range(self.split) if stack == "encoder" else range(self.split, self.pp)

    def name(self, name: str, stage: int) -> str | None:
        """The name that a tensor of the tables has on a stage, or None where it is not there."""
        for stack, pattern in _LAYER.items():
            match = pattern.fullmatch(name)
            if match is not None:
                return self._layer(stack, int(match[1]), match[2], stage)
        return name if stage in self._stages(name) else None

    def _layer(self, stack: str, layer: int, rest: str, stage: int) -> str | None:
        stages = self.of(stack)
        each = self.layers[stack] // len(stages)
        return f"{LAYERS[stack]}.{layer % each}.{rest}" if stages[layer // each] == stage else None

    def _stages(self, name: str) -> range:
        """The stages that hold a tensor outside layers; the first of them is where it comes from."""
        encoder, decoder = self.of("encoder"), self.of("decoder")
        part = name.removeprefix(f"{ROOT}.")
        if name == LAST_STAGE_TOKENS:
            return range(self.pp - 1, self.pp) if len(decoder) > 1 else range(0)
        if part.startswith("encoder_embedding."):
            return encoder[:1]
        if part.startswith("decoder_embedding."):
            return decoder[:1]
        if part.startswith("tokens_head."):
            return decoder[-1:]
        if ".final_layernorm." in part:
            return (encoder if f"{ROOT}.encoder." in part else decoder)[-1:]
        return encoder if part.startswith("encoder_") else decoder
