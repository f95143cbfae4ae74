"""Running an HF folder with transformers, which judges what we wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel


def load(folder: Path) -> PreTrainedModel:
    """The model in fp32, every weight accounted for by transformers."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {kind: names for kind, names in report.items() if names}
    assert not problems, f"transformers complains about {folder.name}: {problems}"
    return model.eval()


def logits_of(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids).logits


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of an HF folder's safetensors files."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}
