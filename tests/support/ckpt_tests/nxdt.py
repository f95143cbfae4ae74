"""Neuron's files read with torch and a stand-in for torch_xla's class, independently of the code under test."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class TensorReference:
    """What `torch_xla.utils.serialization` puts in the place of a tensor."""

    def __init__(self, tid: int) -> None:
        self.tid = tid


TensorReference.__module__ = "torch_xla.utils.serialization"
TensorReference.__qualname__ = "TensorReference"


@contextmanager
def torch_xla() -> Iterator[None]:
    """torch_xla as far as its pickles need it."""
    names = ("torch_xla", "torch_xla.utils", "torch_xla.utils.serialization")
    modules = {name: types.ModuleType(name) for name in names}
    modules[names[-1]].TensorReference = TensorReference
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a rank's file, as `torch_xla.utils.serialization.load` puts them together."""
    with torch_xla():
        held = torch.load(path, weights_only=False)
    folder = Path(f"{path}.tensors")
    return {
        name: torch.load(folder / f"tensor_{value.tid}.pt") if isinstance(value, TensorReference) else value
        for name, value in held.items()
    }


def rank_files(root: Path) -> list[Path]:
    """The files of all ranks in the `model` folder at or one below `root`."""
    folder = root / "model" if (root / "model").is_dir() else next(root.glob("*/model"))
    return [path for path in sorted(folder.glob("*.pt")) if not path.name.endswith(".info.pt")]


def tensors(root: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every rank, by file and name. Rotary buffers are not parameters."""
    return {
        f"{path.name}:{name}": tensor
        for path in rank_files(root)
        for name, tensor in load(path).items()
        if not name.endswith(".inv_freq")
    }
