"""Where a checkpoint of nanotron lies."""

from __future__ import annotations

import os

from ckpt_core.sdk import CkptError, containers


def looks_like(path: str) -> str | None:
    """The fact by which a folder is a nanotron checkpoint, or None."""
    if not os.path.isdir(path):
        return None
    for folder in (path, *(os.path.join(path, name) for name in os.listdir(path) if name.isdigit())):
        if is_step(folder):
            return "one safetensors file per parameter below model/model"
    return None


def is_step(folder: str) -> bool:
    """Every model of nanotron has a decoder; its parameters lie below this folder in all versions, each file with one
    tensor, `data`. A file that can't be read may be nanotron's, and so may a folder that has lost its files."""
    decoder = os.path.join(folder, "model", "model", "decoder")
    empty = os.path.isdir(decoder)
    for below, _, names in os.walk(decoder):
        for name in names:
            empty = False
            if name.startswith("model_") and name.endswith(".safetensors"):
                try:
                    return set(containers.read_header(os.path.join(below, name)).tensors) == {"data"}
                except (CkptError, OSError):
                    return True
    return empty
