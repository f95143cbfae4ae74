"""Where a model in GGUF lies: told by names and by how a file begins, before anything that reads one is imported."""

from __future__ import annotations

import os

from ckpt_core.sdk import CkptError, disk

MAGIC = b"GGUF"
SUFFIX = ".gguf"
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".nemo")


def is_container(path: str) -> bool:
    """Whether a file begins as GGUF does."""
    return disk.read_range(path, 0, 4) == MAGIC if disk.FileState.of(path).size >= 4 else False


def looks_like(path: str) -> str | None:
    """The fact by which a file, or a folder of such files, is a model in GGUF; None if it is none.

    A folder that has weights of another kind, too, is theirs: repositories keep quantised copies beside them.
    """
    try:
        if os.path.isfile(path):
            return "it begins with GGUF" if is_container(path) else None
        names = in_folder(path)
        if names and any(name.endswith(_OTHER_WEIGHTS) for name in os.listdir(path)):
            return None
        return f"{names[0]} begins with GGUF" if names and is_container(os.path.join(path, names[0])) else None
    except (CkptError, OSError):
        return None


def in_folder(path: str) -> list[str]:
    """The names of the files of GGUF in a folder; none where it is no folder."""
    return sorted(name for name in os.listdir(path) if name.endswith(SUFFIX)) if os.path.isdir(path) else []
