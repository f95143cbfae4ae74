"""`TransformerConfig` of Megatron-Core, with the fields that its GPT children in NeMo 2 and Megatron-Bridge add.

Both write the dataclass down field by field, where Megatron-LM stores its command line (`ckpt_megatron.args`). Most
fields mean what the argument of the same name means; `fields` has the tables.
"""

from __future__ import annotations

from ckpt_megatron.transformer_config.config_fields import HARMLESS
from ckpt_megatron.transformer_config.fields import SPEC, latent, scaled_embedding, short, spec_of, usual
from ckpt_megatron.transformer_config.gemma import AROUND, another_epsilon, gemma2, gemma3, post_norms
from ckpt_megatron.transformer_config.generation import CLASS as GENERATION_CLASS
from ckpt_megatron.transformer_config.generation import FIELD as GENERATION
from ckpt_megatron.transformer_config.generation import settings_of
from ckpt_megatron.transformer_config.reading import (
    EMBEDDING,
    RANKS,
    described,
    layout_hints,
    parallel,
    refuse_adapters,
)
from ckpt_megatron.transformer_config.targets import dotted, named, plain
from ckpt_megatron.transformer_config.writing import FUNCTIONS, check_layout, number_layers, running

__all__ = [
    "AROUND",
    "EMBEDDING",
    "FUNCTIONS",
    "GENERATION",
    "GENERATION_CLASS",
    "HARMLESS",
    "RANKS",
    "SPEC",
    "another_epsilon",
    "check_layout",
    "described",
    "dotted",
    "gemma2",
    "gemma3",
    "latent",
    "layout_hints",
    "named",
    "number_layers",
    "parallel",
    "plain",
    "post_norms",
    "refuse_adapters",
    "running",
    "scaled_embedding",
    "settings_of",
    "short",
    "spec_of",
    "usual",
]
