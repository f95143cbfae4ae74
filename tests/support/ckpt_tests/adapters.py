"""Tiny bases and adapters on them, made with torch alone; the merge in torch, as PEFT has it, to compare with."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ckpt_tests import tiny
from ckpt_tests.models import weights

PREFIX = "base_model.model."
RANK, ALPHA = 4, 6


def base(
    folder: Path, family: str = "llama", dtype: torch.dtype = torch.bfloat16, **changes: object
) -> dict[str, torch.Tensor]:
    """A tiny model saved at `folder`, and its tensors."""
    tiny.build(folder, family, dtype, num_hidden_layers=2, **changes)
    return weights(folder)


def pair(module: str, weight: torch.Tensor, rank: int = RANK, seed: int = 0) -> dict[str, torch.Tensor]:
    """A and B of a linear module with this weight, [out, in]."""
    generator = torch.Generator().manual_seed(seed + sum(module.encode()))
    out, into = weight.shape
    return {
        f"{PREFIX}{module}.lora_A.weight": torch.randn(rank, into, generator=generator),
        f"{PREFIX}{module}.lora_B.weight": torch.randn(out, rank, generator=generator),
    }


def embedding_pair(module: str, weight: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    """A and B of an embedding, [vocabulary, hidden]."""
    down, up = pair(module, weight.T, seed=seed).values()
    return {f"{PREFIX}{module}.lora_embedding_A": down, f"{PREFIX}{module}.lora_embedding_B": up}


def save(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    """An adapter's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**said, **config}))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        {"format": "pt"},
    )
    return folder


def delta(tensors: dict[str, torch.Tensor], module: str, scale: float = ALPHA / RANK) -> torch.Tensor:
    """The scaled product of a pair."""
    down, up = (tensors[f"{PREFIX}{module}.lora_{side}.weight"].float() for side in "AB")
    return (up @ down) * scale


def added(weight: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """W + change in one rounding."""
    return (weight.float() + change).to(weight.dtype)
