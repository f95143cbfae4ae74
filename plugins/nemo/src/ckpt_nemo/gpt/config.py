"""What `model_config.yaml` says about a GPT model.

Two tables, because the same key means different things to the code before Megatron-Core ("legacy") and with it.
"""

from __future__ import annotations

from collections.abc import Callable

from ckpt_core.sdk import Config, Custom, custom, fact_is, ignore, key, note, same_as
from ckpt_megatron.args.router import ROUTER_KEYS
from ckpt_nemo.gpt.attention import (
    read_biases,
    read_head_dim,
    read_legacy_groups,
    read_legacy_scale,
    read_window,
    write_biases,
    write_head_dim,
    write_legacy_groups,
    write_legacy_scale,
    write_window,
)
from ckpt_nemo.gpt.mlp import (
    read_legacy_activation,
    read_mcore_activation,
    read_widths,
    write_legacy_activation,
    write_mcore_activation,
    write_widths,
)
from ckpt_nemo.gpt.norms import norms
from ckpt_nemo.gpt.positions import positions, read_scale, write_scale
from ckpt_nemo.gpt.training_keys import TRAINING
from ckpt_nemo.gpt.values import given, neutral, unwritten


def _nothing(*_: object) -> None:
    """The number of tokens is that of the tokenizer, and of the embedding's rows: no key says it."""


def _line(keys: list[str], claims: list[str], read: Callable, write: Callable) -> Custom:
    return custom(keys, claims, read=read, write=write)


# fmt: off
_COMMON = [
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    key("num_layers", "layers"),
    key("hidden_size", "hidden"),
    key("num_attention_heads", "attention.heads"),
    _line(["kv_channels"], ["attention.head_dim"], read_head_dim, write_head_dim),
    key("share_embeddings_and_output_weights", "head.tied", default=True),
    _line(["apply_embedding_scaling"], ["tokens.scale"], read_scale, write_scale),
    _line([], ["tokens.vocabulary", "tokens.padded_vocabulary"], _nothing, _nothing),
    note("bos_token_id", "bos"),
    note("eos_token_id", "eos"),
    note("pad_token_id", "pad"),
    neutral("transformer_block_type", "pre_ln"),
    neutral("attention_type", "multihead"),
    neutral("headscale", False),
    *map(unwritten, ("fp8_params", "use_kerple", "multi_query_attention", "parallel_attention", "new_decoder_architecture",
                        "normformer", "num_attention_heads_alibi", "drop_layers", "hyena")),
    *TRAINING,
]

LEGACY = Config("NeMo's GPT before Megatron-Core", [
    *_COMMON,
    key("ffn_hidden_size", "mlp.ffn"),
    _line(["num_query_groups"], ["attention.groups"], read_legacy_groups, write_legacy_groups),
    _line(["normalize_attention_scores"], ["attention.scale"], read_legacy_scale, write_legacy_scale),
    _line(["bias"], ["attention.out_bias", "attention.q_bias", "attention.k_bias", "attention.v_bias", "mlp.up_bias", "mlp.down_bias"],
          lambda config, facts, notes: read_biases(config, facts, False),
          lambda facts, notes, config: write_biases(facts, config, False)),
    _line(["activation", "openai_gelu", "bias_activation_fusion", "bias_gelu_fusion", "onnx_safe"], ["mlp.activation", "mlp.gated"],
          read_legacy_activation, write_legacy_activation),
    norms(False),
    positions("max_position_embeddings"),
    *map(unwritten, ("qkv_bias", "qk_layernorm", "layernorm_zero_centered_gamma", "window_size", "rotary_interleaved",
                        "scale_positional_embedding")),
    *ignore("name", "mcore_customization_config", why="read with mcore_gpt alone"),
    unwritten("num_moe_experts", 1),
])

MCORE = Config("NeMo's MCoreGPTModel", [
    *_COMMON,
    key("num_query_groups", "attention.groups", default=same_as("num_attention_heads")),
    neutral("normalize_attention_scores", True),
    _line(["window_size"], ["attention.window"], read_window, write_window),
    _line(["bias", "qkv_bias"], ["attention.out_bias", "attention.q_bias", "attention.k_bias", "attention.v_bias", "mlp.up_bias", "mlp.down_bias"],
          lambda config, facts, notes: read_biases(config, facts, bool(given(config, "qkv_bias", False))),
          lambda facts, notes, config: write_biases(facts, config, True)),
    _line(["activation", "openai_gelu", "bias_activation_fusion"], ["mlp.activation", "mlp.gated"],
          read_mcore_activation, write_mcore_activation),
    _line(["ffn_hidden_size", "num_moe_experts", "moe_layer_freq", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size",
           "moe_shared_expert_gate", *ROUTER_KEYS],
          ["mlp.ffn", "mlp.ffn?", "mlp.moe?", "mlp.moe.*", "mlp.moe.shared?"], read_widths, write_widths),
    norms(True),
    positions("encoder_seq_length", "scale_positional_embedding"),
    unwritten("name", "", "te_gpt"),                                  # which layers there are: get_specs
    unwritten("mcore_customization_config", {}),
    note("rotary_interleaved", "interleaved"),
    *ignore("onnx_safe", why="read by the code before Megatron-Core alone"),
    *map(unwritten, ("softmax_scale", "qk_l2_norm", "window_attn_skip_freq", "multi_latent_attention", "attention_output_gate",
                        "heterogeneous_block_specs", "apply_residual_connection_post_layernorm", "gated_linear_unit",
                        "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "use_post_attention_norm",
                        "moe_apply_probs_on_input", "moe_expert_capacity_factor", "moe_token_dropping", "no_rope_freq")),
])
# fmt: on
