"""The names of `ckpt_core.sdk` and of the plugins' public modules, as `docs/reference/sdk.md` lists them: each with its signature and one sentence."""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

from ckpt_core import sdk


def names(module: ModuleType) -> dict[str, Any]:
    """The public names of a module or package with their values; namespaces among them."""
    return {name: getattr(module, name) for name in module.__all__}


def namespaces(module: ModuleType = sdk) -> dict[str, ModuleType]:
    """The namespaces of a public module by the names that it has for them."""
    return {name: value for name, value in names(module).items() if isinstance(value, ModuleType)}


def sentence(module: ModuleType, name: str) -> str:
    """The first paragraph of what is said about a name, on one line; a plain constant that nothing is said about says itself."""
    value = getattr(module, name)
    own = isinstance(value, ModuleType) or inspect.isclass(value) or inspect.isroutine(value)
    text = (inspect.getdoc(value) if own else _said_below(*_home(module.__name__, name)) or str(value)) or ""
    text = "" if " at 0x" in text else text
    if inspect.isclass(value) and text.startswith(f"{name}("):  # what dataclass writes where nothing is said
        text = ""
    return " ".join(text.split("\n\n")[0].split())


def signature(name: str, value: Any) -> str:
    """How a name is called; the name alone where it is not called."""
    if inspect.isclass(value) and issubclass(value, enum.Enum):
        return f"{name}: {', '.join(member.name for member in value)}"
    if typing.get_origin(value):  # `Mapping[str, int]`, which Python 3.13 gives the signature of any call
        return name
    if not callable(value) or (inspect.isclass(value) and getattr(value, "_is_protocol", False)):
        return name
    try:
        said = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    shown = [_brief(one) for one in said.parameters.values() if one.name[0] != "_"]
    text = f"{name}{said.replace(parameters=shown, return_annotation=inspect.Signature.empty)}"
    return re.sub(r"<(\w+)\.(\w+): [^>]*>", r"\1.\2", text)


class _Left:
    """In the place of a default that is too long to read, or made when it is needed."""

    def __repr__(self) -> str:
        return "..."


def _brief(parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter without its type, and without a default that is not a short plain value."""
    default = parameter.default
    plain = isinstance(default, str | int | float | tuple | enum.Enum | None) and len(repr(default)) < 40
    keep = default is parameter.empty or plain
    return parameter.replace(annotation=parameter.empty, default=default if keep else _Left())


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(importlib.import_module(module)))


def _home(module: str, name: str) -> tuple[str, str]:
    """The module that defines a name which another one imports, and what it is called there."""
    body = _tree(module).body
    checked = [inner for node in body if isinstance(node, ast.If) for inner in node.body]  # under TYPE_CHECKING
    for node in [*body, *checked]:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _home(node.module, alias.name)
    return module, name


def _said_below(module: str, name: str) -> str:
    """The string below the line that defines a constant."""
    body = _tree(module).body
    for node, below in pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            return str(below.value.value)
    return ""


def page() -> str:
    """The counts, the names of the module itself, and those of every namespace."""
    own = names(sdk)
    inner = {name: names(module) for name, module in namespaces().items()}
    distinct = len(
        {id(value) for one in inner.values() for value in one.values()} - {id(value) for value in own.values()}
    )
    counts = f"{len(own)} names, {len(inner)} of them namespaces; the namespaces have {distinct} names more."
    parts = [counts, "## ckpt_core.sdk", "\n".join(_rows(sdk, {k: v for k, v in own.items() if k not in inner}))]
    for name, module in namespaces().items():
        listed = {key: value for key, value in inner[name].items() if not any(value is one for one in own.values())}
        parts += [f"## {name}", sentence(sdk, name), "\n".join(_rows(module, listed))]
    return "\n\n".join(part for part in parts if part)


def of_plugin(name: str) -> str:
    """What the public module of a plugin is, its names, and those of its namespaces."""
    module = importlib.import_module(name)
    inner = namespaces(module)
    paragraphs = (inspect.getdoc(module) or "").split("\n\n")
    parts = [" ".join(paragraph.split()) for paragraph in paragraphs]
    parts += ["\n".join(_rows(module, {key: value for key, value in names(module).items() if key not in inner}))]
    for space, value in inner.items():
        parts += [f"#### {space}", sentence(module, space), "\n".join(_rows(value, names(value)))]
    return "\n\n".join(parts)


def _rows(module: ModuleType, listed: dict[str, Any]) -> Iterator[str]:
    if listed:
        yield from ("| name | what it is |", "| --- | --- |")
    for name, value in sorted(listed.items(), key=lambda item: item[0].lower()):
        cells = (f"`{signature(name, value)}`", sentence(module, name))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
