"""What the keys of `model_config.yaml` mean: the fields of `litgpt.Config`, with its defaults where a file leaves them out."""

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    Activation,
    CkptError,
    Config,
    Facts,
    by_layer,
    configs,
    custom,
    decided,
    derived,
    fact_is,
    ignore,
    key,
    key_is,
    note,
    rules,
    same_as,
    schema,
)

QKV = ("attention.q_bias", "attention.k_bias", "attention.v_bias")
OTHERS = ("attention.out_bias", "mlp.up_bias", "mlp.down_bias")
SCALING = "attention.rotary.scaling"
CENTRED = "final_norm.zero_centred"


def read_name(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """`Config.norm_class` looks at the name: RMSNorms of Gemma add one to their weight, LayerNorms of OLMo have none."""
    notes["litgpt.name"] = name = config.get("name") or ""
    if "OLMo" in name and config.get("norm_class_name") != "RMSNorm":
        raise CkptError("norms without weights are not read", found=f"name {name!r}")
    facts[CENTRED] = "Gemma" in name and config.get("norm_class_name") == "RMSNorm"


def write_name(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    name = str(notes.get("litgpt.name") or "")
    fits = ("Gemma" in name) == facts[CENTRED] and "OLMo" not in name
    config["name"] = name if fits else "Gemma" if facts[CENTRED] else ""


def read_scale(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    facts["tokens.scale"] = config["n_embd"] ** 0.5 if config.get("scale_embeddings") else 1.0


def mlp(gated: bool, activation: Activation) -> dict[str, object]:
    return {"mlp.gated": gated, "mlp.activation": activation}


def biases(qkv: bool, others: bool) -> dict[str, object]:
    return dict.fromkeys(QKV, qkv) | dict.fromkeys(OTHERS, others)


# fmt: off
GPT = Config("litgpt's GPT", [
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    custom(["name"], [CENTRED], read=read_name, write=write_name, uses=["norm_class_name"],
           why="the name of the model; RMSNorms are centred on zero if it has Gemma in it"),
    ignore("hf_config", "padding_multiple", why="where the model came from, and how its rows were counted"),
    note("block_size", "max_positions", default=4096),
    key("n_layer", "layers", default=16),
    key("n_embd", "hidden", default=4096),
    key("padded_vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    note("vocab_size", "litgpt.vocab_size"),                # of Llama 3 without its special tokens: all rows are kept
    configs.choice("norm_class_name", {"RMSNorm":   {"final_norm.kind": "rms",   "final_norm.bias": False},
                               "LayerNorm": {"final_norm.kind": "layer", "final_norm.bias": True}}, default="LayerNorm"),
    key("norm_eps", "final_norm.eps", default=1e-5),
    configs.all_agree("final_norm", "attention.norm", "mlp.norm", why="all norms of a model are of one kind"),
    configs.switched("norm_qk",             [configs.all_agree("final_norm", "attention.qk_norm",  why="all norms are of one kind")]),
    configs.switched("post_attention_norm", [configs.all_agree("final_norm", "attention.out_norm", why="all norms are of one kind")]),
    configs.switched("post_mlp_norm",       [configs.all_agree("final_norm", "mlp.out_norm",       why="all norms are of one kind")]),
    key_is("norm_qk_type", "default", or_absent=True, why="norms over all heads together, of OLMo 2"),
    key_is("norm_1", True, or_absent=True),
    key_is("norm_2", True, or_absent=True),
    key("parallel_residual", "parallel", default=True),
    key_is("shared_attention_norm", False, or_absent=True, why="one norm for attention and MLP is not read"),
    key("n_head", "attention.heads", default=32),
    derived("head_size", "attention.head_dim", "n_embd / n_head"),
    key("n_query_groups", "attention.groups", default=same_as("n_head")),
    configs.choice(("bias", "attn_bias"), {                         # the projections of q, k, v have one if either says so
        (True, False): biases(True, True), (False, True): biases(True, False), (False, False): biases(False, False),
        (True, True): biases(True, True)}, default=(True, False)),
    key_is("attention_scores_scalar", None, or_absent=True, why="another scale of the scores is not read"),
    key("attention_logit_softcapping", "attention.softcap", default=None),
    key("sliding_window_size", "attention.window", default=None),
    by_layer("sliding_window_indices", "attention.window", rules.each(longer=True)),
    key("rope_base", "attention.rotary.theta", default=10000),
    key("rotary_percentage", "attention.rotary.fraction", default=0.25),
    key_is("rope_condense_ratio", 1, or_absent=True),
    key_is("rope_interleave", False, or_absent=True),
    key_is("rope_local_base_freq", None, or_absent=True, why="two bases of rotary positions are not read"),
    ignore("rope_indices", why="used with rope_local_base_freq alone"),
    configs.nested("rope_adjustments", [
        fact_is(f"{SCALING}.kind", schema.RotaryKind.LLAMA3),
        key("factor", f"{SCALING}.factor"),
        key("low_freq_factor", f"{SCALING}.low_frequency_factor"),
        key("high_freq_factor", f"{SCALING}.high_frequency_factor"),
        key("original_max_seq_len", f"{SCALING}.original_positions"),
    ], optional=True),
    derived("intermediate_size", "mlp.ffn", "4 * n_embd"),
    configs.choice(("mlp_class_name", "gelu_approximate"), {
        ("LLaMAMLP", "none"): mlp(True, Activation.SILU), ("LLaMAMLP", "tanh"): mlp(True, Activation.SILU),
        ("GemmaMLP", "tanh"): mlp(True, Activation.GELU_TANH), ("GemmaMLP", "none"): mlp(True, Activation.GELU_ERF),
        ("GptNeoxMLP", "none"): mlp(False, Activation.GELU_ERF), ("GptNeoxMLP", "tanh"): mlp(False, Activation.GELU_TANH),
    }, default=("GptNeoxMLP", "none")),
    key_is("n_expert", 0, or_absent=True, why="models with experts are not read"),
    key_is("latent_attention", None, or_absent=True, why="latent attention is not read"),
    ignore("moe_intermediate_size", "n_shared_expert", "n_expert_groups", "n_topk_groups", "n_topk_scores_per_group",
           "n_expert_per_token", "first_k_dense_replace", "routed_scaling_factor", "norm_topk_prob", why="used with experts alone"),
    decided(["scale_embeddings"], ["tokens.scale"], read=read_scale, uses=["n_embd"], values={"scale_embeddings": (False, True)},
            why="embeddings are multiplied by the root of n_embd, or not"),
    key("lm_head_bias", "head.bias", default=False),
    fact_is("head.tied", False),
    key("final_logit_softcapping", "head.softcap", default=None),
])
