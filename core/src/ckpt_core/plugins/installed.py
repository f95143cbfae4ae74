"""Which formats are installed: from the metadata of distributions, and nothing of theirs or of ours is imported for it.

`CKPT_PLUGINS=hf,nanotron` restricts what is seen.

The standard library reads the same files (`entry_points.txt`, PyPA specifications, "Entry points"), but imports forty modules for it, those of
mail, sockets and zip archives among them: a tenth of the time of a short command. It is asked where distributions lie in archives, and where another
tool finds them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

from ckpt_core.lean import dataclass

if TYPE_CHECKING:
    from importlib import metadata

GROUP = "ckpt.formats"
"""The entry points of formats; the name of each is the format's."""
_FOLDERS = (".dist-info", ".egg-info")
_EGG, _IN_EGG = ".egg", "egg-info"  # a folder of the path that holds one distribution, as `setup.py install` made it
_FILE = "entry_points.txt"
_HEAD = 1 << 12


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """What a distribution declares: the name of a format, and its plugin as `module` or `module:object`.

    `of` is the distribution, or the folder of its metadata.
    """

    name: str
    value: str
    of: str | metadata.Distribution

    @property
    def module(self) -> str:
        return self._place[0].strip()

    def load(self) -> Any:
        """The plugin, imported."""
        inside = self._place[2].strip()
        return functools.reduce(getattr, inside.split(".") if inside else (), import_module(self.module))

    @property
    def _place(self) -> tuple[str, str, str]:
        return self.value.partition("[")[0].partition(":")  # extras may follow

    @property
    def distribution(self) -> str:
        """The distribution, with its version."""
        if not isinstance(self.of, str):
            return f"{self.of.name} {self.of.version}"
        said, named = _said_in(self.of), _stem(self.of).split("-")
        return f"{said.get('name') or named[0]} {said.get('version') or '-'.join(named[1:2]) or '?'}"


def _said_in(folder: str) -> dict[str, str]:
    """The first lines of the metadata of a distribution: its name and its version are among them."""
    for name in ("METADATA", "PKG-INFO"):
        with contextlib.suppress(OSError), open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
            head = file.read(_HEAD).partition("\n\n")[0]
            pairs = (line.partition(":") for line in head.split("\n"))
            return {key.lower(): value.strip() for key, _, value in pairs}
    return {}


def _stem(folder: str) -> str:
    """What the name of a folder of metadata says: the distribution and its version. That of an egg is said by the egg."""
    if os.path.basename(folder).lower() == _IN_EGG:
        folder = os.path.dirname(folder)
    return os.path.splitext(os.path.basename(folder))[0]


@functools.cache
def entry_points() -> dict[str, list[EntryPoint]]:
    """The entry points of each format: one, unless several distributions have a format of that name."""
    allowed = os.environ.get("CKPT_PLUGINS")
    names = None if allowed is None else {name.strip() for name in allowed.split(",")}
    found: dict[str, list[EntryPoint]] = {}
    for entry in sorted(_in_folders() if _only_folders() else _anywhere(), key=lambda entry: (entry.name, entry.value)):
        if names is None or entry.name in names:
            found.setdefault(entry.name, []).append(entry)
    return found


def _only_folders() -> bool:
    """Whether all distributions lie in folders of the path."""
    finders = (finder for finder in sys.meta_path if finder is not PathFinder)
    return not any(hasattr(finder, "find_distributions") for finder in finders) and not any(
        map(os.path.isfile, map(str, sys.path))
    )


def _anywhere() -> Iterator[EntryPoint]:
    from importlib import metadata

    for entry in metadata.entry_points(group=GROUP):
        if entry.dist is not None:
            yield EntryPoint(entry.name, entry.value, entry.dist)


def _in_folders() -> Iterator[EntryPoint]:
    """Of each distribution those that come first on the path, as Python imports it."""
    known: set[str] = set()
    for place in map(str, sys.path):
        try:
            names = os.listdir(place or ".")
        except (OSError, ValueError):  # ValueError: a null byte
            continue
        in_egg = place.lower().endswith(_EGG)
        for name in names:
            if not name.lower().endswith(_FOLDERS) and not (in_egg and name.lower() == _IN_EGG):
                continue
            folder = os.path.join(place, name)
            distribution = re.sub(r"[-_.]+", "-", _stem(folder).partition("-")[0]).lower()
            if distribution not in known:
                known.add(distribution)
                yield from _declared(folder)


def _declared(folder: str) -> Iterator[EntryPoint]:
    """The entry points of formats that a distribution has."""
    try:
        with open(os.path.join(folder, _FILE), "rb") as file:
            data = file.read()
    except OSError:  # most distributions have none
        return
    section = ""
    for line in map(str.strip, data.decode(errors="replace").splitlines() if GROUP.encode() in data else ()):
        if line.startswith("[") and line.endswith("]"):
            section = line.strip("[]")
        elif section == GROUP and line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield EntryPoint(name.strip(), value.strip(), folder)


def format_names() -> list[str]:
    """The names of all installed formats, loaded or not."""
    return list(entry_points())


def distributions(entries: Iterable[EntryPoint]) -> str:
    """The distributions that entry points are of, with their versions."""
    return ", ".join(sorted({entry.distribution for entry in entries}))
