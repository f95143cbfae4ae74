"""Torch files read without the classes that they name, by torch and pickle alone: a second reading beside our own."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


class Stub:
    """An object of a class that is not there: what it was made of, and its state."""

    def __init__(self, *arguments: object, **_: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __hash__(self) -> int:
        return id(self)

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, value: object) -> None: ...


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        ours = module.partition(".")[0] in ("torch", "collections", "_codecs")
        if ours and not module.startswith("torch.distributed"):
            return super().find_class(module, name)
        return type(name, (Stub,), {"__module__": module})


_MODULE = SimpleNamespace(Unpickler=_Unpickler, load=lambda file, **_: _Unpickler(file).load(), __name__="pickle")


def loosely(file: Path | io.BytesIO) -> Any:
    """What a torch file holds, with stubs for objects of other classes than torch's."""
    return torch.load(file, map_location="cpu", weights_only=False, pickle_module=_MODULE)


def unpickled(file: Path) -> Any:
    """What a pickle holds, in the same way."""
    with file.open("rb") as opened:
        return _Unpickler(opened).load()
