"""Counts what keeps the house small, and prints it: `python tools/house.py`, or `nox -s house`.

Inverse pairs written by hand, over all installed plugins (a budget of 25); names in `ckpt_core.sdk` (60); functions that build
tensor tables (0); names that only one plugin uses, or none; lines of the core and of each plugin, and with `--rooms` of each room.
`--pairs` names every pair and its reason, `--names` the names of the SDK with the plugins that use them.
"""

from __future__ import annotations

import argparse
import ast
import functools
import gc
import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ckpt_core import sdk
from ckpt_core.config import Codec, Custom, pairs_by_hand

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = tuple(sorted(path.name for path in (ROOT / "plugins").iterdir() if (path / "src").is_dir()))
BUDGETS = {"inverse pairs": 25, "names in ckpt_core.sdk": 60, "functions that build tables": 0}


@dataclass(frozen=True)
class Pair:
    """A reader and a writer that a person wrote as inverses of one another."""

    plugin: str
    reader: str
    writer: str
    why: str


def hand_written_pairs() -> list[Pair]:
    """Every distinct pair in the `custom` lines and codecs of all plugins, whether a table holds it or not."""
    for plugin in PLUGINS:
        package = importlib.import_module(f"ckpt_{plugin}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    reasons: dict[tuple[str, str], str] = {}
    pairs: dict[tuple[str, str], tuple[Callable, Callable]] = {}
    for one in gc.get_objects():
        if isinstance(one, Custom):
            found = pairs_by_hand([one])
            reasons |= dict.fromkeys(found, one.why)
            pairs |= found
        elif isinstance(one, Codec):
            found = {(_place(read), _place(write)): (read, write) for read, write in one.by_hand}
            reasons |= {places: one.meaning for places in found if one.meaning}
            pairs |= found
    return sorted(
        (
            Pair(
                read.__module__.split(".")[0].removeprefix("ckpt_"),
                _named(read),
                _named(write),
                reasons.get(places, ""),
            )
            for places, (read, write) in pairs.items()
            if read.__module__.split(".")[0].removeprefix("ckpt_") in PLUGINS
        ),
        key=lambda pair: (pair.plugin, pair.reader),
    )


def _place(function: Callable) -> str:
    return f"{_named(function)}:{function.__code__.co_firstlineno}"


def _named(function: Callable) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def sources(folder: Path) -> Iterator[tuple[Path, ast.Module]]:
    """The modules below a folder, parsed."""
    for path in sorted(folder.rglob("*.py")):
        yield path, ast.parse(path.read_text("utf-8"))


def table_builders() -> list[str]:
    """The functions of plugins that make or change tensor tables, or edit a sentence."""
    found = []
    for plugin in PLUGINS:
        for path, tree in sources(ROOT / "plugins" / plugin / "src"):
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and any(_makes_rows(inner) for inner in ast.walk(node)):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    return found


def _makes_rows(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="row" | "Table") | ast.Attribute(attr="Tables" | "fragment")):
            return True
        case ast.Call(keywords=keywords) if any(keyword.arg == "sentence" for keyword in keywords):
            return True
        case ast.Call(func=ast.Attribute(attr="extend" | "without", value=ast.Name(id=name))):
            return name.isupper()
    return False


def users_of_names() -> dict[str, list[str]]:
    """The names of the SDK and of its namespaces (`lazy.boxes`), each with the plugins that use it."""
    spaces = {name: getattr(sdk, name) for name in sdk.__all__ if isinstance(getattr(sdk, name), ModuleType)}
    users: dict[str, set[str]] = {name: set() for name in sdk.__all__}
    users |= {f"{name}.{inner}": set() for name, space in spaces.items() for inner in space.__all__}
    for plugin in PLUGINS:
        for _, tree in sources(ROOT / "plugins" / plugin / "src"):
            for node in ast.walk(tree):
                for name in _names_in(node, spaces.keys()):
                    users.setdefault(name, set()).add(plugin)
    return {name: sorted(found) for name, found in sorted(users.items())}


def _names_in(node: ast.AST, spaces: Collection[str]) -> list[str]:
    match node:
        case ast.ImportFrom(module="ckpt_core.sdk", names=names):
            return [alias.name for alias in names]
        case ast.Attribute(value=ast.Name(id=space), attr=name) if space in spaces and hasattr(
            getattr(sdk, space), name
        ):
            return [f"{space}.{name}"]
    return []


def used_in_core(name: str) -> bool:
    """Whether core itself uses a name of the SDK: code of its own module, or of one that imports it, and not a list of names alone."""
    short = name.rpartition(".")[2]
    return any(
        isinstance(node, ast.Name) and node.id == short and isinstance(node.ctx, ast.Load)
        for tree in modules_of_core()
        if short in _bound_in(tree)
        for node in ast.walk(tree)
    )


@functools.cache
def modules_of_core() -> list[ast.Module]:
    return [
        ast.parse(path.read_text("utf-8"))
        for path in sorted((ROOT / "core/src/ckpt_core").rglob("*.py"))
        if path.name not in ("__init__.py", "sdk.py")
    ]


def _bound_in(tree: ast.Module) -> set[str]:
    """The names that a module defines or imports at its top."""
    bound: set[str] = set()
    for node in tree.body:
        match node:
            case ast.ImportFrom(names=names):
                bound |= {alias.asname or alias.name for alias in names}
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.Assign(targets=targets):
                bound |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                bound.add(name)
    return bound


def rooms_of_core() -> dict[str, int]:
    """The lines of every room of core, the largest first."""
    core = ROOT / "core/src/ckpt_core"
    rooms = {path.name: lines_of_code(path) for path in core.iterdir() if (path / "__init__.py").is_file()}
    rooms |= {path.stem: len(path.read_text("utf-8").splitlines()) for path in core.glob("*.py")}
    return dict(sorted(rooms.items(), key=lambda room: -room[1]))


def lines_of_code(folder: Path) -> int:
    """The lines of all modules below a folder."""
    return sum(len(path.read_text("utf-8").splitlines()) for path in folder.rglob("*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs", action="store_true", help="name every inverse pair and every function that builds tables"
    )
    parser.add_argument(
        "--names", action="store_true", help="name what ckpt_core.sdk has, with the plugins that use it"
    )
    parser.add_argument("--rooms", action="store_true", help="count the lines of every room of core")
    options = parser.parse_args()
    pairs, builders = hand_written_pairs(), table_builders()
    counts = {
        "inverse pairs": len(pairs),
        "names in ckpt_core.sdk": len(sdk.__all__),
        "functions that build tables": len(builders),
    }
    for name, count in counts.items():
        print(f"{name:30} {count:6}   (budget {BUDGETS[name]})")
    users = users_of_names()
    for many, said in enumerate(("no plugin uses", "one plugin alone uses")):
        print(
            f"names that {said:21} {sum(len(found) == many for found in users.values()):4}   of {len(users)}, namespaces included"
        )
    alone = [name for name, found in users.items() if len(found) == 1]
    idle = [name for name in alone if not used_in_core(name)]
    print(f"  and core does not use itself {len(idle):4}")
    by_plugin = Counter(pair.plugin for pair in pairs)
    print(f"\n{'':12} {'lines':>7} {'pairs':>6}")
    for name in ("core", "page", *PLUGINS):
        folder = ROOT / ("" if name in ("core", "page") else "plugins") / name / "src"
        print(f"{name:12} {lines_of_code(folder):7} {by_plugin[name]:6}")
    if options.rooms:
        print("\n" + "\n".join(f"{room:12} {lines:7}" for room, lines in rooms_of_core().items()))
    if options.names:
        for name, found in users.items():
            print(f"{name}: {', '.join(found) or 'nobody'}{', not core' if name in idle else ''}")
    if options.pairs:
        print()
        for pair in pairs:
            print(f"{pair.reader} / {pair.writer}: {pair.why or 'no reason is given'}")
        print("\n" + "\n".join(builders))


if __name__ == "__main__":
    main()
