"""The families: what a `config.json` of each model class means, and which tensors it comes with.

A family is a config table and one or more tensor tables, side by side in a module of `ckpt_hf.families`.
Defaults are those of the family's config class: old files leave out what was default when they were written.
"""

from __future__ import annotations

from ckpt_hf.common import Family
from ckpt_hf.families import (
    blenderbot,
    bloom,
    deepseek,
    falcon,
    gemma,
    gpt2,
    gpt_neox,
    llama,
    mixtral,
    nemotron,
    olmo2,
    phi3,
    qwen,
    starcoder2,
    t5,
    vit,
)

# The order is that of preference where several classes can hold a model exactly.
FAMILIES: list[Family] = [
    *llama.FAMILIES,
    *qwen.FAMILIES,
    *mixtral.FAMILIES,
    *starcoder2.FAMILIES,
    *gpt2.FAMILIES,
    *gemma.FAMILIES,
    *nemotron.FAMILIES,
    *phi3.FAMILIES,
    *olmo2.FAMILIES,
    *deepseek.FAMILIES,
    *falcon.FAMILIES,
    *gpt_neox.FAMILIES,
    *t5.FAMILIES,
    *blenderbot.FAMILIES,
    *bloom.FAMILIES,
    *vit.FAMILIES,
]
# Of classes that share a type, the first is meant by a config that names none.
BY_TYPE = {family.model_type: family for family in reversed(FAMILIES)}
