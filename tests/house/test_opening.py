"""Files of a checkpoint are opened by `storage.bytes` alone: what opened one by itself would not read it from a store (decision 50)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_CALLS = {"open", "fdopen", "pread", "preadv", "read_text", "read_bytes", "fromfile", "memmap", "load", "readlines"}
_OF = {"os", "io", "np", "numpy", "torch", "Path"}

# What opens files that are not of a checkpoint: its own output, its own package, the terminal, and frameworks in their own processes.
OTHERS = {
    "cli", "engine", "template", "testing", "plugins", "verify/declared.py", "verify/tracer.py", "verify/roundtrip.py", "verify/plot.py",
    "storage/bytes",
    "ckpt_hf/model.py", "ckpt_nanotron/own.py", "ckpt_megatron/own.py",
}  # fmt: skip


def opening(source: str) -> Iterator[str]:
    """The calls in a module that open a file by its name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id == "open":
                yield f"open, line {node.lineno}"
            elif isinstance(function, ast.Attribute) and function.attr in _CALLS:
                of = function.value.id if isinstance(function.value, ast.Name) else ""
                packaged = "resources.files" in ast.unparse(function.value) or "joinpath" in ast.unparse(function.value)
                if not packaged and (of in _OF or function.attr in ("read_text", "read_bytes")):
                    yield f"{function.attr}, line {node.lineno}"


def test_nothing_else_opens_a_file_of_a_checkpoint() -> None:
    found = []
    for package in [ROOT / "core/src/ckpt_core", *(ROOT / "plugins").glob("*/src/*")]:
        for file in sorted(package.rglob("*.py")):
            inside = file.relative_to(package).as_posix()
            names = {inside, inside.split("/")[0], f"{package.name}/{inside}", "/".join(inside.split("/")[:2])}
            if not names & OTHERS:
                found += [f"{package.name}/{inside}: {call}" for call in opening(file.read_text())]
    assert not found, "read by disk.read_small, disk.read_range or what storage has for the container:\n" + "\n".join(
        found
    )


def test_a_call_that_opens_is_found() -> None:
    assert list(opening("open(path)")) and list(opening("os.open(p, 0)")) and list(opening("Path(p).read_bytes()"))
    assert not list(opening("disk.read_small(p)")) and not list(opening("resources.files(p).read_bytes()"))
