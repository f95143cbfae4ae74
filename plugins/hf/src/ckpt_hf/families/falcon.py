"""Falcon: three ways to share keys and values that are one arrangement of the fused projection, and three of norms.

                 q, k, v of the fused projection      blocks and norms
multi_query      all heads of q, one k, one v         parallel, one norm (7B); in sequence (RW)
neither          q, k, v head by head                 the same
new decoder      q..., k, v group by group            parallel, two norms (40B) or one (11B)
"""

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
    key,
    key_is,
    layouts,
    row,
    values,
)
from ckpt_hf import heads
from ckpt_hf.common import ALL_BIASES_OR_NONE, ATTENTION_BIASES, CAUSAL, GENERIC, MLP_BIASES, Family, activation, norms
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import LM_HEAD

_GROUPS = configs.value_of("attention.groups")


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    return value is not None and values.checked(key, value, values.flag)


def _read_decoder(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    new, single, parallel = (
        _flag(config, "new_decoder_architecture", False),
        _flag(config, "multi_query", True),
        _flag(config, "parallel_attn", True),
    )
    heads, count = facts["attention.heads"], config.get("num_ln_in_parallel_attn")
    if count not in (None, 1, 2):
        raise CkptError("key 'num_ln_in_parallel_attn' is neither 1 nor 2", found=repr(count)[:60])
    if new and not parallel:
        raise CkptError(
            "key 'parallel_attn' is false, with new_decoder_architecture",
            fix="transformers cannot run it: check the config",
        )
    if not new and parallel and count == 2:
        raise CkptError(
            "key 'num_ln_in_parallel_attn' is 2, without new_decoder_architecture",
            fix="transformers cannot run it: check the config",
        )
    given = config.get("num_kv_heads")
    # transformers reads num_kv_heads for the new decoder alone
    facts["attention.groups"] = (
        (heads if given is None else values.checked("num_kv_heads", given, values.whole))
        if new
        else 1
        if single
        else heads
    )
    facts["parallel"], facts["shared_norm"] = parallel, parallel and (count == 1 if new else True)


_DECODER = ("new_decoder_architecture", "num_kv_heads", "multi_query", "parallel_attn", "num_ln_in_parallel_attn")
_DECODERS = [
    (False, _GROUPS, True, True, None),
    (False, _GROUPS, False, True, None),
    (False, _GROUPS, True, False, None),
    (False, _GROUPS, False, False, None),
    (True, 1, True, True, 2),
    (True, _GROUPS, False, True, 1),
    (True, _GROUPS, False, True, 2),
]

# fmt: off
FALCON = Config("FalconForCausalLM", [
    *GENERIC,
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    CAUSAL,
    key("hidden_size", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key("num_hidden_layers", "layers"),
    key("num_attention_heads", "attention.heads"),
    derived(None, "attention.head_dim", "hidden_size / num_attention_heads"),
    key("layer_norm_epsilon", "attention.norm.eps", "final_norm.eps", default=1e-5, null=configs.REQUIRED),
    norms("layer", "attention.norm", "final_norm", bias=True),
    configs.where("!shared_norm", [configs.all_agree("attention.norm", "mlp.norm", why="all norms are alike")]),
    decided(_DECODER, ["attention.groups", "parallel", "shared_norm"], read=_read_decoder, values={_DECODER: _DECODERS}, uses=["attention.heads"],
            why="blocks in sequence have two norms, and one key and value, or as many as heads; the new decoder is parallel, has any number, and one norm or two"),
    derived("ffn_hidden_size", "mlp.ffn", "4 * hidden_size"),
    key_is("ff_factor", 4, or_absent=True, written=False),  # of the 11B files; transformers reads ffn_hidden_size
    key("activation", "mlp.activation", default="gelu", via=activation("gelu")),
    fact_is("mlp.gated", False),
    key("bias", *ATTENTION_BIASES, *MLP_BIASES, default=False),
    # its alibi is added before the scores are scaled, in bfloat16: no other framework's alibi is that function
    key_is("alibi", False, or_absent=True),
    key_is("apply_residual_connection_post_layernorm", False, or_absent=True, written=False),
    rotary_keys(),
    key("tie_word_embeddings", "head.tied", default=True),
])

MODEL = Table(rows=[
    row("transformer.word_embeddings.weight", "v h", "embedding.tokens.weight"),
    row("transformer.ln_f.weight",            "h",   "final_norm.weight"),
    row("transformer.ln_f.bias",              "h",   "final_norm.bias"),
    *LM_HEAD,
])

LAYER = Table("transformer.h.{l}", to="layers.{l}", rows=[
    row("self_attention.query_key_value.weight", "(g (q[r] + k + v) d) h", "attention.{part}.weight"),
    row("self_attention.query_key_value.bias",   "(g (q[r] + k + v) d)",   "attention.{part}.bias"),
    row("self_attention.dense.weight",           "h (g r d)",              "attention.out.weight"),
    row("self_attention.dense.bias",             "h",                      "attention.out.bias"),
    row("mlp.dense_h_to_4h.weight",              "f h",                    "mlp.up.weight"),
    row("mlp.dense_h_to_4h.bias",                "f",                      "mlp.up.bias"),
    row("mlp.dense_4h_to_h.weight",              "h f",                    "mlp.down.weight"),
    row("mlp.dense_4h_to_h.bias",                "h",                      "mlp.down.bias"),
    *(one for kind in ("weight", "bias") for one in (
        row(f"ln_attn.{kind}",                  "h", f"attention.norm.{kind}", when="parallel !shared_norm"),
        row(f"ln_mlp.{kind}",                   "h", f"mlp.norm.{kind}",       when="parallel !shared_norm"),
        row(f"input_layernorm.{kind}",          "h", f"attention.norm.{kind}", when="shared_norm"),
        row(f"input_layernorm.{kind}",          "h", f"attention.norm.{kind}", when="!parallel"),
        row(f"post_attention_layernorm.{kind}", "h", f"mlp.norm.{kind}",       when="!parallel"),
    )),
    drop("self_attention.rotary_emb.inv_freq",   why="computed from theta"),
    drop("self_attention.maybe_rotary.inv_freq", why="computed from theta"),
])
# fmt: on

FAMILIES = [
    Family(
        "falcon",
        FALCON,
        layouts.Tables([MODEL, LAYER]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=heads.BY_CLASSIFIER,
    )
]
