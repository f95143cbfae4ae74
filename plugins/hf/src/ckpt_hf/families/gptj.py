"""GPT-J: parallel blocks behind one LayerNorm, adjacent rotary pairs, biases on MLPs and logits alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Config,
    Facts,
    Table,
    configs,
    decided,
    derived,
    drop,
    fact_is,
    ignore,
    key,
    layouts,
    note,
    row,
    values,
)
from ckpt_hf import heads
from ckpt_hf.common import CAUSAL, GENERIC, MLP_BIASES, SUMMARY, Family, activation, norms
from ckpt_hf.families.gpt2 import MODEL


def _read_rotated(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if config.get("rotary_dim", 64) is None:
        raise CkptError("key 'rotary_dim' is null, and transformers then has more angles than a head has elements")
    width = values.checked("rotary_dim", config.get("rotary_dim", 64), values.whole)
    facts["attention.rotary.fraction"] = width / facts["attention.head_dim"]


# fmt: off
GPTJ = Config("", GENERIC).replace("GPTJForCausalLM",
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    CAUSAL,
    key("n_embd", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key("n_layer", "layers"),
    key("n_head", "attention.heads", "attention.groups"),
    derived(None, "attention.head_dim", "n_embd / n_head"),
    fact_is("attention.rotary.theta", 10000.0),
    decided(["rotary_dim"], ["attention.rotary.fraction"], read=_read_rotated, uses=["attention.head_dim"],
            values={"rotary_dim": [configs.value_of("attention.rotary.fraction", "attention.head_dim", by=lambda fraction, width: round(fraction * width))]},
            why="how many elements of a head rotate"),
    derived("n_inner", "mlp.ffn", "4 * n_embd"),
    key("activation_function", "mlp.activation", default="gelu_new", via=activation("gelu_new")),
    fact_is("mlp.gated", False),
    key("layer_norm_epsilon", "attention.norm.eps", "final_norm.eps", default=1e-5),
    norms("layer", "attention.norm", "final_norm", bias=True),
    fact_is("parallel", True),
    fact_is("shared_norm", True),
    *(fact_is(bias, True) for bias in (*MLP_BIASES, "head.bias")),
    key("tie_word_embeddings", "head.tied", default=False),
    note("n_positions", "max_positions"),
    ignore("gradient_checkpointing", "rotary", "scale_attn_weights", "tokenizer_class", why="of the code that the first files were saved by"),
    SUMMARY,
    without=["max_position_embeddings"],
)

GPTJ_MODEL = MODEL.without("transformer.wpe.weight").extend(row("lm_head.bias", "v", "head.bias"))

LAYER = Table("transformer.h.{l}", to="layers.{l}", rows=[
    row("ln_1.weight",          "h",                   "attention.norm.weight"),
    row("ln_1.bias",            "h",                   "attention.norm.bias"),
    row("attn.q_proj.weight",   "(g r (e c + o)) h",   "attention.q.weight"),
    row("attn.k_proj.weight",   "(g (e c + o)) h",     "attention.k.weight"),
    row("attn.v_proj.weight",   "(g d) h",             "attention.v.weight"),
    row("attn.out_proj.weight", "h (g r d)",           "attention.out.weight"),
    row("mlp.fc_in.weight",     "f h",                 "mlp.up.weight"),
    row("mlp.fc_in.bias",       "f",                   "mlp.up.bias"),
    row("mlp.fc_out.weight",    "h f",                 "mlp.down.weight"),
    row("mlp.fc_out.bias",      "h",                   "mlp.down.bias"),
    drop("attn.bias",           why="the causal mask"),
    drop("attn.masked_bias",    why="the value of masked scores"),
])
# fmt: on

FAMILIES = [Family("gptj", GPTJ, layouts.Tables([GPTJ_MODEL, LAYER]), heads=(heads.BARE, heads.SCORED))]
