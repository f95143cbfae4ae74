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
    Refusal,
    Table,
    custom,
    drop,
    fact_is,
    key,
    key_is,
    layouts,
    row,
    uniform,
)
from ckpt_hf.common import ATTENTION_BIASES, CAUSAL, GENERIC, MLP_BIASES, Family, activation, derived_head_dim, positive
from ckpt_hf.rotary import rotary_keys

_NORMS = ("attention.norm", "mlp.norm", "final_norm")


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if value is not None and type(value) is not bool:
        raise CkptError(f"key {key!r} is neither true nor false", found=repr(value)[:60])
    return bool(value)


def _read_decoder(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    new, single, parallel = (
        _flag(config, "new_decoder_architecture", False),
        _flag(config, "multi_query", True),
        _flag(config, "parallel_attn", True),
    )
    heads, count = positive(config, "num_attention_heads"), config.get("num_ln_in_parallel_attn")
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
        (heads if given is None else positive(config, "num_kv_heads")) if new else 1 if single else heads
    )
    facts["parallel"], facts["shared_norm"] = parallel, parallel and (count == 1 if new else True)
    _enter_norms(facts, config.get("layer_norm_epsilon", 1e-5))


def _enter_norms(facts: Facts, eps: object) -> None:
    for norm in _NORMS:
        if norm != "mlp.norm" or not facts["shared_norm"]:
            facts.update({f"{norm}.kind": "layer", f"{norm}.bias": True, f"{norm}.eps": eps})


def _write_decoder(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    groups, heads = uniform(facts, "attention.groups"), uniform(facts, "attention.heads")
    parallel, shared = uniform(facts, "parallel"), uniform(facts, "shared_norm")
    if shared and not parallel:
        raise Refusal("only parallel blocks share a norm", found=f"shared_norm = {shared} with parallel = {parallel}")
    eps = {uniform(facts, f"{norm}.eps") for norm in _NORMS} - {None}
    if len(eps) != 1:
        raise Refusal(
            "layer_norm_epsilon is one value",
            found=", ".join(f"{norm}.eps={facts.get(f'{norm}.eps')}" for norm in _NORMS),
        )
    wanted = Facts(facts)
    for norm in _NORMS:
        for setting in [setting for setting in wanted if setting.startswith(f"{norm}.")]:
            del wanted[setting]
    _enter_norms(wanted, next(iter(eps)))
    for norm in _NORMS:
        for name, value in (("kind", None), ("bias", False), ("weight", True), ("zero_centred", False)):
            path = f"{norm}.{name}"
            found, right = facts.get(path, value), wanted.get(path, value)
            if found != right:
                raise Refusal(f"{path} is {right}", found=found)
    new = parallel and (not shared or groups not in (1, heads))
    if not parallel and groups not in (1, heads):
        raise Refusal(
            "blocks in sequence have as many groups as heads, or one",
            found=f"attention.groups = {groups} with parallel = False",
        )
    config["layer_norm_epsilon"] = next(iter(eps))
    config["new_decoder_architecture"] = new
    config["num_kv_heads"] = groups
    config["multi_query"] = groups == 1
    config["parallel_attn"] = parallel
    config["num_ln_in_parallel_attn"] = (1 if shared else 2) if new else None


def _read_ffn(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    facts["mlp.ffn"] = (
        4 * positive(config, "hidden_size")
        if config.get("ffn_hidden_size") is None
        else positive(config, "ffn_hidden_size")
    )


def _write_ffn(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    config["ffn_hidden_size"] = uniform(facts, "mlp.ffn")
    if config["ffn_hidden_size"] is None:
        raise Refusal("ffn_hidden_size cannot say that there is no mlp.ffn")


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
    derived_head_dim("hidden_size", "num_attention_heads"),
    custom(["new_decoder_architecture", "multi_query", "parallel_attn", "num_kv_heads", "num_ln_in_parallel_attn", "layer_norm_epsilon"],
           ["attention.groups", "parallel", "shared_norm", *(f"{norm}.*" for norm in _NORMS)], read=_read_decoder, write=_write_decoder),
    custom(["ffn_hidden_size"], ["mlp.ffn"], read=_read_ffn, write=_write_ffn),
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
    row("lm_head.weight",                     "v h", "head.weight"),
    row("lm_head.weight",                     "v h", "embedding.tokens.weight", when="head.tied", copy=True),
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

FAMILIES = [Family("falcon", FALCON, layouts.Tables([MODEL, LAYER]))]
