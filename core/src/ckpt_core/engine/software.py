"""Which code this process runs: two that run the same turn the same values into the same bytes.

A version alone does not tell: a developer's has many contents. Plugins are not part of it, for they only make plans.
"""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable

from blake3 import blake3

from ckpt_core import __version__


def _sources(folder: Traversable, path: str = "") -> dict[str, bytes]:
    """The Python files of a package, by their paths in it."""
    found: dict[str, bytes] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found |= _sources(entry, f"{path}{entry.name}/")
        elif entry.name.endswith(".py"):
            found[path + entry.name] = entry.read_bytes()
    return found


def _digest() -> str:
    digest = blake3()
    for path, source in sorted(_sources(files("ckpt_core")).items()):
        digest.update(f"{path} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:12]


SOFTWARE = f"ckpt {__version__} (code {_digest()})"
"""Taken when this is imported: a process that lives on while another version is installed still runs the old one."""
