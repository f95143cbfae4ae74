"""The files by which a path is FSDP's of a PEFT model: verl says beside its weights by how much the adapter counts."""

from __future__ import annotations

import os

from ckpt_fsdp.sdk import places

META = "lora_train_meta.json"


def looks_like(path: str) -> str | None:
    """The fact by which a path is FSDP's of a PEFT model: the rank and alpha beside the weights."""
    return next(
        (f"{one.fact}, and {META}" for one in places(path) if os.path.isfile(os.path.join(one.home, META))), None
    )
