"""`load_model` of a checkpoint of every format is the model that transformers loads from the converted folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ckpt_core import UsageError, convert
from ckpt_core.plugins.discovery import format_names
from ckpt_hf import load_model
from ckpt_tests.goldens import SHIPPED

SHIPPED_2026 = SHIPPED.parent / "golden-2026"
transformers = pytest.importorskip("transformers")

SOURCES = {
    "nanotron": SHIPPED / "nanotron/main_llama_tied_tp2_pp2/checkpoint",
    "megatron": SHIPPED / "megatron/mixtral_groupedmlp_ep2_torch/checkpoint",
    "megatron-bridge": SHIPPED / "megatron-bridge/gpt_shouldpad_tp2/checkpoint",
    "nemo": SHIPPED / "nemo-gpt/mcore-llama-gqa-tp2-nemo-distckpt/checkpoint/megatron_gpt.nemo",
    "nemo2": SHIPPED / "nemo2/llama31_gqa_tp2/checkpoint",
    "nxdt": SHIPPED / "nxdt/train_hf_mixtral_tp2_xser/checkpoint",
    "megatron-deepspeed": SHIPPED / "megatron-deepspeed/bloom-tp2-dp2-bf16-ds070/checkpoint",
    "fsdp": SHIPPED_2026 / "fsdp/verl-fsdp2-hsdp2x2-llama-bf16/checkpoint",
    "torchtitan": SHIPPED_2026 / "torchtitan/titan-llama3-fsdp2-tp2/checkpoint",
    "hf": SHIPPED_2026 / "training/hf-trainer-llama-cosine/checkpoint/checkpoint-6",
}


def config_of(source: Path) -> Path | None:
    """The config that is given to a source which says none itself."""
    configs = (source.parent / "config.json", source.parent / "config" / "config.json")
    return next((config for config in configs if config.is_file()), None)


@pytest.mark.parametrize("format", SOURCES)
def test_of_every_format(format: str, tmp_path: Path) -> None:
    if format not in format_names():
        pytest.skip(f"format {format} is not installed")
    source = SOURCES[format]
    convert(source, tmp_path / "hf", to="hf", config=config_of(source))
    folder = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto").state_dict()
    model = load_model(source, config=config_of(source))
    straight = model.state_dict()
    assert straight.keys() == folder.keys() and not model.training
    for name, tensor in straight.items():
        assert torch.equal(tensor.float(), folder[name].float()), name


def test_a_model_that_is_too_large_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_hf.model.state_dict", lambda checkpoint: pytest.fail("it is read"))
    with pytest.raises(UsageError, match="larger than max_bytes") as raised:
        load_model(SOURCES["nanotron"], max_bytes=151_679)
    assert raised.value.found == "151,680 bytes of weights"
    with pytest.raises(UsageError, match="larger than max_bytes"):
        load_model(SOURCES["nanotron"], max_bytes="151kB")
