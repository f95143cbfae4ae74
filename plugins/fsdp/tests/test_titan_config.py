"""What torchtitan itself says of a model, given with `--config`: a dump of the arguments until 0.2, or the config of modules since 0.3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_core import fingerprint
from ckpt_core.api import config_architecture
from ckpt_core.errors import CkptError
from ckpt_core.testing.examples import ABSENT
from ckpt_tests.goldens import of_2026

Tree = dict[str, Any]
CASES = of_2026("torchtitan")
GOLDENS = {str(golden).partition("-")[2].partition("-")[0]: golden for golden in CASES}

# fmt: off
# What `dataclasses.asdict` makes of the arguments of 0.2 that the goldens have, and of a small DeepSeek V3.
COMMON = {"max_seq_len": 128, "depth_init": True, "attn_type": "sdpa", "attn_mask_type": "causal", "eos_id": 0}
SCALING = {"scaling_factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
NO_EXPERTS = {
    "num_experts": 8, "num_shared_experts": 1, "score_func": "sigmoid", "route_norm": False, "route_scale": 1.0, "gate_bias": False,
    "score_before_experts": True, "top_k": 1, "num_expert_groups": None, "num_limited_groups": None, "use_grouped_mm": True,
    "load_balance_coeff": 1e-3, "_debug_force_load_balance": False,
}
EXPERTS = {**NO_EXPERTS, "num_experts": 4, "num_shared_experts": 0, "score_func": "softmax", "route_norm": True, "top_k": 2, "score_before_experts": False}
QWEN3 = {
    "dim": 40, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 102, "head_dim": 12, "hidden_dim": 64, "norm_eps": 1e-6,
    "rope_theta": 1000000, "qk_norm": True, "enable_weight_tying": True, "moe_enabled": False, "moe_inter_dim": 768, "moe_args": NO_EXPERTS, **COMMON,
}
ARGS: dict[str, Tree] = {
    "llama3": {
        "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 104, "multiple_of": 8, "ffn_dim_multiplier": 0.65, "norm_eps": 1e-5,
        "rope_theta": 500000, "rope_scaling_args": SCALING, **COMMON,
    },
    "qwen3": QWEN3,
    "qwen3moe": {**QWEN3, "dim": 24, "head_dim": 8, "vocab_size": 101, "enable_weight_tying": False, "moe_enabled": True, "moe_inter_dim": 18, "moe_args": EXPERTS},
    "deepseek_v3": {
        "max_batch_size": 8, "max_seq_len": 16384, "vocab_size": 212, "dim": 132, "inter_dim": 56, "moe_inter_dim": 20, "n_layers": 3,
        "n_dense_layers": 1, "n_heads": 4, "norm_eps": 1e-6, "expert_parallel_comm_backend": "standard", "q_lora_rank": 44, "kv_lora_rank": 24,
        "qk_nope_head_dim": 14, "qk_rope_head_dim": 10, "v_head_dim": 16, "attn_type": "sdpa", "attn_mask_type": "causal", "original_seq_len": 4096,
        "rope_theta": 10000.0, "rope_factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 0.7,
        "moe_args": {**EXPERTS, "num_experts": 10, "num_shared_experts": 2, "score_func": "sigmoid", "top_k": 3, "route_scale": 2.5,
                     "num_expert_groups": 2, "num_limited_groups": 1},
    },
}


# And what `to_dict` makes of the config of 0.3.
def linear(into: int, out: int, **more: object) -> Tree:
    return {"in_features": into, "out_features": out, "bias": False, "sharding_config": None, "param_init": {"weight": "<function>"}, **more}


def norm(size: int, eps: float) -> Tree:
    return {"normalized_shape": size, "eps": eps, "elementwise_affine": True, "param_init": None, "sharding_config": None}


def feed_forward(dim: int, width: int) -> Tree:
    return {"w1": linear(dim, width), "w2": linear(width, dim), "w3": linear(dim, width), "param_init": None, "sharding_config": None}


def rope(dim: int, theta: float, **more: object) -> Tree:
    return {"dim": dim, "max_seq_len": 128, "theta": theta, "scaling": "none", **SCALING, "rope_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_seq_len": 4096, "truncate": True, **more}


def attention(dim: int, head: int, theta: float, norms: Tree | None, head_dim: int | None, **more: object) -> Tree:
    return {"n_heads": 4, "inner_attention": {"block_size": 128, "kernel_options": {}}, "dim": dim, "qk_norm": norms, "n_kv_heads": 2, "head_dim": head_dim,
            "qkv_linear": {"head_dim": head, "n_heads": 4, "n_kv_heads": 2, "wqkv": linear(dim, 8 * head)}, "wo": linear(4 * head, dim),
            "rope": rope(head, theta, **more)}


def mixture(dim: int, width: int, experts: int, top_k: int, shared: Tree | None, **more: object) -> Tree:
    return {"num_experts": experts, "load_balance_coeff": 1e-3, "shared_experts": shared,
            "routed_experts": {"inner_experts": {"dim": dim, "hidden_dim": width, "num_experts": experts}, "token_dispatcher": {"num_experts": experts, "top_k": top_k}},
            "router": {"num_experts": experts, "gate": linear(dim, experts), "num_expert_groups": None, "num_limited_groups": None, "top_k": top_k,
                       "score_func": "softmax", "route_norm": True, "route_scale": 1.0, **more}}


def model(dim: int, vocabulary: int, eps: float, tied: bool, attention: Tree, *blocks: Tree, **more: object) -> Tree:
    layers = [
        {"attention": {**attention, "param_init": {"weight": f"<function of layer {number}>"}}, "feed_forward": None, "moe": None,
         "attention_norm": norm(dim, eps), "ffn_norm": norm(dim, eps), **block}
        for number, block in enumerate(blocks)
    ]
    return {"dim": dim, "vocab_size": vocabulary, "lm_head": linear(dim, vocabulary), "tok_embeddings": {"num_embeddings": vocabulary, "embedding_dim": dim},
            "norm": norm(dim, eps), "layers": layers, "enable_weight_tying": tied, **more}


LATENT = {
    "n_heads": 4, "inner_attention": {"block_size": 128, "kernel_options": {}}, "dim": 132, "wq": None, "wq_a": linear(132, 44), "wq_b": linear(44, 96),
    "wkv_a": linear(132, 34), "wkv_b": linear(24, 120), "wo": linear(64, 132), "q_lora_rank": 44, "kv_lora_rank": 24, "q_norm": norm(44, 1e-6),
    "kv_norm": norm(24, 1e-6), "qk_nope_head_dim": 14, "qk_rope_head_dim": 10, "v_head_dim": 16, "mscale": 0.7,
    "rope": rope(10, 10000.0, scaling="yarn", rope_factor=40),
}
SPARSE = {"moe": mixture(132, 20, 10, 3, feed_forward(132, 40), score_func="sigmoid", route_scale=2.5, num_expert_groups=2, num_limited_groups=1)}
TREES: dict[str, Tree] = {
    "llama3": model(32, 104, 1e-5, False, attention(32, 8, 500000, None, None, scaling="llama"), *2 * ({"feed_forward": feed_forward(32, 56)},)),
    "qwen3": model(40, 102, 1e-6, True, attention(40, 12, 1000000, norm(12, 1e-6), 12), *2 * ({"feed_forward": feed_forward(40, 64)},)),
    "qwen3moe": model(24, 101, 1e-6, False, attention(24, 8, 1000000, norm(8, 1e-6), 8), *2 * ({"moe": mixture(24, 18, 4, 2, None)},)),
    "deepseek_v3": model(132, 212, 1e-6, False, LATENT, {"feed_forward": feed_forward(132, 56)}, SPARSE, SPARSE, mtp_layers=[]),
}
# Those of transformers, where no golden has one.
CONFIGS: dict[str, Tree] = {
    "qwen3moe": {
        "model_type": "qwen3_moe", "hidden_size": 24, "vocab_size": 101, "hidden_act": "silu", "tie_word_embeddings": False, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 2, "intermediate_size": 64, "moe_intermediate_size": 18, "num_experts": 4,
        "num_experts_per_tok": 2, "norm_topk_prob": True, "rms_norm_eps": 1e-6, "rope_theta": 1000000, "max_position_embeddings": 128,
    },
    "deepseek_v3": {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 132, "vocab_size": 212, "hidden_act": "silu", "tie_word_embeddings": False,
    "kv_lora_rank": 24, "qk_nope_head_dim": 14, "qk_rope_head_dim": 10, "v_head_dim": 16, "q_lora_rank": 44, "rms_norm_eps": 1e-6, "num_attention_heads": 4,
    "num_key_value_heads": 4, "num_hidden_layers": 3, "intermediate_size": 56, "moe_intermediate_size": 20, "first_k_dense_replace": 1, "n_routed_experts": 10,
    "num_experts_per_tok": 3, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "n_group": 2, "topk_group": 1, "n_shared_experts": 2,
    "max_position_embeddings": 16384,
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
                        "mscale": 0.7, "mscale_all_dim": 0.7},
    },
}
# fmt: on


def dump(folder: Path, document: Tree) -> str:
    path = folder / "args.json"
    path.write_text(json.dumps(document))
    return str(path)


def of_run(name: str, tree: Tree) -> Tree:
    """What `--debug.save_config_file` writes."""
    spec = {"name": name.removesuffix("moe"), "flavor": "debugmodel", "model": tree}
    return {"model_spec": spec, "training": {"steps": 3}, "dump_folder": "./outputs"}


FORMS: dict[str, Callable[[str], Tree]] = {
    "arguments of 0.2": lambda name: ARGS[name],
    "config of 0.3": lambda name: TREES[name],
    "settings of a run of 0.3": lambda name: of_run(name, TREES[name]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ARGS)
def test_what_it_says_of_a_model_is_a_config(name: str, form: str, tmp_path: Path) -> None:
    """The same architecture as that of transformers' config, and so the same model."""
    own, golden = dump(tmp_path, FORMS[form](name)), GOLDENS.get(name)
    hf = str(golden.folder / "config.json") if golden else str(tmp_path / "config.json")
    if golden is None:
        (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    assert config_architecture(own) == config_architecture(hf)
    if golden is not None:
        options = {"drop_expert_bias": "true"} if name == "qwen3moe" else {}
        assert fingerprint(golden.checkpoint, config=own, options=options) == fingerprint(
            golden.checkpoint, config=hf, options=options
        )


def changed(document: Tree, path: str, value: object) -> Tree:
    """The document with another value at a path, or without it."""
    copied = json.loads(json.dumps(document))  # in which layers share nothing
    *folders, last = path.split(".")
    inner: Any = copied
    for folder in folders:
        inner = inner[int(folder) if isinstance(inner, list) else folder]
    if value is ABSENT:
        del inner[last]
    else:
        inner[last] = value
    return copied


# fmt: off
WRONG: list[tuple[Tree, str, object, str]] = [
    (ARGS["llama3"],       "rope_scaling_args",                         ABSENT,     "rope_scaling_args"),  # 0.1 has no such field, and does not scale
    (ARGS["llama3"],       "norm_eps",                                  ABSENT,     "norm_eps"),
    (ARGS["llama3"],       "use_rope",                                  False,      "use_rope"),
    (ARGS["qwen3"],        "qk_norm",                                   False,      "qk_norm"),
    (ARGS["qwen3moe"],     "moe_args.gate_bias",                        True,       "gate_bias"),
    (ARGS["qwen3moe"],     "moe_args.top_k",                            ABSENT,     "top_k"),
    (ARGS["qwen3moe"],     "moe_args.num_expert_groups",                3,          "num_limited_groups"),
    (ARGS["deepseek_v3"],  "mscale",                                    "much",     "mscale"),
    (ARGS["deepseek_v3"],  "n_dense_layers",                            3,          "n_dense_layers"),
    (ARGS["deepseek_v3"],  "moe_args._debug_force_load_balance",        True,       "_debug_force_load_balance"),
    (TREES["llama3"],      "layers.1.attention.rope.theta",             10.0,       "attention of layer 1"),
    (TREES["llama3"],      "layers.1.surprise",                         {},         r"layers\.1\.surprise"),
    (TREES["llama3"],      "lm_head.bias",                             True,       "bias"),
    (TREES["llama3"],      "layers.0.attention",                        None,       "attention"),
    (TREES["llama3"],      "norm.elementwise_affine",                   False,      "elementwise_affine"),
    (TREES["llama3"],      "layers",                                    {"0": {}},  "not a list of layers"),
    (TREES["llama3"],      "surprise",                                  1,          "surprise"),
    (of_run("qwen3", TREES["llama3"]),   "dump_folder",                 "x",        "called qwen3 and built as llama3"),
    (of_run("gpt_oss", TREES["llama3"]), "dump_folder",                 "x",        "gpt_oss"),
]
# fmt: on


@pytest.mark.parametrize(
    ("document", "path", "value", "said"), WRONG, ids=[f"{path}: {said}" for _, path, _, said in WRONG]
)
def test_what_says_less_or_more_is_refused(document: Tree, path: str, value: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=said):
        config_architecture(dump(tmp_path, changed(document, path, value)))


def in_all_layers(tree: Tree, path: str, value: object) -> Tree:
    """The tree with another value at a path in every layer."""
    for number in range(len(tree["layers"])):
        tree = changed(tree, f"layers.{number}.{path}", value)
    return tree


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (in_all_layers(TREES["qwen3"], "attention.rope.scaling", "yarn"), "scaling"),
        (in_all_layers(TREES["qwen3"], "attention.inner_attention", {"window_size": [64, 0]}), "window_size"),
        (in_all_layers(TREES["qwen3"], "attention.qkv_linear.wqkv.bias", True), "bias"),
    ],
)
def test_modules_that_no_table_has_are_refused(tree: Tree, said: str, tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=said):
        config_architecture(dump(tmp_path, tree))


def test_a_deepseek_has_the_eps_of_its_latents(tmp_path: Path) -> None:
    """torchtitan has one for all norms, transformers 1e-6 in these, so a model of torchtitan with another can't be one of transformers."""
    own = config_architecture(dump(tmp_path, changed(ARGS["deepseek_v3"], "norm_eps", 1e-5)))
    assert own.decoder is not None
    latent = own.decoder.layers[0].latent_attention
    assert latent is not None and latent.q_norm is not None
    assert latent.kv_norm.eps == latent.q_norm.eps == 1e-5


def test_scores_may_multiply_what_goes_into_experts(tmp_path: Path) -> None:
    """By default until 0.2; no class of transformers with these layers computes so."""
    own = config_architecture(dump(tmp_path, changed(ARGS["qwen3moe"], "moe_args.score_before_experts", True)))
    assert own.decoder is not None
    assert all(layer.mlp.moe is not None and layer.mlp.moe.router.on_input for layer in own.decoder.layers)
