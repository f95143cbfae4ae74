"""EuroBERT: Llama as an encoder, with a head for masked tokens."""

from __future__ import annotations

from dataclasses import replace

from ckpt_core.sdk import configs, fact_is, ignore, key, layouts, row
from ckpt_hf.common import Family
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.heads import BARE, ENCODER_TAGGED, encodes
from ckpt_hf.weights import LAYER, MODEL

# fmt: off
EUROBERT = LLAMA.replace("EuroBertForMaskedLM",
    fact_is("kind", "encoder"),
    fact_is("causal", False),
    key("rms_norm_eps", "attention.norm.eps", "mlp.norm.eps", "final_norm.eps", default=1e-5),
    configs.fact_as("head.bias", "mlp.up_bias"),
    ignore("classifier_pooling", "classifier_dropout", why="of classes"),
    ignore("mask_token_id", why="of the tokenizer"),
)
# fmt: on

FAMILIES = [
    Family(
        "eurobert",
        EUROBERT,
        layouts.Tables([MODEL.extend(row("lm_head.bias", "v", "head.bias")), LAYER]),
        heads=(replace(BARE, holds=lambda model: encodes(model) and model.classifier is None), ENCODER_TAGGED),
    )
]
