"""The installed formats, by what they can do."""

from __future__ import annotations

from ckpt_core.plugins.discovery import require
from ckpt_core.plugins.installed import format_names


def written() -> list[str]:
    """Those that can be written; an adapter can only be read."""
    return [name for name in format_names() if require(name).info.writes]
