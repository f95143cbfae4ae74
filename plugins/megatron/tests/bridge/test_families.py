"""Models of transformers written as Megatron-Bridge's providers, and read again without the receipt."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ckpt_tests import config_classes

FAMILIES = ("mistral", "mixtral", "qwen2_moe", "qwen3_moe", "nemotron", "starcoder2", "gemma", "deepseek_v3")
CLASSES = {"gemma": "gemma.gemma_provider.GemmaModelProvider", "deepseek_v3": "mla_provider.MLAModelProvider"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_written_and_read(family: str, tmp_path: Path) -> None:
    source, run = config_classes.written(family, tmp_path, "megatron-bridge")
    model = yaml.safe_load((run / "iter_0000000/run_config.yaml").read_text())["model"]
    expected = CLASSES.get(family, "gpt_provider.GPTModelProvider")
    assert model["_target_"] == f"megatron.bridge.models.{expected}"
    config_classes.assert_same_model(source, run)


class TestBridgeRefusals(config_classes.Refusals):
    format = "megatron-bridge"
