"""Kimi Linear: delta nets whose rows decay each by itself, beside latent attention that does not rotate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    Activation,
    CkptError,
    Facts,
    Refusal,
    configs,
    custom,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    note,
    row,
    rules,
    schema,
    values,
)
from ckpt_hf import heads
from ckpt_hf.common import Family, layers_with_experts, norms
from ckpt_hf.families.deepseek import DEEPSEEK_LAYER, DEEPSEEK_V3
from ckpt_hf.weights import EXPERTS, MODEL

_FULL, _LINEAR = "full_attention", "linear_attention"
_OBJECT = "linear_attn_config"
# Each size as transformers calls it, as the code beside the published files does, and what it is without a key.
_SIZES = (
    ("linear_num_heads", "num_heads", 32),
    ("linear_head_dim", "head_dim", 128),
    ("linear_conv_kernel_dim", "short_conv_kernel_size", 4),
)
_OF_WIDTH = ("key_dim", "value_dim", "decay_rank", "gate_rank")


def _published_kinds(said: Mapping[str, Any], layers: int) -> list[str] | None:
    """The kinds of layers by two lists of them, counted from 1; None without the lists."""
    attending, decaying = said.get("full_attn_layers"), said.get("kda_layers")
    if attending is None and decaying is None:
        return None
    named = attending + decaying if isinstance(attending, list) and isinstance(decaying, list) else []
    if sorted(named) != list(range(1, layers + 1)):
        raise CkptError(
            f"key {_OBJECT!r} does not name every layer once",
            found=f"{attending} and {decaying}"[:80],
            expected=f"1 to {layers}",
        )
    return [_LINEAR if index + 1 in (decaying or ()) else _FULL for index in range(layers)]


def _read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    said = config.get(_OBJECT) or {}
    if not isinstance(said, dict):
        raise CkptError(f"key {_OBJECT!r} is not an object", found=repr(said)[:60])
    sizes = []
    for name, other, default in _SIZES:
        size = said.get(other, config.get(name, default))
        if name in config and config[name] != size:
            raise CkptError(f"keys {name!r} and {_OBJECT!r} disagree", found=f"{config[name]} and {size}")
        sizes.append(values.checked(name, size, values.whole))
    facts["delta.key_heads"], width, facts["delta.conv"] = sizes
    facts["delta.value_heads"] = facts["delta.key_heads"]
    facts.update({f"delta.{name}": width for name in _OF_WIDTH})
    layers = facts["layers"]
    published, kinds = _published_kinds(said, layers), config.get("layer_types")
    if published is not None and kinds is not None and published != kinds:
        raise CkptError(f"keys 'layer_types' and {_OBJECT!r} disagree", found=f"{kinds} and {published}"[:160])
    # without any of them transformers has another rule than the published model (configuration_kimi_linear.py, 5.24)
    kinds = kinds or published or [_FULL if index and index % 4 == 0 else _LINEAR for index in range(layers)]
    attends = rules.each(having=_FULL, lacking=_LINEAR).read(kinds, layers)
    if attends is None or len({*attends}) < 2:
        raise CkptError("key 'layer_types' is not one of two kinds per layer, and both of them", found=str(kinds)[:80])
    facts["latent_attention?"] = schema.PerLayer(attends)
    facts["delta?"] = schema.PerLayer(not one for one in attends)


def _write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    heads_, width, conv = (configs.uniform(facts, f"delta.{name}") for name in ("key_heads", "key_dim", "conv"))
    wrong = [f"delta.{name}" for name in _OF_WIDTH if configs.uniform(facts, f"delta.{name}") != width]
    wrong += ["delta.value_heads"] * (configs.uniform(facts, "delta.value_heads") != heads_)
    present = facts.present("latent_attention"), facts.present("delta")
    if wrong or not isinstance(present[0], schema.PerLayer) or not isinstance(present[1], schema.PerLayer):
        raise Refusal(
            "its delta nets have as many heads for values as for keys, and one width for all of a head and its latents",
            found=", ".join(f"{path} = {facts.get(path)}" for path in wrong) or "layers of one kind",
            expected=f"delta.key_heads = {heads_}, delta.key_dim = {width}",
        )
    attends = present[0]
    config |= {name: size for (name, _, _), size in zip(_SIZES, (heads_, width, conv), strict=True)}
    config["layer_types"] = [_FULL if here else _LINEAR for here in attends]
    config[_OBJECT] = {
        **{name: size for (_, name, _), size in zip(_SIZES, (heads_, width, conv), strict=True)},
        "full_attn_layers": [index + 1 for index, here in enumerate(attends) if here],
        "kda_layers": [index + 1 for index, here in enumerate(attends) if not here],
    }


_NORMS = ("latent_attention.norm", "delta.norm", "delta.head_norm", "mlp.norm", "final_norm")

# fmt: off
KIMI_LINEAR = DEEPSEEK_V3.replace("KimiLinearForCausalLM",
    custom([_OBJECT, "layer_types", *(name for name, _, _ in _SIZES)],
           ["delta.key_heads", "delta.value_heads", "delta.conv", *(f"delta.{name}" for name in _OF_WIDTH), "delta?", "latent_attention?"],
           read=_read, write=_write, uses=["layers"],
           why="said twice, as transformers says it and as the code beside the published files does, which counts layers from 1"),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in _NORMS), default=1e-5),
    norms("rms", "delta.norm", "delta.head_norm"),
    fact_is("delta.sigmoid_gate", True),
    # the convolutions of the delta nets have the activation of the MLP, which the schema knows as SiLU alone
    key_is("hidden_act", "silu", or_absent=True),
    fact_is("mlp.activation", Activation.SILU),
    key("q_lora_rank", "latent_attention.q_rank", default=None, type=values.whole),
    configs.repeats("num_key_value_heads", "num_attention_heads", default=32),
    *ignore("rope_theta", "rope_scaling", "rope_parameters", why="no layer rotates"),
    # the class ties nothing, whatever it says (modeling_kimi_linear.py, 5.24)
    key_is("tie_word_embeddings", False, or_absent=True),
    fact_is("head.tied", False),
    key_is("mla_use_nope", True, or_absent=True, written=True),
    layers_with_experts(1, counted="first_k_dense_replace"),
    key("num_experts", "mlp.moe.experts", also=["num_local_experts", "n_routed_experts"], default=256),
    key("num_experts_per_token", "mlp.moe.router.top_k", also=["num_experts_per_tok"], default=8),
    key("moe_renormalize", "mlp.moe.router.normalise", also=["norm_topk_prob"], default=True),
    key("routed_scaling_factor", "mlp.moe.router.scale", default=2.446),
    key("num_shared_experts", "mlp.moe.shared.ffn", also=["n_shared_experts"], default=1, null=configs.REQUIRED, type=values.whole,
        times="moe_intermediate_size"),
    key_is("num_expert_group", 1, or_absent=True),
    key_is("n_group", 1, or_absent=True, written=False),
    key_is("topk_group", 1, or_absent=True),
    ignore("use_grouped_topk", why="one group of experts is not a choice"),
    key_is("moe_router_activation_func", "sigmoid", or_absent=True),
    key_is("num_nextn_predict_layers", 0, or_absent=True, written=False),
    note("model_max_length", "max_positions"),
    ignore("max_position_embeddings", why="the length is model_max_length"),
    without=["max_sequence_length", "seq_length", "latent_attention.rotary.*", "latent_attention.scale", "rope_interleave", "topk_method", "scoring_func",
             "predictors.*", "mlp.moe.router.groups"],
)

# transformers 5.24 saves the dense layers under the name that it takes for mixtures; it reads both names.
_NAMES = layouts.Choice("names", ("published", "saved"), default="published",
    help="what the MLP of a layer without experts is called: as in published files, or as transformers saves it")

_DENSE = tuple((f"{{}}.{part}_proj.weight", sentence, f"mlp.{part}.weight") for part, sentence in (("gate", "f h"), ("up", "f h"), ("down", "h f")))

KIMI_LINEAR_LAYER = DEEPSEEK_LAYER.without(
    "mlp.gate.e_score_correction_bias", *(one.native for one in EXPERTS), *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    *(f"mlp.shared_experts.{part}_proj.weight" for part in ("gate", "up", "down")),
).extend(
    *(row(name.format("mlp"), sentence, canonical, under={"names": "published"}) for name, sentence, canonical in _DENSE),
    *(row(name.format("block_sparse_moe"), sentence, canonical, under={"names": "saved"}) for name, sentence, canonical in _DENSE),
    row("block_sparse_moe.gate.weight",                     "x h",            "mlp.router.weight"),
    row("block_sparse_moe.gate.e_score_correction_bias",    "x",              "mlp.router.correction_bias", dtype="fp32"),
    row("block_sparse_moe.experts.{x}.w1.weight",           "f h",            "mlp.experts.gate.weight"),
    row("block_sparse_moe.experts.{x}.w3.weight",           "f h",            "mlp.experts.up.weight"),
    row("block_sparse_moe.experts.{x}.w2.weight",           "h f",            "mlp.experts.down.weight"),
    row("block_sparse_moe.shared_experts.gate_proj.weight", "f h",            "mlp.shared.gate.weight"),
    row("block_sparse_moe.shared_experts.up_proj.weight",   "f h",            "mlp.shared.up.weight"),
    row("block_sparse_moe.shared_experts.down_proj.weight", "h f",            "mlp.shared.down.weight"),
    row("input_layernorm.weight",                           "h",              "delta.norm.weight"),
    row("self_attn.q_proj.weight",                          "(g dk) h",       "delta.q.weight"),
    row("self_attn.k_proj.weight",                          "(g dk) h",       "delta.k.weight"),
    row("self_attn.v_proj.weight",                          "(g r dv) h",     "delta.v.weight"),
    row("self_attn.q_conv1d.weight",                        "(g dk) 1 t",     "delta.q_conv.weight"),
    row("self_attn.k_conv1d.weight",                        "(g dk) 1 t",     "delta.k_conv.weight"),
    row("self_attn.v_conv1d.weight",                        "(g r dv) 1 t",   "delta.v_conv.weight"),
    row("self_attn.A_log",                                  "1 1 (g r) 1",    "delta.a_log.weight"),
    row("self_attn.dt_bias",                                "(g r dk)",       "delta.dt_bias.weight"),
    row("self_attn.f_a_proj.weight",                        "al h",           "delta.a_down.weight"),
    row("self_attn.f_b_proj.weight",                        "(g r dk) al",    "delta.a.weight"),
    row("self_attn.b_proj.weight",                          "(g r) h",        "delta.b.weight"),
    row("self_attn.g_a_proj.weight",                        "zl h",           "delta.z_down.weight"),
    row("self_attn.g_b_proj.weight",                        "(g r dv) zl",    "delta.z.weight"),
    row("self_attn.o_norm.weight",                          "dv",             "delta.head_norm.weight"),
    row("self_attn.o_proj.weight",                          "h (g r dv)",     "delta.out.weight"),
)
_UNROTATED = layouts.fragment("rope", [("dr", {})])
# fmt: on

FAMILIES = [
    Family(
        "kimi_linear",
        KIMI_LINEAR,
        layouts.Tables([MODEL, KIMI_LINEAR_LAYER], [_NAMES], [_UNROTATED]),
        heads=(heads.BARE,),
    )
]
