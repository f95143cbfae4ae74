"""Models of transformers written as NeMo 2's families, and read again without the receipt."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ckpt_core import convert, open_checkpoint
from ckpt_core.architecture import Architecture, RotaryKind
from ckpt_core.errors import CkptError
from ckpt_core.testing import example, write_ir
from ckpt_core.verify.difference import architecture_differences
from ckpt_megatron.fiddle import read_graph
from ckpt_tests import config_classes
from ckpt_tests.families import CASES, build, tokens
from ckpt_tests.models import load, logits_of

FAMILIES = {
    "llama": ("llama.LlamaConfig", "LlamaModel"),
    "mistral": ("mistral.MistralConfig7B", "MistralModel"),
    "mixtral": ("mixtral.MixtralConfig", "MixtralModel"),
    "qwen2": ("qwen2.Qwen2Config", "Qwen2Model"),
    "qwen3": ("qwen3.Qwen3Config", "Qwen3Model"),
    "qwen3_moe": ("qwen3.Qwen3MoEConfig", "Qwen3Model"),
    "gpt2": ("base.GPTConfig", "GPTModel"),
    "nemotron": ("nemotron.NemotronConfig", "NemotronModel"),
    "starcoder2": ("starcoder2.Starcoder2Config", "Starcoder2Model"),
    "gemma": ("gemma.GemmaConfig", "GemmaModel"),
    "deepseek_v3": ("deepseek.DeepSeekV3Config", "DeepSeekModel"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_written_and_read(family: str, tmp_path: Path) -> None:
    source, run = config_classes.written(family, tmp_path, "nemo2")
    model = read_graph(json.loads((run / "context/io.json").read_text()), "io.json").arguments["model"]
    config, name = FAMILIES[family]
    package = f"nemo.collections.llm.gpt.model.{config.partition('.')[0]}"
    assert (model.arguments["config"].target, model.target) == (
        f"nemo.collections.llm.gpt.model.{config}",
        f"{package}.{name}",
    )
    config_classes.assert_same_model(source, run, vocab="61")


def test_scales_that_differ_between_layers_go_into_the_queries(tmp_path: Path) -> None:
    expected = logits_of(build(CASES["gpt2_scaled"], tmp_path / "hf"), tokens())
    convert(tmp_path / "hf", tmp_path / "run", to="nemo2")
    convert(tmp_path / "run", tmp_path / "back", to="hf")
    assert torch.allclose(logits_of(load(tmp_path / "back"), tokens()), expected, rtol=0, atol=1e-4)


SCALED = {"tokens__scale": 11.5}
LLAMA3 = {
    f"attention__rotary__scaling__{name}": value
    for name, value in {
        "kind": RotaryKind.LLAMA3,
        "factor": 8.0,
        "original_positions": 8192,
        "low_frequency_factor": 1.0,
        "high_frequency_factor": 4.0,
    }.items()
}


@pytest.mark.parametrize(
    ("model", "other"),
    [
        (example("llama", **SCALED, **LLAMA3), "attention.rotary.scaling.kind = llama3"),
        (example("latent", **config_classes.LATENT, **SCALED), "latent_attention.heads = 4"),
    ],
    ids=["scaled embedding and angles", "scaled embedding and latent attention"],
)
def test_what_no_class_does_together_is_refused(model: Architecture, other: str, tmp_path: Path) -> None:
    with pytest.raises(CkptError) as refusal:
        convert(write_ir(tmp_path / "ir", model), tmp_path / "run", to="nemo2")
    assert "tokens.scale = 11.5" in str(refusal.value) and other in str(refusal.value)


@pytest.mark.parametrize(("mscale", "holds"), [(0.7, False), (0.9, True)])
def test_two_scales_of_yarn_are_written_only_if_every_core_reads_them_alike(
    tmp_path: Path, mscale: float, holds: bool
) -> None:
    """A NeMo 2 config tells no version of Megatron-Core, and 0.13 changed which of the two scales the scores."""
    yarn = {
        "kind": RotaryKind.YARN,
        "factor": 4.0,
        "original_positions": 16,
        "mscale": mscale,
        "mscale_all_dim": 0.9,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
    model = example(
        "latent",
        **config_classes.LATENT,
        **{f"latent_attention__rotary__scaling__{name}": value for name, value in yarn.items()},
        latent_attention__scale=(0.1 * 0.9 * math.log(4.0) + 1) ** 2 / 24**0.5,
    )
    source = write_ir(tmp_path / "ir", model)
    if holds:
        convert(source, tmp_path / "run", to="nemo2")
        with open_checkpoint(tmp_path / "run") as run:
            assert not list(architecture_differences(model, run.architecture))
        return
    with pytest.raises(CkptError) as refusal:
        convert(source, tmp_path / "run", to="nemo2")
    assert "mscale = 0.7" in str(refusal.value) and "mscale_all_dim = 0.9" in str(refusal.value)
    convert(source, tmp_path / "bridge", to="megatron-bridge")  # whose config tells that its core is a later one
    with open_checkpoint(tmp_path / "bridge") as bridge:
        assert bridge.architecture.decoder.layers[0].latent_attention.rotary.scaling.mscale == 0.7


class TestNemo2Refusals(config_classes.Refusals):
    format = "nemo2"
    of_gemma2 = "attention.out_norm.eps"
