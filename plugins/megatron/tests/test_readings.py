"""What the args mean, and layouts of files that no golden has, made from those that ckpt writes."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.api import read_checkpoint
from ckpt_core.architecture import Activation, Architecture, PerLayer, RotaryKind, architecture_of
from ckpt_core.errors import CkptError
from ckpt_core.storage.chunks.tensor import tiles
from ckpt_core.testing import example, write_ir
from ckpt_megatron.config import read_args
from ckpt_tests import megatron, tiny
from ckpt_tests.distributed import DistributedEntries
from ckpt_tests.families import CASES, build

ARGS = {
    "num_layers": 4,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_query_groups": 1,
    "group_query_attention": False,
    "padded_vocab_size": 160,
    "max_position_embeddings": 64,
    "position_embedding_type": "rope",
}
LATENT = {
    **ARGS,
    "multi_latent_attention": True,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_head_dim": 12,
    "qk_pos_emb_head_dim": 8,
    "v_head_dim": 10,
    "qk_layernorm": True,
    "normalization": "RMSNorm",
}
MOE = {**ARGS, "num_experts": 8, "ffn_hidden_size": 72, "swiglu": True}


def architecture(args: dict[str, object]) -> Architecture:
    facts, _ = read_args(args, "args")
    return architecture_of(facts, "args")


def first(args: dict[str, object]):
    return architecture(args).decoder.layers[0]


CLAMPED = {"quick_geglu": True, "activation_func_clamp_value": 7.0, "glu_linear_offset": 1.0}


def test_the_clamp_and_the_offset_of_quick_gelu() -> None:
    mlp = first({**ARGS, **CLAMPED}).mlp
    assert (mlp.activation, mlp.gated, mlp.clamp, mlp.up_offset) == (Activation.GELU_QUICK, True, 7.0, 1.0)
    usual = first({**ARGS, **CLAMPED, "activation_func_clamp_value": None, "glu_linear_offset": None}).mlp
    assert usual == first({**ARGS, "quick_geglu": True}).mlp and (usual.clamp, usual.up_offset) == (None, 0.0)
    with pytest.raises(CkptError, match="activation_func_clamp_value"):
        first({**ARGS, **CLAMPED, "activation_func_clamp_value": -7.0})
    with pytest.raises(CkptError, match=r"glu_linear_offset(.|\n)*silu"):  # bias_swiglu_fusion leaves it out
        first({**ARGS, "swiglu": True, "glu_linear_offset": 1.0})


def test_groups_count_only_with_their_flag() -> None:
    assert first(ARGS).attention.groups == 6
    assert first({**ARGS, "group_query_attention": True}).attention.groups == 1


@pytest.mark.parametrize(
    ("args", "activation", "gated"),
    [
        ({"bias_gelu_fusion": True}, Activation.GELU_TANH, False),
        ({"bias_gelu_fusion": False}, Activation.GELU_ERF, False),
        # validate_args turns the fusion off where there is no bias
        ({"bias_gelu_fusion": True, "add_bias_linear": False}, Activation.GELU_ERF, False),
        ({"bias_gelu_fusion": True, "disable_bias_linear": True}, Activation.GELU_ERF, False),
        ({"bias_gelu_fusion": True, "add_bias_linear": False, "add_qkv_bias": True}, Activation.GELU_ERF, False),
        ({}, Activation.GELU_ERF, False),
        ({"swiglu": True, "bias_gelu_fusion": True}, Activation.SILU, True),
        ({"quick_geglu": True}, Activation.GELU_QUICK, True),
        ({"squared_relu": True, "bias_gelu_fusion": False}, Activation.RELU_SQUARED, False),
        ({"openai_gelu": True, "use_legacy_models": True}, Activation.GELU_TANH, False),
        ({"openai_gelu": True}, Activation.GELU_ERF, False),  # Core never looks at it
    ],
)
def test_the_activation(args: dict[str, object], activation: Activation, gated: bool) -> None:
    mlp = first({**ARGS, **args}).mlp
    assert (mlp.activation, mlp.gated) == (activation, gated)


@pytest.mark.parametrize(
    ("args", "ffn"),
    [({"ffn_hidden_size": 88}, 88), ({}, 192), ({"swiglu": True}, 128), ({"ffn_hidden_size": None}, 192)],
)
def test_the_width_of_the_mlp(args: dict[str, object], ffn: int) -> None:
    assert first({**ARGS, **args}).mlp.ffn == ffn


@pytest.mark.parametrize(
    ("args", "eps", "centred"),
    [
        ({}, 1e-5, False),
        ({"layernorm_epsilon": 1e-6}, 1e-6, False),
        ({"norm_epsilon": 1e-6}, 1e-6, False),
        ({"apply_layernorm_1p": True}, 1e-5, True),
        ({"layernorm_zero_centered_gamma": True, "norm_epsilon": 1e-3}, 1e-3, True),
    ],
)
def test_norms_by_their_names_over_time(args: dict[str, object], eps: float, centred: bool) -> None:
    norm = first({**ARGS, **args}).attention.norm
    assert (norm.kind, norm.bias, norm.eps, norm.zero_centred) == ("layer", True, eps, centred)


@pytest.mark.parametrize(
    ("args", "inputs", "output"),
    [
        ({}, True, True),
        ({"add_bias_linear": False}, False, False),
        ({"disable_bias_linear": True}, False, False),
        ({"add_bias_linear": False, "add_qkv_bias": True}, True, False),
    ],
)
def test_biases(args: dict[str, object], inputs: bool, output: bool) -> None:
    layer = first({**ARGS, **args})
    assert (layer.attention.q_bias, layer.attention.out_bias, layer.mlp.up_bias) == (inputs, output, output)


def test_positions() -> None:
    assert architecture({**ARGS, "position_embedding_type": "learned_absolute"}).decoder.positions.count == 64
    assert architecture(
        {key: value for key, value in ARGS.items() if key != "position_embedding_type"}
    ).decoder.positions
    assert first({**ARGS, "position_embedding_type": None, "use_rotary_position_embeddings": True}).attention.rotary
    assert first({**ARGS, "position_embedding_type": "none"}).attention.rotary is None
    assert first(ARGS).attention.rotary.theta == 10000
    rotary = first(
        {**ARGS, "rotary_percent": 0.5, "rotary_base": 500, "rotary_seq_len_interpolation_factor": 4}
    ).attention.rotary
    assert (rotary.fraction, rotary.theta, rotary.scaling.kind, rotary.scaling.factor) == (
        0.5,
        500,
        RotaryKind.LINEAR,
        4,
    )
    scaling = first({**ARGS, "use_rope_scaling": True}).attention.rotary.scaling
    assert (
        scaling.factor,
        scaling.low_frequency_factor,
        scaling.high_frequency_factor,
        scaling.original_positions,
    ) == (8, 1, 4, 8192)
    for unrotated in (2, [0, 1, 0, 1]):
        layers = architecture({**ARGS, "no_rope_freq": unrotated}).decoder.layers
        assert [layer.attention.rotary is not None for layer in layers] == [True, False, True, False]


def test_windows_count_the_position_itself() -> None:
    for skip, windowed in (
        (None, [True] * 4),
        (2, [True, False, True, False]),
        ([0, 1, 1, 0], [False, True, True, False]),
    ):
        layers = architecture({**ARGS, "window_size": (127, 0), "window_attn_skip_freq": skip}).decoder.layers
        assert [layer.attention.window for layer in layers] == [128 if here else None for here in windowed]


@pytest.mark.parametrize(
    ("frequency", "sparse"),
    [(1, [True] * 4), (2, [True, False, True, False]), ([0, 1, 1, 1], [False, True, True, True])],
)
def test_which_layers_have_experts(frequency: object, sparse: list[bool]) -> None:
    layers = architecture({**MOE, "moe_layer_freq": frequency}).decoder.layers
    assert [layer.mlp.moe is not None for layer in layers] == sparse


def test_routers() -> None:
    router = first(MOE).mlp.moe.router
    assert (router.top_k, router.score, router.normalise, router.scale) == (2, "softmax", True, 1.0)
    assert not first({**MOE, "moe_router_pre_softmax": True}).mlp.moe.router.normalise
    args = {
        **MOE,
        "moe_router_score_function": "sigmoid",
        "moe_router_topk": 4,
        "moe_router_num_groups": 4,
        "moe_router_group_topk": 2,
    }
    router = first(
        {**args, "moe_router_topk_scaling_factor": 2.5, "moe_router_enable_expert_bias": True}
    ).mlp.moe.router
    assert (router.normalise, router.scale, router.correction_bias, router.group_score) == (True, 2.5, True, "top2")
    assert first({**args, "moe_router_topk": 2}).mlp.moe.router.group_score == "max"
    with pytest.raises(CkptError, match="groups of experts"):
        first({**args, "moe_router_topk": 6})
    assert first({**MOE, "moe_ffn_hidden_size": 40}).mlp.moe.ffn == 40
    assert first(MOE).mlp.moe.ffn == 72


YARN = {
    **ARGS,
    "position_embedding_type": "yarn",
    "rotary_scaling_factor": 4.0,
    "yarn_original_max_position_embeddings": 32,
    "yarn_beta_fast": 24.0,
    "yarn_beta_slow": 2.0,
    "yarn_correction_range_round_to_int": False,
    "mscale": 1.0,
    "mscale_all_dim": 0.0,
}


def scaling(**args: object):
    return first({**YARN, **args}).attention.rotary.scaling


def test_yarn_of_usual_attention() -> None:
    """YarnRotaryEmbedding takes the whole head; of the factor of cos and sin, 1 and 0 are the usual one."""
    found = first({**YARN, "rotary_percent": 0.5, "rotary_seq_len_interpolation_factor": 2}).attention.rotary
    assert found.fraction == 1.0 and found.scaling == scaling()
    told = (scaling().kind, scaling().factor, scaling().original_positions, scaling().beta_fast, scaling().beta_slow)
    assert told == (RotaryKind.YARN, 4.0, 32, 24.0, 2.0)
    assert scaling().truncate is False and scaling().attention_factor is None and scaling().mscale is None
    assert (scaling(mscale=0.7, mscale_all_dim=0.4).mscale, scaling(mscale=0.7, mscale_all_dim=0.4).mscale_all_dim) == (
        0.7,
        0.4,
    )
    assert scaling(mscale=0.5).attention_factor == pytest.approx(0.05 * 1.3862943611198906 + 1)


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("rotary_scaling_factor", "factor", 1.0),
        ("yarn_original_max_position_embeddings", "original_positions", 4096),
        ("yarn_beta_fast", "beta_fast", 32.0),
        ("yarn_beta_slow", "beta_slow", 1.0),
        ("yarn_correction_range_round_to_int", "truncate", True),
    ],
)
def test_null_means_what_megatron_lm_takes_for_it(key: str, name: str, value: object) -> None:
    """_apply_yarn_config_from_args; args without the key are older than it, and no Megatron-LM built a model of them."""
    assert getattr(scaling(**{key: None}), name) == value
    with pytest.raises(CkptError, match=f"{key}(.|\n)*0.19"):
        first({other: one for other, one in YARN.items() if other != key})


def test_yarn_that_the_args_do_not_say_is_refused() -> None:
    with pytest.raises(CkptError, match="enable_gpt_oss"):
        first({**ARGS, "enable_gpt_oss": True})


YARN_40 = (0.1 * 3.6888794541139363 + 1) ** 2 / 20**0.5  # mscale 1, a factor of 40


def test_latent_attention_has_yarn_by_default() -> None:
    plain = first({**LATENT, "rope_type": "rope", "rotary_scaling_factor": 1.0}).latent_attention
    assert plain.rotary.scaling is None
    assert plain.scale is None
    assert first({**LATENT, "rotary_scaling_factor": 1.0}).latent_attention == plain
    yarn = first({**LATENT, "rotary_scaling_factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0}).latent_attention
    assert yarn.rotary.scaling.kind is RotaryKind.YARN
    assert yarn.rotary.scaling.original_positions == 4096
    assert yarn.scale == pytest.approx(YARN_40)


def test_the_scale_of_latent_scores_follows_the_version() -> None:
    """mscale until core 0.13, whose args lack rope_type; mscale_all_dim since, and without yarn too."""
    stretched = {**LATENT, "rotary_scaling_factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.0}
    assert first(stretched).latent_attention.scale == pytest.approx(YARN_40)
    recent = {"rope_type": "yarn", "layernorm_epsilon": 1e-5}
    assert first({**stretched, **recent}).latent_attention.scale is None
    unrotated = {**stretched, "rope_type": "rope", "layernorm_epsilon": 1e-5, "mscale_all_dim": 1.0}
    assert first(unrotated).latent_attention.scale == pytest.approx(YARN_40)
    assert first(unrotated).latent_attention.rotary.scaling is None
    with pytest.raises(CkptError, match="nothing tells the version"):
        first({**stretched, "rope_type": "yarn", "norm_epsilon": 1e-5})


def test_one_mscale_alone_is_a_factor_of_the_rotation() -> None:
    """HF counts mscale and mscale_all_dim only together; Megatron each by itself."""
    args = {**LATENT, "rope_type": "yarn", "layernorm_epsilon": 1e-5, "rotary_scaling_factor": 40.0}
    found = first({**args, "mscale": 0.5, "mscale_all_dim": 0.0}).latent_attention.rotary.scaling
    assert found.attention_factor == pytest.approx(0.05 * 3.6888794541139363 + 1)
    assert (
        first({**args, "mscale": 1.0, "mscale_all_dim": 0.0}).latent_attention.rotary.scaling.attention_factor is None
    )


def test_latent_attention_looks_at_no_other_rotary_args() -> None:
    plain = {**LATENT, "rope_type": "rope", "rotary_scaling_factor": 1.0}
    others = {"use_rope_scaling": True, "rotary_seq_len_interpolation_factor": 4.0, "no_rope_freq": 2}
    assert first({**plain, **others}) == first(plain)
    assert first({**ARGS, "use_rope_scaling": True}).attention.rotary.scaling.kind is RotaryKind.LLAMA3


def test_no_position_embedding() -> None:
    learned = {**ARGS, "position_embedding_type": "learned_absolute"}
    assert architecture(learned).decoder.positions.count == 64
    assert architecture({**learned, "add_position_embedding": False}).decoder.positions is None
    assert (
        architecture({**ARGS, "position_embedding_type": None, "add_position_embedding": True}).decoder.positions.count
        == 64
    )


def test_the_true_vocabulary() -> None:
    assert architecture(ARGS).tokens.vocabulary == 160
    assert architecture({**ARGS, "vocab_size": 131, "orig_vocab_size": 131}).tokens.vocabulary == 131
    assert architecture({**ARGS, "vocab_size": 200}).tokens.vocabulary == 160


@pytest.mark.parametrize(
    "args",
    [
        {"normalization": "PowerNorm"},
        {"position_embedding_type": "mrope"},
        {"softmax_type": "off-by-one"},
        {"attention_output_gate": True},
        {"experimental_attention_variant": "dsa"},
        {"hybrid_override_pattern": "M*M-"},
        {"activation_func_clamp_value": 7.0},
        {"moe_latent_size": 12},
        {"moe_expert_capacity_factor": 1.25},
        {"moe_router_load_balancing_type": ["aux_loss", "sinkhorn"]},
        {"moe_router_force_load_balancing": True},
        {"heterogeneous_block_specs": True},
        {"window_size": (4, 4)},
        {"num_layers": None},
        {"moe_layer_freq": [1, 0], "num_experts": 4},
    ],
)
def test_what_is_not_supported_is_named(args: dict[str, object]) -> None:
    (key, *_) = args
    with pytest.raises(CkptError, match=key):
        architecture({**ARGS, **args})


@pytest.mark.parametrize(
    "key",
    [
        "swiglu", "quick_geglu", "squared_relu", "bias_gelu_fusion", "openai_gelu", "use_legacy_models", "add_bias_linear", "disable_bias_linear",
        "add_qkv_bias", "group_query_attention", "qk_layernorm", "untie_embeddings_and_output_weights", "rotary_interleaved", "use_rope_scaling",
        "use_rotary_position_embeddings", "apply_residual_connection_post_layernorm", "moe_router_pre_softmax", "moe_router_enable_expert_bias",
    ],
)  # fmt: skip
def test_a_switch_is_on_or_off(key: str) -> None:
    """A string "False" would be true."""
    args = {**MOE, "swiglu": False} | ({"use_legacy_models": True} if key == "openai_gelu" else {})
    for value in ("False", 2, [1]):
        with pytest.raises(CkptError, match=key):
            architecture({**args, key: value})
    with contextlib.suppress(CkptError):
        architecture({**args, key: None})


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ({"layernorm_epsilon": 1e-5, "norm_epsilon": 1e-6}, "'layernorm_epsilon' and 'norm_epsilon' disagree"),
        ({"layernorm_zero_centered_gamma": True, "apply_layernorm_1p": False}, "'apply_layernorm_1p' disagree"),
        ({"swiglu": True, "squared_relu": True}, "more than one activation"),
        ({"moe_layer_freq": -1}, "moe_layer_freq"),
        ({"moe_layer_freq": [0, 1, 2, 1]}, "neither 0 nor 1"),
        ({"no_rope_freq": True}, "no_rope_freq"),
        ({"window_size": (7, 0), "window_attn_skip_freq": 0}, "window_attn_skip_freq"),
        ({"moe_router_group_topk": 1}, "moe_router_num_groups"),
        ({"rotary_base": -1}, "rotary_base"),
        ({"rotary_percent": "1"}, "rotary_percent"),
        ({"rotary_seq_len_interpolation_factor": 0}, "rotary_seq_len_interpolation_factor"),
        ({"moe_router_load_balancing_type": "quantile"}, "moe_router_load_balancing_type"),
    ],
)
def test_args_that_contradict_or_make_no_sense(args: dict[str, object], problem: str) -> None:
    architecture(MOE)
    with pytest.raises(CkptError, match=problem):
        architecture({**MOE, **args})


def test_latent_attention_rotates_wholly() -> None:
    with pytest.raises(CkptError, match="rotary_percent"):
        architecture({**LATENT, "rope_type": "rope", "rotary_percent": 0.5})
    with pytest.raises(CkptError, match="rope_type"):
        architecture({**LATENT, "rope_type": "dynamic"})


def test_per_layer_facts_are_per_layer() -> None:
    facts, _ = read_args({**MOE, "moe_layer_freq": [0, 1, 1, 1]}, "args")
    assert facts["mlp.moe?"] == PerLayer((False, True, True, True))


# --- files that others write -------------------------------------------------------------------------------------------


def rewritten(run: Path, change: Callable[[dict], None]) -> None:
    for path in run.rglob("*.pt"):
        content = torch.load(path, weights_only=False)
        change(content)
        torch.save(content, path)
    (run / "ckpt-receipt.json").unlink(missing_ok=True)


def test_expert_ranks_apart_from_tensor_ranks(tmp_path: Path) -> None:
    """TP 2, EP 2, expert TP 1 on two ranks: Megatron writes the diagonal, and each file holds whole experts."""
    build(CASES["mixtral"], tmp_path / "hf", num_local_experts=8)
    options = {"container": "torch", "names": "local", "make_vocab_size_divisible_by": "1"}
    convert(
        tmp_path / "hf",
        tmp_path / "dense",
        to="megatron",
        tp=2,
        options=options | {"make_vocab_size_divisible_by": "31"},
    )
    convert(
        tmp_path / "hf",
        tmp_path / "experts",
        to="megatron",
        ep=2,
        options=options | {"make_vocab_size_divisible_by": "62"},
    )
    for rank in range(2):
        folder = tmp_path / f"run/release/mp_rank_{rank:02d}_{rank:03d}"
        folder.mkdir(parents=True)
        one, two = (
            torch.load(tmp_path / path / "model_optim_rng.pt", weights_only=False)
            for path in (f"dense/release/mp_rank_{rank:02d}", f"experts/release/mp_rank_00_{rank:03d}")
        )
        one["model"] = {name: value for name, value in one["model"].items() if ".experts." not in name}
        one["model"] |= {name: value for name, value in two["model"].items() if ".experts." in name}
        one["args"].expert_model_parallel_size, one["args"].expert_tensor_parallel_size = 2, 1
        torch.save(one, folder / "model_optim_rng.pt")
    (tmp_path / "run/latest_checkpointed_iteration.txt").write_text("release")
    with open_checkpoint(tmp_path / "run") as source:
        assert source.checkpoint.parallel == {"tp": 2, "pp": 1, "ep": 2, "etp": 1}
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")


def test_predicting_layers_are_left_behind(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama")
    convert(tmp_path / "hf", tmp_path / "run", to="megatron", options={"container": "torch"})
    rewritten(
        tmp_path / "run", lambda content: content["model"].update({"mtp.layers.0.eh_proj.weight": torch.zeros(3)})
    )
    with open_checkpoint(tmp_path / "run") as source:
        assert [loss.subject for loss in source.checkpoint.provenance.losses] == ["mtp.*"]
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")


def test_predicting_layers_may_have_a_stage_of_their_own(tmp_path: Path) -> None:
    """The final norm then is with the last decoder layer, and the head with the layers that predict."""
    tiny.build(tmp_path / "hf", "llama", num_hidden_layers=4)
    convert(tmp_path / "hf", tmp_path / "run", to="megatron", pp=2, options={"container": "torch"})
    (tmp_path / "run/ckpt-receipt.json").unlink()
    rewritten(tmp_path / "run", lambda content: content["args"].__dict__.update(pipeline_model_parallel_size=3, rank=0))
    folder = tmp_path / "run/release"
    last = torch.load(folder / "mp_rank_00_001/model_optim_rng.pt", weights_only=False)
    first = torch.load(folder / "mp_rank_00_000/model_optim_rng.pt", weights_only=False)
    embedding = {name: value for name, value in first["model"].items() if name.startswith("embedding.")}
    head = {name: last["model"].pop(name) for name in list(last["model"]) if name.startswith("output_layer.")}
    torch.save(last, folder / "mp_rank_00_001/model_optim_rng.pt")
    last["model"] = embedding | head | {"mtp.layers.0.eh_proj.weight": torch.zeros(3)}
    (folder / "mp_rank_00_002").mkdir()
    torch.save(last, folder / "mp_rank_00_002/model_optim_rng.pt")
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")


def test_masters_in_flat_buffers_are_refused(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama")
    convert(tmp_path / "hf", tmp_path / "run", to="megatron", options={"container": "torch_dist"})
    files = DistributedEntries()
    entry = files.find(str(tmp_path / "run"))[0]
    buffer = "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_(torch.bfloat16, torch.float32).bucket_idx_0.param"
    files._change(entry, buffer, torch.zeros(640))
    (tmp_path / "run/ckpt-receipt.json").unlink()
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")
    with pytest.raises(CkptError, match="flat buffers of one parallel layout"):
        fingerprint(tmp_path / "run", weights="master")


def test_wrapped_models_have_a_prefix(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama")
    convert(tmp_path / "hf", tmp_path / "run", to="megatron", options={"container": "torch"})
    rewritten(
        tmp_path / "run",
        lambda content: content.update(
            model={f"module.module.{name}": value for name, value in content["model"].items()}
        ),
    )
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")


def test_fused_down_projections(tmp_path: Path) -> None:
    build(CASES["deepseek_v3"], tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "run", to="megatron", options={"container": "torch", "names": "te"})

    def fuse(content: dict) -> None:
        for name in [name for name in content["model"] if name.endswith("linear_q_down_proj.weight")]:
            base = name.removesuffix("linear_q_down_proj.weight")
            parts = [
                content["model"].pop(base + part)
                for part in ("linear_q_down_proj.weight", "linear_kv_down_proj.weight")
            ]
            content["model"][base + "linear_qkv_down_proj.weight"] = torch.cat(parts)

    rewritten(tmp_path / "run", fuse)
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")


def test_gate_and_up_stored_apart(tmp_path: Path) -> None:
    """singleton_local_shards: the halves of linear_fc1 are two tensors."""
    tiny.build(tmp_path / "hf", "llama")
    convert(tmp_path / "hf", tmp_path / "run", to="megatron", options={"container": "torch_dist"})
    files = DistributedEntries()
    entry = next(entry for entry in files.find(str(tmp_path / "run")) if entry.key.endswith("mlp.linear_fc1.weight"))
    whole = files._tensor(entry)
    files.remove(entry)
    for suffix, half in (("_w", whole[:, :56]), ("_v", whole[:, 56:])):
        files._change(entry, entry.key + suffix, half.clone())
    (tmp_path / "run/ckpt-receipt.json").unlink()
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")


def test_chunks_of_any_grid_are_read(tmp_path: Path) -> None:
    """Megatron cuts chunks by layer and by tensor rank, FSDP by rows; here across layers."""
    tiny.build(tmp_path / "hf", "llama")
    convert(tmp_path / "hf", tmp_path / "run", to="megatron", options={"container": "torch_dist"})
    files = DistributedEntries()
    for entry in files.find(str(tmp_path / "run")):
        files._change(entry, entry.key, files._tensor(entry))  # one chunk for all layers
    (tmp_path / "run/ckpt-receipt.json").unlink()
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")


def test_a_subclass_of_metadata_is_read(tmp_path: Path) -> None:
    """Core 0.15 pickled a class of its own."""
    tiny.build(tmp_path / "hf", "llama")
    convert(tmp_path / "hf", tmp_path / "run", to="megatron", options={"container": "torch_dist"})
    path = tmp_path / "run/release/.metadata"
    data = path.read_bytes()
    old = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    assert pickle.loads(data) and data.count(old) == 1
    path.write_bytes(data.replace(old, b"cmegatron.core.dist_checkpointing.strategies.torch\nMCoreMetadata\n"))
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_zarr_is_read(dtype: str, tmp_path: Path) -> None:
    """The backend until core 0.15: an array per key, cut by layer, with bfloat16 under tensorstore's name."""
    tiny.build(tmp_path / "hf", "qwen2_moe")
    convert(tmp_path / "hf", tmp_path / "run", to="megatron", dtype=dtype, options={"container": "torch_dist"})
    folder = tmp_path / "run/release"
    for key, tensor in megatron.dist_tensors(folder).items():
        chunk = [1, *tensor.shape[1:]] if key.startswith("decoder.layers.") else list(tensor.shape)
        array = {"shape": list(tensor.shape), "chunks": chunk, "dtype": {"fp32": "<f4", "bf16": "bfloat16"}[dtype]}
        array |= {"zarr_format": 2, "compressor": None, "fill_value": None, "filters": None, "order": "C"}
        (folder / key).mkdir()
        (folder / key / ".zarray").write_text(json.dumps(array))
        for index, part in enumerate(tensor.split(chunk[0])):
            name = ".".join(map(str, [index, *([0] * (tensor.dim() - 1))]))
            (folder / key / name).write_bytes(part.contiguous().view(torch.uint8).numpy().tobytes())
    for path in [*folder.glob("*.distcp"), folder / ".metadata", tmp_path / "run/ckpt-receipt.json"]:
        path.unlink()
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr", "sharded_backend_version": 1}))
    convert(tmp_path / "hf", tmp_path / "half", to="hf", dtype=dtype)
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "half")
    (folder / "decoder.final_layernorm.weight/0").unlink()
    with pytest.raises(CkptError, match="final_layernorm"):
        fingerprint(tmp_path / "run")


@pytest.mark.parametrize(
    ("shape", "boxes", "expected"),
    [
        ((4, 2), [((0, 0), (4, 2))], True),
        ((4, 2), [((0, 0), (2, 2)), ((2, 0), (2, 2))], True),
        ((4, 2), [((0, 0), (2, 2)), ((1, 0), (2, 2))], False),
        ((4, 2), [((0, 0), (3, 1)), ((3, 0), (1, 2)), ((0, 1), (3, 1))], True),
        ((3, 3), [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1))], True),
        ((3, 3), [((0, 0), (1, 2)), ((0, 1), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1))], False),
        ((4,), [((0,), (5,))], False),
        ((4,), [], False),
        ((0, 3), [], True),
        ((), [((), ())], True),
        ((2,), [((0,), (1,)), ((0,), (1,))], False),
    ],
)
def test_tiling(shape: tuple[int, ...], boxes: list, expected: bool) -> None:
    assert tiles(shape, boxes) is expected


@pytest.mark.parametrize(
    "renamed",
    [
        {
            "embedding.": "language_model.embedding.",
            "decoder.layers.": "language_model.encoder.layers.",
            "output_layer.": "lm_head.",
        },
        {"decoder.layers.": "encoder.layers."},
    ],
    ids=["BERT of megatron.legacy", "BertModel of core"],
)
def test_another_model_of_megatron_is_refused_by_name(renamed: dict[str, str], tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example("llama", hidden=216))
    convert(tmp_path / "ir", tmp_path / "run", to="megatron", options={"container": "torch", "names": "local"})

    def new(name: str) -> str:
        for old, other in renamed.items():
            name = name.replace(old, other)
        return name

    def rename(content: dict) -> None:
        content["model"] = {new(name): tensor for name, tensor in content["model"].items()}

    rewritten(tmp_path / "run", rename)
    with pytest.raises(CkptError, match=r"BertModel or T5Model.*only GPTModel is read"):
        read_checkpoint(tmp_path / "run", format="megatron")
