"""Where an adapter of Megatron-Bridge, of Megatron-SWIFT or of NeMo 2 may lie: told by names of files, for every path is asked about."""

from __future__ import annotations

import os

from ckpt_core.sdk import chunked


def may_hold_adapter(path: str) -> bool:
    """Whether a folder, or one in it (`iter_0000100`, `weights`), is a distributed checkpoint: all of their adapters are."""
    try:
        folders = [path, *(entry.path for entry in os.scandir(path) if entry.is_dir())]
    except OSError:
        return False
    return any(os.path.isfile(os.path.join(folder, chunked.METADATA)) for folder in folders)
