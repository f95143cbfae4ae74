"""Damaging what `torch.save` wrote, for the conformance kit: entries of a dict of tensors, taken out, put in, changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ckpt_core.testing import Entry


class StateDicts:
    """Files that are a dict of tensors each; what a format's files are called, and its tensors, `find` says.

    `prefix` is what the keys of a file have before the names of tensors, `section` the key below which the tensors are.
    """

    def __init__(self, prefix: str = "", section: str | None = None) -> None:
        self._prefix, self._section = prefix, section

    def load(self, path: Path | str) -> Any:
        """A whole file."""
        return torch.load(path, weights_only=False)

    def tensors(self, path: Path | str) -> dict[str, torch.Tensor]:
        return self._below(self.load(path))

    def remove(self, entry: Entry) -> None:
        self._change(entry, entry.key, None)

    def add(self, entry: Entry) -> str:
        self._change(entry, f"{self._prefix}surprise.weight", torch.zeros(3))
        return "surprise.weight"

    def reshape(self, entry: Entry) -> None:
        old = self.tensors(entry.file)[entry.key]
        self._change(entry, entry.key, torch.cat([old, old[:1]]))

    def retype(self, entry: Entry) -> None:
        self._change(entry, entry.key, self.tensors(entry.file)[entry.key].view(torch.int32))

    def _change(self, entry: Entry, key: str, tensor: torch.Tensor | None) -> None:
        content = self.load(entry.file)
        held = self._below(content)
        held.pop(key, None)
        if tensor is not None:
            held[key] = tensor
        torch.save(content, entry.file)

    def _below(self, content: Any) -> dict[str, torch.Tensor]:
        return content if self._section is None else content[self._section]


def tensor_mutations(name: str) -> dict[str, Callable[[dict], object]]:
    """What may go wrong with one tensor of a rank's state dict; its name has `query` in it."""
    return {
        "dropped": lambda held: held.pop(name),
        "renamed": lambda held: held.__setitem__(name.replace("query", "querry"), held.pop(name)),
        "added": lambda held: held.__setitem__(f"{name}_more", torch.zeros(2)),
        "reshaped": lambda held: held.__setitem__(name, held[name].T.contiguous()),
        "of integers": lambda held: held.__setitem__(name, held[name].long()),
        "of another dtype": lambda held: held.__setitem__(name, held[name].bfloat16()),
    }
