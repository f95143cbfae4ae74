"""Brings `config_fields.txt` up to date: the fields that Megatron's config classes have, in which versions, with defaults.

    git clone --bare https://github.com/NVIDIA/Megatron-LM && git clone --bare https://github.com/NVIDIA-NeMo/Megatron-Bridge
    python tools/config_fields.py --core Megatron-LM.git --bridge Megatron-Bridge.git

Sources are read with `ast` at each release's tag, and never run. What a field means stays as it is in the table; a field that
is new there gets the meaning `?`, which no test lets pass: give it one of those at the head of the table, or read it in
`transformer_config/fields.py`.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TABLE = Path(__file__).parents[1] / "plugins/megatron/src/ckpt_megatron/transformer_config/config_fields.txt"

# Releases, by what is last of each; `main` is the version that it will be.
CORE = {
    "0.9": "core_v0.9.0", "0.10": "core_v0.10.0", "0.11": "core_v0.11.0", "0.12": "core_v0.12.3", "0.13": "core_v0.13.1",
    "0.14": "core_v0.14.0", "0.15": "core_v0.15.3", "0.16": "core_v0.16.1", "0.17": "core_v0.17.1", "0.18": "core_v0.18.2",
    "0.19": "core_v0.19.0", "0.20": "main",
}  # fmt: skip
BRIDGE = {
    "0.2": "v0.2.2", "0.3": "v0.3.1", "0.4": "v0.4.2", "0.5": "v0.5.1", "0.6": "v0.6.0", "0.7": "main",
}  # fmt: skip
# The Megatron-Core that a Bridge builds on is often a commit between releases: its submodule says which.
SUBMODULE = "3rdparty/Megatron-LM"
CORE_FILES = (
    "megatron/core/model_parallel_config.py",
    "megatron/core/transformer/transformer_config.py",
    "megatron/core/transformer/heterogeneous/heterogeneous_config.py",
)
CORE_CLASSES = ("ModelParallelConfig", "TransformerConfig", "MLATransformerConfig", "HeterogeneousTransformerConfig")
BRIDGE_FOLDER = "src/megatron/bridge/models"


@dataclass
class Seen:
    """A field: its newest default, and the versions that have it."""

    default: str = ""
    core: list[str] = field(default_factory=list)
    bridge: list[str] = field(default_factory=list)


def git(repository: str, *words: str) -> str:
    done = subprocess.run(["git", "-C", repository, *words], capture_output=True, text=True, check=True)
    return done.stdout


def classes(source: str) -> Iterator[ast.ClassDef]:
    """The dataclasses of a module."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(mark) for mark in node.decorator_list):
            yield node


def fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Fields that a dataclass itself declares, with defaults as they are written."""
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or "ClassVar" in ast.unparse(line.annotation):
            continue
        yield ast.unparse(line.target), _default(line.value)


def _default(value: ast.expr | None) -> str:
    """A default on one line; that of `field(...)` is what it holds."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        said = {word.arg: word.value for word in value.keywords}
        value = said.get("default", said.get("default_factory"))
        if value is not said.get("default"):
            return f"made by {ast.unparse(value)}" if value is not None else "none"
    return "none" if value is None else " ".join(ast.unparse(value).split())


def core_fields(repository: str, commit: str) -> dict[str, str]:
    """The fields of Megatron-Core's config classes at a commit."""
    found: dict[str, str] = {}
    there = git(repository, "ls-tree", "-r", "--name-only", commit, *CORE_FILES).split()
    for file in there:  # no heterogeneous one before core 0.13
        for node in classes(git(repository, "show", f"{commit}:{file}")):
            if node.name in CORE_CLASSES:
                found |= {name: default for name, default in fields(node) if name not in found}
    return found


def bridge_fields(repository: str, tag: str) -> dict[str, str]:
    """The fields of the providers and configs of Bridge that `bridge/config.py` takes for a plain GPTModel."""
    from ckpt_megatron.bridge.config import is_plain

    found: dict[str, str] = {}
    for file in git(repository, "ls-tree", "-r", "--name-only", tag, f"{BRIDGE_FOLDER}/").split():
        if not file.endswith(".py"):
            continue
        module = file.removeprefix("src/").removesuffix(".py").replace("/", ".")
        for node in classes(git(repository, "show", f"{tag}:{file}")):
            if is_plain(f"{module}.{node.name}"):
                known = dict(fields(node))
                found |= known if node.name == "GPTModelProvider" else known | found
    return found


def gathered(core: str, bridge: str) -> dict[str, Seen]:
    """Every field of every version, those of Megatron-Core with the default that it has there."""
    seen: dict[str, Seen] = {}
    for version, tag in BRIDGE.items():
        commit = git(bridge, "ls-tree", tag, SUBMODULE).split()[2]
        for name, default in {**bridge_fields(bridge, tag), **core_fields(core, commit)}.items():
            seen.setdefault(name, Seen()).bridge.append(version)
            seen[name].default = default
    for version, tag in CORE.items():
        for name, default in core_fields(core, tag).items():
            seen.setdefault(name, Seen()).core.append(version)
            seen[name].default = default
    return seen


def span(versions: list[str], newest: str) -> str:
    """Versions as a reader wants them: `0.9-0.12`, `0.13-` where the newest has it."""
    if not versions:
        return ""
    last = "" if versions[-1] == newest else versions[-1]
    return versions[0] if len(versions) == 1 and last else f"{versions[0]}-{last}"


def updated(text: str, seen: dict[str, Seen]) -> str:
    """The table with these fields; a line of a field that only NeMo has stays as it is."""
    head = [line for line in text.splitlines() if line.startswith("#")]
    rows = {
        row[0]: row for line in text.splitlines() if "|" in line and not line.startswith("#") for row in [_cells(line)]
    }
    for name, found in seen.items():
        effect = rows[name][4] if name in rows else "?"
        rows[name] = [name, found.default, span(found.core, [*CORE][-1]), span(found.bridge, [*BRIDGE][-1]), effect]
    return "\n".join([*head, *(" | ".join(rows[name]).strip() for name in sorted(rows))]) + "\n"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", required=True, help="a clone of NVIDIA/Megatron-LM")
    parser.add_argument("--bridge", required=True, help="a clone of NVIDIA-NeMo/Megatron-Bridge")
    asked = parser.parse_args()
    TABLE.write_text(updated(TABLE.read_text() if TABLE.exists() else "", gathered(asked.core, asked.bridge)))
