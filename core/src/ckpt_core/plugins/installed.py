"""Which formats are installed: from the metadata of distributions, and nothing of theirs or of ours is imported for it.

`CKPT_PLUGINS=hf,nanotron` restricts what is seen.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from importlib import metadata

GROUP = "ckpt.formats"
"""The entry points of formats; the name of each is the format's."""


@functools.cache
def entry_points() -> dict[str, list[metadata.EntryPoint]]:
    """The entry points of each format: one, unless several distributions have a format of that name."""
    allowed = os.environ.get("CKPT_PLUGINS")
    names = None if allowed is None else {name.strip() for name in allowed.split(",")}
    found: dict[str, list[metadata.EntryPoint]] = {}
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        if names is None or entry.name in names:
            found.setdefault(entry.name, []).append(entry)
    return found


def format_names() -> list[str]:
    """The names of all installed formats, loaded or not."""
    return list(entry_points())


def distributions(entries: Iterable[metadata.EntryPoint]) -> str:
    """The distributions that entry points are of, with their versions."""
    return ", ".join(sorted({f"{entry.dist.name} {entry.dist.version}" if entry.dist else "?" for entry in entries}))
