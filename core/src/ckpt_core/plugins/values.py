"""The options of a format with their values: what was asked for, and the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.errors import UsageError, did_you_mean
from ckpt_core.plugins.discovery import all_plugins
from ckpt_core.plugins.request import FormatInfo

_ARGUMENTS = ("tp", "pp", "ep", "dtype", "weights", "config")
"""What every format is asked for by an argument of its own."""


def typed_options(info: FormatInfo, given: Mapping[str, str], side: str) -> dict[str, Any]:
    """All options of one side with their values; an unknown name is a `UsageError`."""
    known = {option.name: option for option in info.options if option.side in (side, "both")}
    for name in given:
        if name not in known:
            raise UsageError(
                f"format {info.name} has no {side} option {name!r}",
                expected=", ".join(known) or "no options",
                fix=did_you_mean(name, known, _owners(name, side) or f"see: ckpt formats {info.name}"),
            )
    return {name: option.parse(given[name]) if name in given else option.default for name, option in known.items()}


def _owners(name: str, side: str) -> str | None:
    """The sentence that says whose option this is, where the format that was asked has none of this name."""
    if name in _ARGUMENTS:
        return f"it is an argument of its own: --{name}, in Python {name}="
    for wanted, where in (
        (side, ""),
        ("read" if side == "write" else "write", "reading " if side == "write" else "writing "),
    ):
        if owners := owners_of(name, wanted):
            return f"it is an option of {where}{', '.join(owners)}"
    return None


def owners_of(name: str, *sides: str) -> list[str]:
    """The installed formats that have an option of this name, on any of the sides."""
    return [
        plugin.name
        for plugin in all_plugins()
        if not plugin.broken and any(one.name == name and one.side in (*sides, "both") for one in plugin.info.options)
    ]
