"""Every family through Megatron TP 2 PP 2: the same tensors, config and logits, or refused by what Megatron lacks.

GPTModel of Megatron-Core holds Llama-like models, LayerNorm and biases, experts and latent attention; not the norms on
outputs, scaled embeddings, soft caps, ALiBi and parallel blocks of other families.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.api import config_architecture, plan_conversion
from ckpt_core.errors import CkptError
from ckpt_core.reference import Inputs
from ckpt_core.testing.examples import ABSENT, example, write_ir
from ckpt_tests import forwards, tiny
from ckpt_tests.families import CASES, build, tokens
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.models import load, logits_of, weights

TOLERANCE = 1e-5
HELD = ["llama", "mistral", "qwen2", "qwen2_moe", "smollm3", "starcoder2", "mixtral", "qwen3", "qwen3_moe", "gpt2", "nemotron", "phi3",
        "deepseek_v2_lite", "deepseek_v3", "deepseek_v3_halves", "falcon_in_sequence", "glm", "glm4_moe", "arcee", "internlm3", "dots1", "hy_v3", "ernie4_5", "stablelm", "gpt_oss",
        "cwm", "exaone", "exaone_moe", "flint", "gpt_bigcode", "helium", "iquestcoder", "jais2", "ministral", "persimmon", "sarvam_mla", "sarvam_moe", "solar_open", "youtu"]  # fmt: skip
# Tensor parallel ranks do not divide experts with biases.
WHOLE_EXPERTS = {"gpt_oss"}
# Exact, but said in other words: a scale that no argument sets is folded into q, biases that only all layers can have
# are written as zeros.
REWRITTEN = {
    "gpt2_scaled": "attention scale folded into q",
    "gpt_neox_in_sequence": "zero biases added",
    "seed_oss": "zero biases added",
}
# Written exactly, and no class of transformers has what it is then: GPT-Neo's scores are never scaled, and GPT-2 has no windows.
ONE_WAY = {"gpt_neo": "attention scale folded into q"}
REFUSED = {
    "gemma": ["no tokens.scale", "mlp.activation = gelu_tanh, mlp.gated = True"],
    "gemma2": ["no tokens.scale", "no head.softcap", "no mlp.out_norm.kind", "no attention.out_norm.kind", "no attention.softcap"],
    "phi3_longrope": ["attention.rotary.scaling.kind = longrope"],
    "olmo2": ["no mlp.out_norm.kind", "no attention.out_norm.kind", "all norms of a model are of one kind"],
    # A group is scored by its best topk / group_topk experts, here two, and by HF's best one.
    "deepseek_v2": ["mlp.moe.router.group_score = max, top_k = 2, group_top_k = 1"],
    "bloom": ["no tokens.norm.kind", "no attention.alibi"],
    "falcon": ["no parallel", "no shared_norm"],
    "falcon_per_head": ["no parallel", "no shared_norm"],
    "falcon_new": ["no parallel"],
    "falcon_new_one_norm": ["no parallel", "no shared_norm"],
    "gpt_neox": ["no parallel"],
    "gemma3": ["no tokens.scale", "no mlp.out_norm.kind", "no attention.out_norm.kind"],
    "olmo3": ["no mlp.out_norm.kind", "no attention.out_norm.kind"],
    "olmoe": ["no attention.qk_norm_whole"],
    "glm4": ["no mlp.out_norm.kind", "no attention.out_norm.kind"],
    "minimax_m2": ["no attention.qk_norm_whole"],
    "cohere": ["no head.scale", "no parallel", "no shared_norm"],
    "cohere2": ["no head.scale", "no parallel", "no shared_norm"],
    "ernie4_5_moe": ["only a sigmoid router has expert_bias", "mlp.moe.router.score = softmax"],
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
    "granite_swa": ["no head.scale", "no residual_scale"],
    "granitemoe_swa": ["no head.scale", "no residual_scale"],
    "hyperclovax": ["no head.scale", "no mlp.out_norm.kind"],
    "llama4": ["no attention.chunk", "no attention.temperature.interval", "attention.qk_norm in every layer or in none"],
    "llama4_chunks": ["no attention.chunk", "no attention.temperature.interval", "attention.qk_norm in every layer or in none"],
    "ministral3": ["no attention.temperature.interval", "no attention.temperature.scale"],
    "deepseek_v32": ["no latent_attention.indexer.heads", "no latent_attention.indexer.top_k"],
    "glm_moe_dsa": ["no latent_attention.indexer.heads", "latent_attention.indexer in every layer or in none"],
    "kimi_linear": ["no delta.key_heads", "latent_attention in every layer or in none"],
    "glm4_moe_lite": ["latent_attention.norm.eps = 1e-05, latent_attention.kv_norm.eps = 1e-06"],
    "afmoe": ["no tokens.scale", "no mlp.out_norm.kind", "no attention.out_gate"],
    "biogpt": ["no tokens.scale", "no positions.offset"],
    "flex_olmo": ["no mlp.out_norm.kind", "no attention.qk_norm_whole"],
    "gptj": ["no head.bias", "no parallel", "no shared_norm"],
    "mellum": ["attention.rotary.theta = "],
    "mpt": ["no attention.alibi"],
    "bamba": ["no mamba.heads", "attention in every layer or in none"],
    "falcon_h1": ["no tokens.scale", "no attention.in_scale", "no mlp.gate_scale", "no mamba.heads"],
    "granite_hybrid": ["no tokens.scale", "no mamba.heads", "attention in every layer or in none"],
    "mamba2": ["no mamba.heads", "there is no attention.heads"],
    "phimoe": ["mlp.moe.router.margin = 0.4"],
    "apertus": ["xielu"],
    "olmo_hybrid": ["no mlp.out_norm.kind", "no delta.key_heads"],
    "nemotron_h": ["no mamba.heads", "mlp in every layer or in none"],
    "olmo": ["no attention.norm.weight"],
    "phi": ["no head.bias", "no parallel", "no shared_norm"],
    "vaultgemma": ["no tokens.scale", "no head.softcap", "no attention.softcap"],
}  # fmt: skip
# Keys that say nothing about these models: layers that predict further tokens, of which there are none, and heads of
# keys where multi_query says one.
WITHOUT_EFFECT = {"num_nextn_predict_layers", "num_kv_heads"}


@pytest.mark.parametrize("to", ["megatron", "megatron-bridge"])
def test_latent_attention_that_does_not_rotate_is_refused_by_name(to: str, tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example("latent", latent_attention__rotary=ABSENT))
    with pytest.raises(CkptError, match=r"no latent_attention\.rotary"):
        convert(tmp_path / "ir", tmp_path / "out", to=to)
    assert_nothing_at(tmp_path / "out")


def made(name: str, folder: Path):
    return build(CASES[name], folder) if name in CASES else tiny.build(folder, name, num_hidden_layers=4)


def config_of(folder: Path) -> dict[str, object]:
    return {key: value for key, value in tiny.auto_config(folder).items() if key not in WITHOUT_EFFECT}


def through_megatron(source: Path, folder: Path, tp: int = 2) -> list[str]:
    """HF -> Megatron -> HF; returns the rewrites on the way."""
    options = {"container": "torch", "make_vocab_size_divisible_by": "16"}
    receipt = convert(source, folder / "run", to="megatron", tp=tp, pp=2, options=options)
    convert(folder / "run", folder / "back", to="hf")
    return [rewrite for rewrite in receipt.body["target"]["decisions"]["rewrites"] if "vocabulary" not in rewrite]


def test_every_family_is_held_or_refused() -> None:
    assert {*CASES, *tiny.CONFIGS} == {*HELD, *REWRITTEN, *ONE_WAY, *REFUSED}


@pytest.mark.parametrize("name", HELD)
def test_a_family_comes_back_from_megatron_as_it_was(name: str, tmp_path: Path) -> None:
    model = made(name, tmp_path / "hf")
    assert through_megatron(tmp_path / "hf", tmp_path, tp=1 if name in WHOLE_EXPERTS else 2) == []
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "hf"))
    there, back = config_of(tmp_path / "hf"), config_of(tmp_path / "back")
    common = there.keys() & back.keys()  # a class's config keeps keys that it does not know
    assert {key: back[key] for key in common} == {key: there[key] for key in common}
    assert config_architecture(str(tmp_path / "back/config.json")) == config_architecture(
        str(tmp_path / "hf/config.json")
    )
    assert (logits_of(load(tmp_path / "back"), tokens()) - logits_of(model.float(), tokens())).abs().max() <= TOLERANCE
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_family_is_rewritten_exactly(name: str, tmp_path: Path) -> None:
    model = made(name, tmp_path / "hf")
    (rewrite,) = through_megatron(tmp_path / "hf", tmp_path)
    assert REWRITTEN[name] in rewrite
    assert (logits_of(load(tmp_path / "back"), tokens()) - logits_of(model, tokens())).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", ONE_WAY)
def test_what_is_written_computes_the_same_though_no_class_of_transformers_is_it(name: str, tmp_path: Path) -> None:
    model = made(name, tmp_path / "hf")
    receipt = convert(tmp_path / "hf", tmp_path / "run", to="megatron", tp=2, pp=2)
    assert any(ONE_WAY[name] in rewrite for rewrite in receipt.body["target"]["decisions"]["rewrites"])
    with open_checkpoint(tmp_path / "run") as written:
        off_by = forwards.off_by(written, Inputs(tokens=tokens()), logits_of(model, tokens()))
        assert off_by <= forwards.TOLERANCE


def test_experts_with_biases_are_not_divided_in_files_of_ranks(tmp_path: Path) -> None:
    """Core 0.15 and later: "Bias in Moe is only supported when ETP==1". Files of torch_dist are loaded by any ranks, and say so."""
    made("gpt_oss", tmp_path / "hf")
    with pytest.raises(CkptError, match=r"mlp\.clamp = 7\.0(.|\n)*torch_dist"):
        convert(tmp_path / "hf", tmp_path / "run", to="megatron", tp=2, options={"container": "torch"})
    assert_nothing_at(tmp_path / "run")
    plan = plan_conversion(tmp_path / "hf", tmp_path / "run", to="megatron", tp=2, ep=7)
    assert plan.target.config["expert_tensor_parallel_size"] == 1
    said = {key: plan.target.config[key] for key in ("quick_geglu", "activation_func_clamp_value", "glu_linear_offset")}
    assert said == {"quick_geglu": True, "activation_func_clamp_value": 7.0, "glu_linear_offset": 1.0}


@pytest.mark.parametrize("name", REFUSED)
def test_what_megatron_cannot_hold_is_refused_by_name(name: str, tmp_path: Path) -> None:
    made(name, tmp_path / "hf")
    with pytest.raises(CkptError) as refusal:
        convert(tmp_path / "hf", tmp_path / "run", to="megatron")
    for lacks in REFUSED[name]:
        assert lacks in str(refusal.value)
    assert_nothing_at(tmp_path / "run")


@pytest.mark.parametrize("to", ["megatron", "megatron-bridge", "nemo2"])
def test_another_epsilon_of_norms_on_latents_is_taken_where_it_is_asked_for(to: str, tmp_path: Path) -> None:
    """GLM-4.7-Flash and Moonlight: transformers norms their latents with 1e-6, and Megatron with the 1e-5 of the other norms."""
    made("glm4_moe_lite", tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "run", to=to, options={"src.latent_norm_eps": "1e-5"})
    with open_checkpoint(tmp_path / "run") as found:
        latent = found.architecture.decoder.layers[0].latent_attention
    assert (latent.norm.eps, latent.q_norm.eps, latent.kv_norm.eps) == (1e-5,) * 3
    with pytest.raises(CkptError, match="eps"):
        convert(tmp_path / "run", tmp_path / "no", to="hf")
    receipt = convert(tmp_path / "run", tmp_path / "back", to="hf", options={"src.latent_norm_eps": "1e-6"})
    assert any("1e-06 as the epsilon of norms on latents" in loss["subject"] for loss in receipt.losses)
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "hf"))
