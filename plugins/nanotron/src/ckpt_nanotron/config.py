"""What the keys of a nanotron `model_config.json` mean, and which of them each release knows.

The file is the dataclass of the model config with every default, so its set of keys tells which code wrote it.
Nanotron reads it strictly: a key that its class does not know fails the run, so a target is an exact key list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ckpt_core.sdk import (
    Activation,
    Architecture,
    CkptError,
    Config,
    Facts,
    Refusal,
    by_layer,
    configs,
    custom,
    decided,
    derived,
    fact_is,
    key,
    key_is,
    note,
    one_of,
    rules,
    same_as,
    schema,
    values,
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


def _head_dim(rounding: Literal["exact", "floor"]) -> configs.Entry:
    """No version has a key head_dim."""
    return derived(None, "attention.head_dim", "hidden_size / num_attention_heads", rounding=rounding)


def _read_scaling(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    factor = config.get("rope_seq_len_interpolation_factor")
    if factor is not None:
        facts["attention.rotary.scaling.kind"] = schema.RotaryKind.LINEAR
        facts["attention.rotary.scaling.factor"] = factor


def _read_arrangement(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """No fact follows: the reader of the checkpoint looks at the key, for the choice of tensor tables."""


def _write_arrangement(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    config["rope_interleaved"] = bool(notes.get("interleaved", False))


_FACTOR = configs.value_of("attention.rotary.scaling.factor")


def _read_window(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    window, rotated = config.get("sliding_window_size"), facts.present("attention.rotary")
    if window is not None:
        facts["attention.window"] = window
        if isinstance(rotated, schema.PerLayer):
            facts["attention.window?"] = rotated


def _read_shared(moe: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    width = moe.get("shared_expert_intermediate_size")
    if width is None:
        raise CkptError("key 'shared_expert_intermediate_size' is missing")
    if moe.get("enable_shared_expert", False):
        facts["mlp.moe.shared.ffn"] = width
    else:
        notes["nanotron.shared_expert_intermediate_size"] = width


def _write_shared(facts: Facts, notes: Mapping[str, Any], moe: dict[str, Any]) -> None:
    unused = notes.get("nanotron.shared_expert_intermediate_size", configs.uniform(facts, "mlp.moe.ffn"))
    moe["shared_expert_intermediate_size"] = configs.uniform(facts, "mlp.moe.shared.ffn") or unused


def _read_groups(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    grouped, multi = config.get("grouped_query", False), config.get("multi_query", False)
    if grouped and multi:
        raise CkptError("keys 'grouped_query' and 'multi_query' exclude each other", found="both are true")
    # neither flag means multi-query (Starcoder2Config.__post_init__)
    facts["attention.groups"] = config.get("num_kv_heads") if grouped else 1


def _write_groups(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    groups = configs.uniform(facts, "attention.groups")
    grouped = groups > 1 or bool(notes.get("grouped", False))
    config |= {"grouped_query": grouped, "multi_query": not grouped, "num_kv_heads": groups if grouped else None}


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
    key("num_hidden_layers", "layers", type=values.layers),
    key("num_key_value_heads", "attention.groups", default=same_as("num_attention_heads")),
    note("pretraining_tp", "nanotron.pretraining_tp", default=1),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in _NORMS), default=1e-6),
    *(fact_is(f"{norm}.kind", "rms") for norm in _NORMS),
    fact_is("mlp.gated", True),
    # models/llama.py asserts that hidden_size is a multiple (main, 2025)
    _head_dim("exact"),
    key("rope_theta", "attention.rotary.theta", default=10000.0, null=configs.REQUIRED),
    fact_is("attention.rotary.fraction", 1.0),
    custom(["rope_interleaved"], [], read=_read_arrangement, write=_write_arrangement, uses=[],
           why="whether rotary pairs are neighbours: how the rows of q and k are arranged, which is a choice of the writer, and not a fact"),
    # rope_scaling exists in every version, and no forward pass reads it (huggingface/nanotron#255)
    decided(["rope_scaling", "rope_seq_len_interpolation_factor"], ["attention.rotary.scaling.*"], read=_read_scaling,
            values={"rope_scaling": [None], "rope_seq_len_interpolation_factor": [None, _FACTOR]},
            why="rope_seq_len_interpolation_factor is the factor of linear scaling; rope_scaling is stored but never applied by nanotron"),
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
    _head_dim("floor"),  # models/qwen.py rounds down, and asserts nothing (main, 2025)
    by_layer("no_rope_layer", "attention.rotary", ~rules.every_nth(), plain=None),
    # the window is dropped on layers without rope (models/qwen.py, main)
    decided(["sliding_window_size"], ["attention.window", "attention.window?"], read=_read_window,
            values={"sliding_window_size": [None, configs.value_of("attention.window")]}, uses=["attention.rotary", "attention.rotary.*"],
            why="the window holds on exactly the layers with rope"),
    note("flex_attention_mask", "nanotron.flex_attention_mask"),
    note("_fused_rotary_emb", "nanotron.fused_rotary_emb", default=True),
    note("_fused_rms_norm", "nanotron.fused_rms_norm", default=True),
    # the other path is commented out in the released forward
    note("_use_qkv_packed", "nanotron.use_qkv_packed", default=True),
    note("_use_doc_masking", "nanotron.use_doc_masking", default=False),
    note("log_attn_probs", "nanotron.log_attn_probs", default=False),
    note("ring_attn_heads_k_stride", "nanotron.ring_attn_heads_k_stride"),
    key("num_hidden_layers", "layers", type=values.layers),
    # the width of the layers without experts; nanotron wants the key where every layer has them, too
    configs.in_other_layers("intermediate_size", "mlp.ffn", than="mlp.moe", unused="unused_ffn", fallback="mlp.moe.ffn"),
    configs.nested("moe_config", optional=True, lines=[
        key("num_experts", "mlp.moe.experts"),
        key("top_k", "mlp.moe.router.top_k"),
        # softmax over all experts, then top-k, never renormalised (nn/moe.py, main)
        fact_is("mlp.moe.router.score", "softmax"),
        fact_is("mlp.moe.router.normalise", False),
        key("moe_intermediate_size", "mlp.moe.ffn"),
        custom(["shared_expert_intermediate_size"], ["mlp.moe.shared.ffn"], read=_read_shared, write=_write_shared,
               uses=["enable_shared_expert", "mlp.moe.ffn"],
               why="the key is always there, and a note where enable_shared_expert is false"),
        note("router_aux_loss_coef", "nanotron.router_aux_loss_coef", default=0.01),
        by_layer("layers", "mlp.moe", rules.indices(everywhere=-1), default=[-1]),
        configs.switched("enable_shared_expert", [fact_is("mlp.moe.shared.gate", True)]),  # it is always gated
        note("token_dispatcher_type", "nanotron.token_dispatcher_type", default="alltoall"),
    ]),
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
    key("sliding_window_size", "attention.window", default=None),
    by_layer("global_attn_layers", "attention.window", ~rules.indices(), plain=[]),
    custom(["grouped_query", "multi_query", "num_kv_heads"], ["attention.groups"], read=_read_groups, write=_write_groups, uses=[],
           why="neither flag means multi-query; grouped attention of one key and value has tensors of its own, which is a choice of the writer"),
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
    key("num_hidden_layers", "layers", type=values.layers),
    note("resid_pdrop", "nanotron.resid_pdrop", default=0.1),
    _head_dim("exact"),  # models/starcoder2.py asserts that hidden_size is a multiple
    key("rope_theta", "attention.rotary.theta", default=10000, null=configs.REQUIRED, via=values.integral),
    fact_is("attention.rotary.fraction", 1.0),
    note("scale_attention_softmax_in_fp32", "nanotron.scale_attention_softmax_in_fp32", default=True),
    key_is("scale_attn_weights", True, or_absent=True),
    key_is("use_position_embeddings", False, or_absent=True),
    key_is("use_rotary_embeddings", True, or_absent=True),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
])
# fmt: on


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


@schema.dataclass(frozen=True)
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


@schema.dataclass(frozen=True)
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

    @property
    def counts_tokens(self) -> bool:
        """Whether `checkpoint_metadata.json` says how many tokens a run consumed."""
        return self.checkpoint_version >= "1.5"


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
