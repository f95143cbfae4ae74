"""Packages whose names are found when they are looked at: whoever needs one of them does not import the others.

if TYPE_CHECKING:
    from here.reader import Header as ReadHeader, read
else:
    __getattr__, __dir__ = found_in(__name__, {".reader": "Header:ReadHeader read"})
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import ForwardRef


def found_in(public: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of the module `public`. `homes` has the names by the module that they are in, which is written as after
    a `from` there. `name:other` is called `other` in `public`, and `:other` is the module itself.
    """
    places = {
        called or name: (module, name)
        for module, names in homes.items()
        for name, _, called in (one.partition(":") for one in names.split())
    }

    def __getattr__(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {public!r} has no attribute {name!r}")
        (home, inside), own = places[name], vars(sys.modules[public])
        module = import_module(home, own["__package__"])
        found = own[name] = getattr(module, inside) if inside else module
        return found

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[public]), *places})  # `help` and completion look here

    return __getattr__, __dir__


def hints_in(public: str, homes: Mapping[str, str]) -> None:
    """Let `typing.get_type_hints` find the names that the module `public` imports for its annotations alone. `homes` has them by module.

    if TYPE_CHECKING:
        from here.reader import Header
    else:
        hints_in(__name__, {"here.reader": "Header"})

    Each becomes a reference, whose module is imported when a hint is evaluated.
    """
    own = vars(sys.modules[public])
    for home, names in homes.items():
        own.update({name: ForwardRef(f"__import__({home!r}, fromlist=['_']).{name}") for name in names.split()})
