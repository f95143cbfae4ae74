"""Functions, classes and dtypes in YAML dumps: `{_target_: torch.nn.functional.silu, _call_: false}`. Nothing is imported."""

from __future__ import annotations

from typing import Any

# What a function was imported as is not always what it calls itself.
_ALIASES = {
    "torch._C._nn.gelu": "torch.nn.functional.gelu",
    "torch.relu": "torch.nn.functional.relu",
}


def dotted(name: str) -> str:
    """One name for everything that has several.

    >>> dotted("torch._C._nn.gelu")
    'torch.nn.functional.gelu'
    """
    return _ALIASES.get(name, name)


def plain(value: Any) -> Any:
    """A value of a dump in which what is only named, and not called, is its dotted name.

    >>> plain({"_target_": "torch.bfloat16", "_call_": False})
    'torch.bfloat16'
    """
    if isinstance(value, dict):
        target = value.get("_target_")
        if isinstance(target, str) and value.get("_call_") is False and set(value) <= {"_target_", "_call_"}:
            return dotted(target)
        held = {key: plain(item) for key, item in value.items()}
        return held | {"_target_": dotted(target)} if isinstance(target, str) else held
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def named(name: str) -> dict[str, Any]:
    """How a dump names a function or a dtype."""
    return {"_call_": False, "_target_": name}
