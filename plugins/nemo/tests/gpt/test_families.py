"""Every family through NeMo TP 2 PP 2: the same tensors and logits, or refused by what NeMo's GPT lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_core import convert, fingerprint
from ckpt_core.errors import CkptError
from ckpt_core.testing import example, variations, write_ir
from ckpt_tests import nemo, tiny
from ckpt_tests.families import CASES, made, tokens
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.models import load, logits_of, weights

# name: the names of tensors that are written, and the version whose code reads all keys of the config
HELD = {
    "llama": ("mcore", "1.23.0"), "mistral": ("mcore", "1.23.0"), "qwen2": ("mcore", "2.0.0"), "qwen2_moe": ("mcore", "2.4.0"),
    "starcoder2": ("mcore", "1.23.0"), "mixtral": ("mcore", "1.23.0"), "qwen3": ("mcore", "2.0.0"), "qwen3_moe": ("mcore", "2.1.0"),
    "gpt2": ("legacy", "1.23.0"), "nemotron": ("mcore", "1.23.0"), "phi3": ("mcore", "1.23.0"), "gemma": ("mcore", "2.0.0"),
    "glm": ("mcore", "2.0.0"), "glm4_moe": ("mcore", "2.2.0"), "arcee": ("mcore", "1.23.0"), "internlm3": ("mcore", "1.23.0"),
    "ernie4_5": ("mcore", "1.23.0"), "hy_v3": ("mcore", "2.2.0"), "stablelm": ("mcore", "2.0.0"),
    "exaone": ("mcore", "1.23.0"), "helium": ("mcore", "2.0.0"), "iquestcoder": ("mcore", "1.23.0"), "jais2": ("mcore", "1.23.0"),
    "persimmon": ("mcore", "2.0.0"), "sarvam_moe": ("mcore", "2.2.0"), "solar_open": ("mcore", "2.2.0"),
}  # fmt: skip
REWRITTEN = {
    "gpt2_scaled": "attention scale folded into q",
    "gpt_neox_in_sequence": "zero biases added",
    "seed_oss": "zero biases added",
}
REFUSED = {
    "smollm3": ["attention.rotary? = ", "all layers have rotary positions or none has"],
    "gemma2": ["no head.softcap", "no mlp.out_norm.kind", "no attention.softcap"],
    "phi3_longrope": ["attention.rotary.scaling.kind = longrope"],
    "olmo2": ["no mlp.out_norm.kind", "no attention.out_norm.kind"],
    "deepseek_v2": ["no latent_attention.heads"],
    "deepseek_v2_lite": ["no latent_attention.heads"],
    "deepseek_v3": ["no latent_attention.heads"],
    "deepseek_v3_halves": ["no latent_attention.heads"],
    "bloom": ["no tokens.norm.kind", "no attention.alibi"],
    "falcon": ["no parallel", "no shared_norm"],
    "falcon_per_head": ["no parallel", "no shared_norm"],
    "falcon_new": ["no parallel"],
    "falcon_new_one_norm": ["no parallel", "no shared_norm"],
    "falcon_in_sequence": ["tp=2 does not divide axis g=1"],
    "gpt_neox": ["no parallel"],
    "gemma3": ["no mlp.out_norm.kind"],
    "olmo3": ["no mlp.out_norm.kind", "no attention.out_norm.kind"],
    "olmoe": ["no attention.qk_norm_whole"],
    "glm4": ["no mlp.out_norm.kind"],
    "minimax_m2": ["no attention.qk_norm_whole"],
    "cohere": ["no head.scale", "no parallel", "no shared_norm"],
    "cohere2": ["no head.scale", "no parallel", "no shared_norm"],
    "ernie4_5_moe": ["expert_bias", "mlp.moe.router.score = softmax"],
    "dots1": ["attention.window in every layer or in none"],
    "exaone4": ["no mlp.out_norm.kind", "no attention.out_norm.kind"],
    "opt": ["no positions.offset"],
    "hunyuan": ["no attention.qk_norm_after_rotary"],
    "hunyuan_moe": ["no attention.qk_norm_after_rotary"],
    "qwen3_next": ["no attention.out_gate", "no delta.key_heads"],
    "qwen3_5": ["no attention.out_gate", "no delta.key_heads"],
    "qwen3_5_moe": ["no attention.out_gate", "no delta.key_heads"],
    "granite": ["no head.scale", "no residual_scale"],
    "granitemoe": ["no head.scale", "no residual_scale"],
    "granitemoeshared": ["no head.scale", "no residual_scale"],
    "granite_swa": ["no head.scale", "no attention.sinks", "no residual_scale"],
    "granitemoe_swa": ["no head.scale", "no attention.sinks", "no residual_scale"],
    "hyperclovax": ["no head.scale", "no mlp.out_norm.kind", "no residual_scale"],
    "llama4": ["no attention.chunk", "no attention.temperature.interval", "attention.qk_norm in every layer or in none"],
    "llama4_chunks": ["no attention.chunk", "no attention.temperature.interval", "attention.qk_norm in every layer or in none"],
    "ministral3": ["no attention.temperature.interval", "no attention.temperature.scale"],
    "deepseek_v32": ["no latent_attention.heads"],
    "glm_moe_dsa": ["no latent_attention.heads"],
    "kimi_linear": ["no latent_attention.heads"],
    "glm4_moe_lite": ["no latent_attention.heads"],
    "afmoe": ["no mlp.out_norm.kind", "no attention.out_gate"],
    "biogpt": ["no positions.offset", "tokens.scale"],
    "cwm": ["attention.window in every layer or in none", "attention.rotary.scaling.kind = llama3"],
    "exaone_moe": ["attention.window in every layer or in none"],
    "flex_olmo": ["no mlp.out_norm.kind", "no attention.qk_norm_whole"],
    "flint": ["attention.window in every layer or in none", "no attention.sinks"],
    "gpt_bigcode": ["tp=2 does not divide axis g=1"],
    "gpt_neo": ["attention.window in every layer or in none"],
    "gptj": ["no head.bias", "no parallel", "no shared_norm"],
    "mellum": ["attention.window in every layer or in none", "attention.rotary.theta = "],
    "ministral": ["attention.window in every layer or in none"],
    "mpt": ["no attention.alibi"],
    "bamba": ["no mamba.heads", "attention in every layer or in none"],
    "falcon_h1": ["no attention.in_scale", "no mlp.gate_scale", "no mamba.heads"],
    "granite_hybrid": ["no head.scale", "no mamba.heads", "attention in every layer or in none"],
    "mamba2": ["no mamba.heads", "there is no attention.heads"],
    "phimoe": ["mlp.moe.router.margin = 0.4"],
    "apertus": ["xielu"],
    "olmo_hybrid": ["no mlp.out_norm.kind", "no delta.key_heads"],
    "nemotron_h": ["pp=2 does not divide the 5 layers"],
    "olmo": ["final_norm.weight = False"],
    "phi": ["no head.bias", "no parallel", "no shared_norm"],
    "sarvam_mla": ["no latent_attention.heads"],
    "vaultgemma": ["no head.softcap", "attention.window in every layer or in none", "no attention.softcap"],
    "youtu": ["no latent_attention.heads"],
    "gpt_oss": ["no mlp.clamp", "no mlp.up_offset", "no attention.sinks", "attention.rotary.scaling.kind = yarn"],
}  # fmt: skip
OPTIONS = {"make_vocab_size_divisible_by": "16"}


def test_every_family_is_held_or_refused() -> None:
    assert {*CASES, *tiny.CONFIGS} == {*HELD, *REWRITTEN, *REFUSED}


@pytest.mark.parametrize("name", HELD)
def test_a_family_comes_back_from_nemo_as_it_was(name: str, tmp_path: Path) -> None:
    model = made(name, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", tp=2, pp=2, options=OPTIONS)
    config = nemo.config_of(tmp_path / "x.nemo")
    names, version = HELD[name]
    assert ("mcore" if config["mcore_gpt"] else "legacy", config["nemo_version"]) == (names, version)
    assert (config["tensor_model_parallel_size"], config["pipeline_model_parallel_size"]) == (2, 2)
    assert config["override_vocab_size"] == 64  # no tokenizer is embedded that would lead NeMo to it
    assert fingerprint(tmp_path / "x.nemo") == fingerprint(tmp_path / "hf")
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf")
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "hf"))
    assert (logits_of(load(tmp_path / "back"), tokens()) - logits_of(model.float(), tokens())).abs().max() <= 1e-5


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_family_is_rewritten_exactly(name: str, tmp_path: Path) -> None:
    model = made(name, tmp_path / "hf")
    receipt = convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", tp=2, pp=2, options=OPTIONS)
    assert any(REWRITTEN[name] in rewrite for rewrite in receipt.body["target"]["decisions"]["rewrites"])
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf")
    assert (logits_of(load(tmp_path / "back"), tokens()) - logits_of(model, tokens())).abs().max() <= 1e-5


@pytest.mark.parametrize("name", REFUSED)
def test_what_nemo_cannot_hold_is_refused_by_name(name: str, tmp_path: Path) -> None:
    made(name, tmp_path / "hf")
    with pytest.raises(CkptError) as refusal:
        convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", tp=2, pp=2)
    for lacks in REFUSED[name]:
        assert lacks in str(refusal.value)
    assert_nothing_at(tmp_path / "x.nemo")


@pytest.mark.parametrize("backend", ["ranks", "zarr", "torch_dist"])
def test_layers_with_and_without_experts_in_every_backend(backend: str, tmp_path: Path) -> None:
    made("qwen3_moe", tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", tp=2, options={**OPTIONS, "backend": backend})
    assert fingerprint(tmp_path / "x.nemo") == fingerprint(tmp_path / "hf")


def test_llama_3_scaling_is_said_where_it_is_nemos(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    tiny.build(tmp_path / "hf", "llama", rope_parameters=scaling, max_position_embeddings=131072)
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", tp=2)
    config = nemo.config_of(tmp_path / "x.nemo")
    assert (
        config["scale_positional_embedding"] is True
        and config["rotary_base"] == 500000
        and config["nemo_version"] == "2.0.0"
    )
    assert fingerprint(tmp_path / "x.nemo") == fingerprint(tmp_path / "hf")
    tiny.build(tmp_path / "other", "llama", rope_parameters=scaling | {"factor": 32.0}, max_position_embeddings=131072)
    with pytest.raises(CkptError, match="scale_positional_embedding, whose numbers are built in: factor 8"):
        convert(tmp_path / "other", tmp_path / "y.nemo", to="nemo")


def test_a_window_counts_the_query_itself(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "mistral", sliding_window=7)
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo")
    assert nemo.config_of(tmp_path / "x.nemo")["window_size"] == [6, 0]
    assert fingerprint(tmp_path / "x.nemo") == fingerprint(tmp_path / "hf")


def test_a_bias_of_the_router_is_refused(tmp_path: Path) -> None:
    model = variations(example("gpt2", layers=2))["mlp.moe.router.bias"].architecture
    with pytest.raises(CkptError, match="no router has a bias"):
        convert(write_ir(tmp_path / "ir", model), tmp_path / "x.nemo", to="nemo")
    assert_nothing_at(tmp_path / "x.nemo")
