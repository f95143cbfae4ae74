"""Folders as values: what is in them, bit for bit, and what a refused conversion must leave behind."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    return {
        str(path.relative_to(folder)): f"-> {path.readlink()}"
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() or path.is_symlink()
    }


def staging_of(destination: Path) -> Path:
    """The folder of a conversion to a destination that is not finished."""
    return destination.with_name(f"{destination.name}.ckpt-partial")


def assert_nothing_at(destination: Path) -> None:
    """No output, no staging folder, nothing else that begins with its name."""
    left = sorted(name for name in os.listdir(destination.parent) if name.startswith(destination.name))
    assert not left, f"a refused conversion left {left}"


def assert_same_bits(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    """Equal names, dtypes, shapes and bytes."""
    assert one.keys() == two.keys()
    for name, left in one.items():
        right = two[name]
        assert (left.dtype, left.shape) == (right.dtype, right.shape), name
        assert torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8)), f"{name} differs"
