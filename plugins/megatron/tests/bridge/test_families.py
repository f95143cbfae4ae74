"""Models of transformers written as Megatron-Bridge's providers, and read again without the receipt."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ckpt_core import convert
from ckpt_tests import config_classes
from ckpt_tests.families import CASES, build

FAMILIES = (
    "mistral",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "nemotron",
    "starcoder2",
    "gemma",
    "deepseek_v3",
    "deepseek_v32",
    "gpt_oss",
)
CLASSES = {
    "gemma": "gemma.gemma_provider.GemmaModelProvider",
    "deepseek_v3": "mla_provider.MLAModelProvider",
    "deepseek_v32": "mla_provider.MLAModelProvider",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_written_and_read(family: str, tmp_path: Path) -> None:
    source, run = config_classes.written(family, tmp_path, "megatron-bridge")
    model = yaml.safe_load((run / "iter_0000000/run_config.yaml").read_text())["model"]
    expected = CLASSES.get(family, "gpt_provider.GPTModelProvider")
    assert model["_target_"] == f"megatron.bridge.models.{expected}"
    config_classes.assert_same_model(source, run)


def test_experts_with_biases_are_whole_on_every_tensor_parallel_rank(tmp_path: Path) -> None:
    """TransformerConfig builds no other ("Bias in Moe is only supported when ETP==1"), and without a number takes that of tp."""
    build(CASES["gpt_oss"], tmp_path / "hf")
    for tp, expected in ((1, None), (2, 1)):
        convert(tmp_path / "hf", tmp_path / f"tp{tp}", to="megatron-bridge", tp=tp)
        model = yaml.safe_load((tmp_path / f"tp{tp}/iter_0000000/run_config.yaml").read_text())["model"]
        assert model.get("expert_tensor_parallel_size") == expected
        assert (model["activation_func_clamp_value"], model["glu_linear_offset"]) == (7.0, 1.0)


class TestBridgeRefusals(config_classes.Refusals):
    format = "megatron-bridge"
    of_gemma2 = "attention.out_norm.eps"
