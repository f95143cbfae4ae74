"""What others do with the same bytes: `peers.py WHAT SOURCE DESTINATION`, WHAT being a function below."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path


def naive(source: Path, destination: Path) -> None:
    """Each file loaded with safetensors and saved again: the least that a converter built on whole files does."""
    from safetensors.torch import load_file, save_file

    destination.mkdir()
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            save_file(load_file(path), destination / path.name, metadata={"format": "pt"})
        else:
            shutil.copy(path, destination / path.name)


def transformers(source: Path, destination: Path) -> None:
    """The model loaded in its own dtype and saved again."""
    from transformers import AutoModelForCausalLM

    dtype = json.loads((source / "config.json").read_text())["torch_dtype"]
    AutoModelForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(destination, max_shard_size="1GB")


def torch_save(source: Path, destination: Path) -> None:
    """All tensors of a Hugging Face folder in one file of `torch.save`."""
    import torch
    from safetensors.torch import load_file

    torch.save({k: v for path in sorted(source.glob("*.safetensors")) for k, v in load_file(path).items()}, destination)


def to_dcp(source: Path, destination: Path) -> None:
    """PyTorch's own converter from a file of `torch.save` to a distributed checkpoint; nothing is renamed or split."""
    from torch.distributed.checkpoint.format_utils import torch_save_to_dcp

    torch_save_to_dcp(source, destination)


def from_dcp(source: Path, destination: Path) -> None:
    """PyTorch's own converter from a distributed checkpoint to a file of `torch.save`."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(source, destination)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
