"""Where an adapter of PEFT lies: told by its config, before anything that reads adapters is imported."""

from __future__ import annotations

import os

from ckpt_core.sdk import FormatError, documents

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # PEFT loads the first that is there


def looks_like(path: str) -> str | None:
    """The fact by which a path is an adapter of PEFT: a config with `peft_type`. A damaged config is one too, by its name."""
    folder = folder_of(path)
    file = None if folder is None else os.path.join(folder, CONFIG)
    if file is None or not os.path.isfile(file):
        return None
    try:
        config = documents.read_json(file)
    except (FormatError, OSError):
        return CONFIG
    return f"{CONFIG} with peft_type" if isinstance(config, dict) and "peft_type" in config else None


def folder_of(path: str) -> str | None:
    """The folder of an adapter, which may be given by its weights."""
    if os.path.isdir(path):
        return path
    return os.path.dirname(path) or "." if os.path.basename(path) in WEIGHTS else None
