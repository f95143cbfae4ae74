"""The families: what a `config.json` of each model class means, and which tensors it comes with.

A family is a config table and one or more tensor tables, side by side in a module of `ckpt_hf.families`.
Defaults are those of the family's config class: old files leave out what was default when they were written.
"""

from __future__ import annotations

from ckpt_hf.common import Family
from ckpt_hf.families import (
    arcee,
    bert,
    blenderbot,
    bloom,
    cohere,
    deepseek,
    dots1,
    ernie,
    exaone4,
    falcon,
    gemma,
    glm,
    gpt2,
    gpt_neox,
    gpt_oss,
    granite,
    hunyuan,
    hy_v3,
    internlm3,
    llama,
    llama4,
    minimax,
    mixtral,
    modernbert,
    nemotron,
    olmo2,
    olmo3,
    olmoe,
    opt,
    phi3,
    qwen,
    qwen3_next,
    seed_oss,
    stablelm,
    starcoder2,
    t5,
    vit,
)

# The order is that of preference where several classes can hold a model exactly.
_SAID: list[Family] = [
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
    *bert.FAMILIES,
    *modernbert.FAMILIES,
    *olmo3.FAMILIES,
    *olmoe.FAMILIES,
    *glm.FAMILIES,
    *minimax.FAMILIES,
    *seed_oss.FAMILIES,
    *arcee.FAMILIES,
    *internlm3.FAMILIES,
    *cohere.FAMILIES,
    *ernie.FAMILIES,
    *dots1.FAMILIES,
    *hy_v3.FAMILIES,
    *exaone4.FAMILIES,
    *stablelm.FAMILIES,
    *opt.FAMILIES,
    *hunyuan.FAMILIES,
    *qwen3_next.FAMILIES,
    *gpt_oss.FAMILIES,
    *granite.FAMILIES,
    *llama4.FAMILIES,
]
# The classes of the same decoders with other heads follow those that are said.
FAMILIES: list[Family] = [*_SAID, *(family.with_head(head) for family in _SAID for head in family.heads)]
# Of classes that share a type, the first is meant by a config that names none.
BY_TYPE = {family.model_type: family for family in reversed(_SAID)}
