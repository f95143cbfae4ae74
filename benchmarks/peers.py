"""What others do with the same folder: `peers.py naive|transformers SOURCE DESTINATION`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path


def naive(source: Path, destination: Path) -> None:
    """Each file loaded with safetensors and saved again: the least a converter built on whole files does."""
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


if __name__ == "__main__":
    {"naive": naive, "transformers": transformers}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
