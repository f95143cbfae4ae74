"""What the keys of a nanotron `model_config.json` mean, and which of them each release knows.

The file is the dataclass of the model config with every default, so its set of keys tells which code wrote it.
Nanotron reads it strictly: a key that its class does not know fails the run, so a target is an exact key list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_core.sdk import (
    Activation,
    Architecture,
    CkptError,
    Config,
    Facts,
    PerLayer,
    Refusal,
    RotaryKind,
    custom,
    fact_is,
    key,
    key_is,
    note,
    one_of,
    same_as,
    schema,
    uniform,
)

ACTIVATION = one_of(
    {
        "silu": Activation.SILU,
        "gelu": Activation.GELU_ERF,
        "gelu_pytorch_tanh": Activation.GELU_TANH,
        "gelu_new": Activation.GELU_TANH,
        "relu": Activation.RELU,
        "relu2": Activation.RELU_SQUARED,
    }
)
_NORMS = ("attention.norm", "mlp.norm", "final_norm")


def _read_head_dim(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    for name, value in (("hidden_size", hidden), ("num_attention_heads", heads)):
        if value is not None and (type(value) is not int or value <= 0):
            raise CkptError(f"key {name!r} is not a positive whole number", found=repr(value)[:60])
    if hidden is not None and heads is not None:
        facts["attention.head_dim"] = hidden // heads


def _write_head_dim(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    # There is no head_dim key in any version: it is hidden_size / num_attention_heads.
    head_dim, heads = uniform(facts, "attention.head_dim"), uniform(facts, "attention.heads")
    if head_dim * heads != facts["hidden"]:
        raise Refusal("head_dim is always hidden_size / num_attention_heads", found=f"attention.head_dim = {head_dim}")


HEAD_DIM = custom([], ["attention.head_dim"], read=_read_head_dim, write=_write_head_dim)


def _read_rotary(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    facts["attention.rotary.theta"] = config.get("rope_theta", 10000.0)
    facts["attention.rotary.fraction"] = 1.0
    factor = config.get("rope_seq_len_interpolation_factor")
    if factor is not None:
        facts["attention.rotary.scaling.kind"] = RotaryKind.LINEAR
        facts["attention.rotary.scaling.factor"] = factor


def _write_rotary(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    theta = uniform(facts, "attention.rotary.theta")
    if theta is None:
        raise Refusal("it always rotates", found="no rotary positions")
    config["rope_theta"] = theta
    config["rope_interleaved"] = bool(notes.get("interleaved", False))
    config["rope_scaling"] = None
    kind = uniform(facts, "attention.rotary.scaling.kind")
    if uniform(facts, "attention.rotary.fraction") != 1.0:
        raise Refusal(
            "it rotates whole heads", found=f"attention.rotary.fraction = {facts['attention.rotary.fraction']}"
        )
    if kind is not None and kind is not RotaryKind.LINEAR:
        # The key exists in every version, and no forward pass reads it (huggingface/nanotron#255).
        raise Refusal(
            "rope_scaling is stored but never applied by nanotron", found=f"attention.rotary.scaling.kind = {kind}"
        )
    config["rope_seq_len_interpolation_factor"] = uniform(facts, "attention.rotary.scaling.factor")


_ROTARY_KEYS = ["rope_theta", "rope_interleaved", "rope_scaling", "rope_seq_len_interpolation_factor"]
ROTARY = custom(_ROTARY_KEYS, ["attention.rotary.*"], read=_read_rotary, write=_write_rotary)

# fmt: off
LLAMA = Config("nanotron's LlamaConfig", [
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    note("bos_token_id", "bos", default=1),
    note("eos_token_id", "eos", default=2),
    note("pad_token_id", "pad"),
    key("hidden_act", "mlp.activation", via=ACTIVATION),
    key("hidden_size", "hidden"),
    note("initializer_range", "initializer_range", default=0.02),
    key("intermediate_size", "mlp.ffn"),
    key_is("is_llama_config", True, or_absent=True),
    note("max_position_embeddings", "max_positions", default=2048),
    key("num_attention_heads", "attention.heads"),
    key("num_hidden_layers", "layers"),
    key("num_key_value_heads", "attention.groups", default=same_as("num_attention_heads")),
    note("pretraining_tp", "nanotron.pretraining_tp", default=1),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in _NORMS), default=1e-6),
    *(fact_is(f"{norm}.kind", "rms") for norm in _NORMS),
    fact_is("mlp.gated", True),
    HEAD_DIM,
    ROTARY,
    key("tie_word_embeddings", "head.tied", default=False),
    note("use_cache", "nanotron.use_cache", default=True),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    # models/llama.py builds qkv_proj without bias whatever this says (main, 2025)
    note("attention_bias", "nanotron.attention_bias", default=False),
    note("_attn_implementation", "nanotron.attn_implementation", default="flash_attention_2"),
    note("z_loss_enabled", "nanotron.z_loss_enabled", default=False),
    note("z_loss_coefficient", "nanotron.z_loss_coefficient", default=0.0001),
])

QWEN2 = LLAMA.replace("nanotron's Qwen2Config",
    key_is("is_qwen2_config", True, or_absent=True),
    key("attention_bias", "attention.q_bias", "attention.k_bias", "attention.v_bias", default=False),
    custom(["no_rope_layer", "sliding_window_size"], ["attention.rotary?", "attention.window", "attention.window?"],
           read=lambda config, facts, notes: _read_layer_pattern(config, facts),
           write=lambda facts, notes, config: _write_layer_pattern(facts, config)),
    note("flex_attention_mask", "nanotron.flex_attention_mask"),
    note("_fused_rotary_emb", "nanotron.fused_rotary_emb", default=True),
    note("_fused_rms_norm", "nanotron.fused_rms_norm", default=True),
    # the other path is commented out in the released forward
    note("_use_qkv_packed", "nanotron.use_qkv_packed", default=True),
    note("_use_doc_masking", "nanotron.use_doc_masking", default=False),
    note("log_attn_probs", "nanotron.log_attn_probs", default=False),
    note("ring_attn_heads_k_stride", "nanotron.ring_attn_heads_k_stride"),
    custom(["moe_config", "intermediate_size", "num_hidden_layers"],
           ["layers", "mlp.ffn", "mlp.ffn?", "mlp.moe?", "mlp.moe.experts", "mlp.moe.ffn", "mlp.moe.router.top_k",
            "mlp.moe.router.score", "mlp.moe.router.normalise", "mlp.moe.shared.ffn", "mlp.moe.shared.gate"],
           read=lambda config, facts, notes: _read_moe(config, facts, notes),
           write=lambda facts, notes, config: _write_moe(facts, notes, config)),
    without=["is_llama_config"],
)

STARCODER2 = Config("nanotron's Starcoder2Config", [
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    key("activation_function", "mlp.activation", via=ACTIVATION),
    note("attention_softmax_in_fp32", "nanotron.attention_softmax_in_fp32", default=True),
    note("attn_pdrop", "nanotron.attn_pdrop", default=0.1),
    note("bos_token_id", "bos", default=49152),
    note("embd_pdrop", "nanotron.embd_pdrop", default=0.1),
    note("eos_token_id", "eos", default=49152),
    custom(["global_attn_layers", "sliding_window_size"], ["attention.window", "attention.window?"],
           read=lambda config, facts, notes: _read_global_layers(config, facts),
           write=lambda facts, notes, config: _write_global_layers(facts, config)),
    custom(["grouped_query", "multi_query", "num_kv_heads"], ["attention.groups"],
           read=lambda config, facts, notes: _read_groups(config, facts),
           write=lambda facts, notes, config: _write_groups(facts, notes, config)),
    key("hidden_size", "hidden"),
    note("initializer_range", "initializer_range", default=0.02),
    key("intermediate_size", "mlp.ffn"),
    key_is("is_starcoder2_config", True, or_absent=True),
    key("layer_norm_epsilon", *(f"{norm}.eps" for norm in _NORMS), default=1e-5),
    *(fact_is(f"{norm}.kind", "layer") for norm in _NORMS),
    *(fact_is(f"{norm}.bias", True) for norm in _NORMS),
    *(fact_is(f"attention.{part}_bias", True) for part in ("q", "k", "v", "out")),
    fact_is("mlp.up_bias", True),
    fact_is("mlp.down_bias", True),
    fact_is("mlp.gated", False),
    # Starcoder2ForTraining always ties the head to the embedding.
    fact_is("head.tied", True),
    note("max_position_embeddings", "max_positions", default=4096),
    key("num_attention_heads", "attention.heads"),
    key("num_hidden_layers", "layers"),
    note("resid_pdrop", "nanotron.resid_pdrop", default=0.1),
    HEAD_DIM,
    custom(["rope_theta"], ["attention.rotary.*"],
           read=lambda config, facts, notes: facts.update({"attention.rotary.theta": config.get("rope_theta", 10000),
                                                           "attention.rotary.fraction": 1.0}),
           write=lambda facts, notes, config: _write_whole_theta(facts, config)),
    note("scale_attention_softmax_in_fp32", "nanotron.scale_attention_softmax_in_fp32", default=True),
    key_is("scale_attn_weights", True, or_absent=True),
    key_is("use_position_embeddings", False, or_absent=True),
    key_is("use_rotary_embeddings", True, or_absent=True),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
])
# fmt: on


def _count(config: Mapping[str, Any]) -> int:
    count = config.get("num_hidden_layers")
    if type(count) is not int or not 0 < count <= 100_000:
        raise CkptError("key 'num_hidden_layers' is not a number of layers", found=repr(count))
    return count


def _read_layer_pattern(config: Mapping[str, Any], facts: Facts) -> None:
    every, window = config.get("no_rope_layer"), config.get("sliding_window_size")
    rotated = PerLayer(every is None or (index + 1) % every != 0 for index in range(_count(config)))
    if not all(rotated):
        facts["attention.rotary?"] = rotated
    if window is not None:
        facts["attention.window"] = window
        if not all(rotated):  # the window is dropped on layers without rope (models/qwen.py, main)
            facts["attention.window?"] = rotated


def _write_layer_pattern(facts: Facts, config: dict[str, Any]) -> None:
    count = facts["layers"]
    rotated = facts.present("attention.rotary")
    config["no_rope_layer"] = None
    if isinstance(rotated, PerLayer):
        every = rotated.index(False) + 1
        if rotated != PerLayer((index + 1) % every != 0 for index in range(count)):
            raise Refusal(
                "no_rope_layer is 'every n-th layer'",
                found=f"no rope in layers {[i for i, r in enumerate(rotated) if not r]}",
            )
        config["no_rope_layer"] = every
    elif rotated is False:
        raise Refusal("no layer of it would rotate", found="no rotary positions")
    windowed = facts.present("attention.window")
    config["sliding_window_size"] = uniform(facts, "attention.window")
    if windowed is not False and windowed != rotated:
        raise Refusal(
            "the window holds on exactly the layers with rope", found=f"attention.window in layers: {windowed}"
        )


_MOE_KEYS = {
    "num_experts": "mlp.moe.experts",
    "top_k": "mlp.moe.router.top_k",
    "moe_intermediate_size": "mlp.moe.ffn",
    "shared_expert_intermediate_size": "mlp.moe.shared.ffn",
}
_MOE_NOTES = {"router_aux_loss_coef": 0.01, "token_dispatcher_type": "alltoall"}


def _read_moe(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    count, moe = _count(config), config.get("moe_config")
    facts["layers"] = count
    facts["mlp.ffn"] = config.get("intermediate_size")
    if moe is None:
        return
    unknown = sorted(set(moe) - set(_MOE_KEYS) - set(_MOE_NOTES) - {"layers", "enable_shared_expert"})
    if unknown:
        raise CkptError(f"unknown config key 'moe_config.{unknown[0]}'")
    for name, path in _MOE_KEYS.items():
        if moe.get(name) is None:
            raise CkptError(f"key 'moe_config.{name}' is missing")
        facts[path] = moe[name]
    if not moe.get("enable_shared_expert", False):
        del facts["mlp.moe.shared.ffn"]
        notes["nanotron.shared_expert_intermediate_size"] = moe["shared_expert_intermediate_size"]
    else:
        facts["mlp.moe.shared.gate"] = True
    # softmax over all experts, then top-k, never renormalised (main, nn/moe.py)
    facts["mlp.moe.router.score"], facts["mlp.moe.router.normalise"] = "softmax", False
    layers = moe.get("layers", [-1])
    sparse = PerLayer(index in layers or -1 in layers for index in range(count))
    if all(sparse):
        notes["unused_ffn"] = facts.pop("mlp.ffn")
    else:
        facts["mlp.moe?"] = sparse
        facts["mlp.ffn?"] = PerLayer(not moe_layer for moe_layer in sparse)
    notes |= {f"nanotron.{name}": moe[name] for name in _MOE_NOTES if name in moe}


def _write_moe(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    sparse = facts.present("mlp.moe")
    config["num_hidden_layers"] = facts["layers"]
    config["moe_config"] = None
    config["intermediate_size"] = uniform(facts, "mlp.ffn")
    if sparse is False:
        return
    if config["intermediate_size"] is None:
        config["intermediate_size"] = notes.get("unused_ffn") or uniform(facts, "mlp.moe.ffn")
    if facts.get("mlp.moe.router.score") != "softmax" or facts.get("mlp.moe.router.normalise"):
        found = ", ".join(
            f"{path} = {facts.get(path)}" for path in ("mlp.moe.router.score", "mlp.moe.router.normalise")
        )
        raise Refusal("its router is a softmax that is never renormalised", found=found)
    shared = facts.get("mlp.moe.shared.ffn")
    if shared is not None and not facts.get("mlp.moe.shared.gate"):
        raise Refusal("its shared expert is always gated", found="mlp.moe.shared.gate = False")
    config["moe_config"] = {
        "num_experts": uniform(facts, "mlp.moe.experts"),
        "top_k": uniform(facts, "mlp.moe.router.top_k"),
        "moe_intermediate_size": uniform(facts, "mlp.moe.ffn"),
        "shared_expert_intermediate_size": shared
        or notes.get("nanotron.shared_expert_intermediate_size", uniform(facts, "mlp.moe.ffn")),
        "router_aux_loss_coef": notes.get("nanotron.router_aux_loss_coef", _MOE_NOTES["router_aux_loss_coef"]),
        "layers": list(range(facts["layers"]))
        if sparse is True
        else [index for index, moe in enumerate(sparse) if moe],
        "enable_shared_expert": shared is not None,
        "token_dispatcher_type": notes.get("nanotron.token_dispatcher_type", _MOE_NOTES["token_dispatcher_type"]),
    }


def _read_global_layers(config: Mapping[str, Any], facts: Facts) -> None:
    window, everywhere = config.get("sliding_window_size"), config.get("global_attn_layers") or []
    if window is not None:
        facts["attention.window"] = window
        if everywhere:
            facts["attention.window?"] = PerLayer(index not in everywhere for index in range(_count(config)))


def _write_global_layers(facts: Facts, config: dict[str, Any]) -> None:
    present = facts.present("attention.window")
    config["sliding_window_size"] = uniform(facts, "attention.window")
    config["global_attn_layers"] = (
        [index for index, slides in enumerate(present) if not slides] if isinstance(present, PerLayer) else []
    )


def _read_groups(config: Mapping[str, Any], facts: Facts) -> None:
    grouped, multi = config.get("grouped_query", False), config.get("multi_query", False)
    if grouped and multi:
        raise CkptError("keys 'grouped_query' and 'multi_query' exclude each other", found="both are true")
    if grouped:
        facts["attention.groups"] = config.get("num_kv_heads")
    else:  # neither flag means multi-query (Starcoder2Config.__post_init__)
        facts["attention.groups"] = 1


def _write_groups(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    groups = uniform(facts, "attention.groups")
    grouped = groups > 1 or bool(notes.get("grouped", False))
    config |= {"grouped_query": grouped, "multi_query": not grouped, "num_kv_heads": groups if grouped else None}


def _write_whole_theta(facts: Facts, config: dict[str, Any]) -> None:
    theta = uniform(facts, "attention.rotary.theta")
    if (
        theta is None
        or uniform(facts, "attention.rotary.fraction") != 1.0
        or facts.get("attention.rotary.scaling.kind") is not None
    ):
        raise Refusal("it has plain rotary positions over whole heads, in every layer")
    if theta != int(theta):
        raise Refusal("rope_theta is a whole number", found=f"attention.rotary.theta = {theta}")
    config["rope_theta"] = int(theta)


# fmt: off
_LLAMA_0 = ("bos_token_id eos_token_id hidden_act hidden_size initializer_range intermediate_size is_llama_config "
            "max_position_embeddings num_attention_heads num_hidden_layers num_key_value_heads pad_token_id pretraining_tp "
            "rms_norm_eps rope_scaling tie_word_embeddings use_cache vocab_size").split()
_LLAMA_MAIN = ("bos_token_id eos_token_id hidden_act hidden_size initializer_range intermediate_size is_llama_config "
               "max_position_embeddings num_attention_heads num_hidden_layers attention_bias num_key_value_heads pad_token_id "
               "pretraining_tp rms_norm_eps rope_scaling rope_theta rope_interleaved tie_word_embeddings use_cache vocab_size "
               "_attn_implementation z_loss_enabled z_loss_coefficient").split()
_QWEN2_MAIN = ("bos_token_id eos_token_id hidden_act hidden_size initializer_range intermediate_size is_qwen2_config "
               "max_position_embeddings num_attention_heads num_hidden_layers num_key_value_heads pad_token_id pretraining_tp "
               "rms_norm_eps rope_scaling rope_theta rope_interleaved rope_seq_len_interpolation_factor tie_word_embeddings use_cache "
               "vocab_size _attn_implementation flex_attention_mask attention_bias sliding_window_size z_loss_enabled "
               "z_loss_coefficient no_rope_layer _fused_rotary_emb _fused_rms_norm _use_qkv_packed _use_doc_masking log_attn_probs "
               "ring_attn_heads_k_stride moe_config").split()
_STARCODER2_0 = ("activation_function attention_softmax_in_fp32 attn_pdrop bos_token_id embd_pdrop eos_token_id global_attn_layers "
                 "grouped_query hidden_size initializer_range intermediate_size is_starcoder2_config layer_norm_epsilon "
                 "max_position_embeddings multi_query num_attention_heads num_hidden_layers num_kv_heads resid_pdrop rope_theta "
                 "scale_attention_softmax_in_fp32 scale_attn_weights sliding_window_size use_position_embeddings "
                 "use_rotary_embeddings vocab_size").split()
# fmt: on


def decoder_of(architecture: Architecture) -> schema.Stack:
    """The one stack of a nanotron model."""
    if architecture.decoder is None:
        raise Refusal("nanotron models are decoders", found="no decoder")
    return architecture.decoder


def attention_of(stack: schema.Stack) -> schema.Attention:
    """The attention of a stack whose layers all have the same heads."""
    attention = stack.layers[0].attention
    if attention is None:
        raise Refusal("nanotron models have plain attention", found="latent attention")
    return attention


@dataclass(frozen=True)
class ModelClass:
    """A nanotron model class: the key that marks its config, its table, and how many matrices its MLP counts as."""

    kind: str
    marker: str
    config: Config
    mlp_matrices: int


MODELS = [
    ModelClass("llama", "is_llama_config", LLAMA, 3),
    ModelClass("qwen2", "is_qwen2_config", QWEN2, 3),
    ModelClass("starcoder2", "is_starcoder2_config", STARCODER2, 2),
]


def model_of(config: Mapping[str, Any], file: str) -> ModelClass:
    """The model class a config belongs to, by its marker key."""
    marked = [model for model in MODELS if config.get(model.marker)]
    if len(marked) != 1:
        raise CkptError(
            "the config does not say which nanotron model it is",
            file=file,
            found=", ".join(model.marker for model in marked) or "no marker key",
            expected="one of " + ", ".join(model.marker for model in MODELS),
        )
    return marked[0]


@dataclass(frozen=True)
class Release:
    """A nanotron release to write for: its checkpoint version, and the exact config keys of each model it has.

    `interleaved` None: the flag rope_interleaved decides; True: pairs are always interleaved. `neutral`: what its code
    computes with where it has no key.
    """

    name: str
    checkpoint_version: str
    keys: Mapping[str, Sequence[str]]
    interleaved: bool | None
    neutral: Mapping[str, Any]


# Until db9e8745 (2024-05-18) Llama's rope had base 10000 and interleaved pairs, and no key for either.
# fmt: off
RELEASES = {
    "0.4": Release("0.4", "1.2", {"llama": _LLAMA_0, "starcoder2": _STARCODER2_0}, True,
                   {"rope_theta": 10000.0, "rope_seq_len_interpolation_factor": None}),
    "main": Release("main", "1.5", {"llama": _LLAMA_MAIN, "qwen2": _QWEN2_MAIN, "starcoder2": _STARCODER2_0}, None,
                    {"rope_seq_len_interpolation_factor": None}),
}
# fmt: on


def config_for(release: Release, model: ModelClass, facts: Facts, notes: Mapping[str, Any]) -> dict[str, Any]:
    """The exact `model_config.json` of a release; refuses what its keys cannot say."""
    if model.kind not in release.keys:
        raise Refusal(f"nanotron {release.name} has no {model.config.name}")
    config = model.config.write(facts, notes)
    for name, value in config.items():
        if name not in release.keys[model.kind] and name in release.neutral and value != release.neutral[name]:
            raise Refusal(
                f"{model.config.name} of nanotron {release.name} has no {name}",
                found=f"{name} = {value}",
                expected=f"{release.neutral[name]}, which its code always computes with",
            )
    return {name: config.get(name) for name in release.keys[model.kind]}
