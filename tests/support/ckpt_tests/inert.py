"""Pickles of frameworks that are not installed: what stands for their classes, and what is taken as it is."""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable, Collection


def empty(module: str, name: str) -> type:
    """A class that takes any arguments and any state, and keeps nothing of them."""
    return type(name, (), {"__new__": lambda cls, *_, **__: object.__new__(cls), "__setstate__": lambda *_: None})


def pickle_module(safe: Collection[str], stand_in: Callable[[str, str], type] = empty) -> types.ModuleType:
    """What `torch.load` takes as `pickle_module`: classes of the packages `safe` are imported, `stand_in` gives all others."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            return super().find_class(module, name) if module.split(".")[0] in safe else stand_in(module, name)

    made = types.ModuleType("inert")
    made.Unpickler = Unpickler
    made.load = lambda file, **_: Unpickler(file).load()
    return made
