"""Modules of which any class may be imported, and none does anything."""

from __future__ import annotations

from collections.abc import Callable


def classes(base: type = object) -> Callable[[str], type]:
    """A module's `__getattr__`: an empty class for every name with a capital letter."""

    def getattr_(name: str) -> type:
        if name[:1].isupper():
            return type(name, (base,), {})
        raise AttributeError(name)

    return getattr_
