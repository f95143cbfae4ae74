"""Packages that a framework imports, and that a forward pass does not need, as empty ones."""

from __future__ import annotations

import importlib.machinery
import sys
import types


def absent(names: str) -> None:
    """Let the packages in `names`, separated by blanks, import as empty ones where they are not installed."""
    sys.meta_path.append(_Finder(names.split()))  # type: ignore[arg-type]


def first(names: str) -> None:
    """Let these import as empty ones although they are installed, as they need what is not."""
    sys.meta_path.insert(0, _Finder(names.split()))  # type: ignore[arg-type]


class _Anything(type):
    """A class of which every attribute is such a class; as a decorator it gives the function back."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Anything(name, (), {})
        setattr(cls, name, made)
        return made

    def __call__(cls, *args, **kwargs):
        if len(args) == 1 and callable(args[0]) and not kwargs and not isinstance(args[0], _Anything):
            return args[0]
        return cls

    __getitem__ = __or__ = __ror__ = lambda cls, *_: cls


class _Empty(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012  a module's own attribute, of this type
    __file__ = "none"
    __version__ = "3.0.0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Anything(name, (), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _Finder:
    def __init__(self, roots):
        self.roots = roots

    def find_spec(self, name, path=None, target=None):
        if any(name == root or name.startswith(f"{root}.") for root in self.roots):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        pass
