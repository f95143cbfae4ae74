"""The template of a plugin: a project that is rendered for a name, a container of weights and a kind of config.

The files below `project` end in `.tmpl`. `@name@` and the like stand for what the author chose, also in paths, and a line that
ends in `#: torch` is for that choice alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

from ckpt_core.errors import UsageError

CONTAINERS = {"safetensors": ".safetensors", "torch": ".pt"}
"""How the template can keep weights, with the suffix of the files."""
CONFIGS = ("json", "yaml")
_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_SUFFIX = ".tmpl"


def project(name: str, container: str = "safetensors", config: str = "json") -> dict[str, str]:
    """The text of every file of the plugin for format `name`, by its path in the project; `UsageError` for a name that can't be one."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} can't be the name of a format",
            expected="small letters and digits, a letter first, in words between hyphens: my-format",
        )
    title = "".join(word.capitalize() for word in name.split("-"))
    words = {
        "name": name,
        "module": f"ckpt_{name.replace('-', '_')}",
        "distribution": f"ckpt-{name}",
        "Name": title,
        "NAME": name.replace("-", "_").upper(),
        "kind": config,
        "config": f"model.{config}",
        "suffix": CONTAINERS[container],
    }
    found = {}
    for path, text in _files(resources.files(__name__) / "project", ""):
        kept = "\n".join(_kept(text.split("\n"), {container, config}))
        found[_filled(path, words)] = _filled(kept, words)
    return found


def _files(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            yield f"{prefix}{entry.name.removesuffix(_SUFFIX)}", entry.read_text(encoding="utf-8")


def _kept(lines: list[str], choices: set[str]) -> Iterator[str]:
    for line in lines:
        text, mark, choice = line.partition("  #: ")
        if not mark or choice in choices:
            yield text.rstrip() if mark else line


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"@(\w+)@", lambda word: words.get(word[1], word[0]), text)
