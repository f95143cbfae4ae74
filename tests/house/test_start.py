"""What a command imports before it does anything: a third of its CPU time, and more than that where a module comes back that it does not need."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import ckpt_core
import ckpt_core.sdk
from ckpt_core.plugins import installed
from ckpt_core.testing import example, write_ir

CORE = Path(ckpt_core.__file__).parent
# What no command needs that only looks at headers: numbers, threads, sockets, processes, other programs, documents in YAML, metadata of distributions.
LATE = (
    "numpy", "torch", "concurrent.futures", "logging", "socket", "subprocess", "multiprocessing", "ctypes", "tempfile", "shutil", "random",
    "urllib", "http", "ssl", "email", "zipfile", "importlib.metadata", "pathlib", "fractions", "decimal", "difflib", "rich", "pickle",
    "ckpt_core.verify", "ckpt_core.reference", "ckpt_core.testing", "ckpt_core.plugins.judgement", "ckpt_core.engine.run",
    "ckpt_core.engine.worker", "ckpt_core.storage.bytes.remote.http", "ckpt_core.storage.pickle.machine", "ckpt_core.storage.torch.reading",
    "ckpt_core.storage.chunks.dcp", "ckpt_core.tensors.source",
)  # fmt: skip
OF_MEGATRON = {"ckpt_core.storage.pickle.machine", "ckpt_core.storage.torch.reading", "ckpt_core.storage.chunks.dcp"}
"""What of it reads the headers of Megatron."""
FEW = {"inspect": 172, "inspect megatron": 212, "convert": 198, "convert nanotron": 204, "formats": 134}
"""How many modules of ckpt and its plugins a command imports at most."""
LOOKED_UP = [
    "architecture", "company", "config", "format", "layout", "reading", "receipt", "rewrite", "sdk", "storage.archive", "storage.bytes", "storage.bytes.remote",
    "storage.chunks", "storage.torch", "tensors", "training",
]  # fmt: skip
"""The modules of core whose names are looked up when they are used."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same Llama in several formats."""
    work = tmp_path_factory.mktemp("start")
    ir = write_ir(work / "ir", example("llama"))
    for name in ("hf", "megatron"):
        pytest.importorskip(f"ckpt_{name}")
        ckpt_core.convert(ir, work / name, to=name)
    return {"hf": work / "hf", "megatron": work / "megatron"}


def imported(*arguments: object) -> list[str]:
    """The modules that a command has imported when it ends."""
    code = (
        "import sys; from ckpt_core.cli.main import main; main(sys.argv[1:]); sys.stdout.flush(); print(*sys.modules)"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return said.splitlines()[-1].split()


@pytest.mark.parametrize("command", FEW)
def test_a_command_that_looks_at_headers_imports_little(command: str, models: dict[str, Path]) -> None:
    for name in command.split()[1:]:
        pytest.importorskip(f"ckpt_{name}")
    hf, out = models["hf"], models["hf"].parent / "out"
    arguments = {
        "inspect": ["inspect", hf],
        "inspect megatron": ["inspect", models["megatron"]],
        "convert": ["convert", hf, out, "--to", "hf", "--dry-run"],
        "convert nanotron": ["convert", hf, out, "--to", "nanotron", "--dry-run"],
        "formats": ["formats"],
    }
    found = imported(*arguments[command])
    late = {*LATE, "yaml"} - (OF_MEGATRON if command == "inspect megatron" else set())
    assert not [name for name in found if any(name == one or name.startswith(f"{one}.") for one in late)]
    assert sum(name.startswith("ckpt_") for name in found) <= FEW[command]


def test_core_has_numpy_from_one_place() -> None:
    found = []
    for file in CORE.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found += [file for name in names if name.partition(".")[0] == "numpy"]
    assert not found, "from ckpt_core import numpy as np: a command that moves no bytes imports none"


@pytest.mark.parametrize("module", LOOKED_UP)
def test_a_name_that_is_looked_up_is_what_a_type_checker_sees(module: str) -> None:
    """What stands under TYPE_CHECKING is what `__getattr__` finds."""
    public = importlib.import_module(f"ckpt_core.{module}")
    (checked,) = (node for node in ast.parse(Path(public.__file__).read_text()).body if isinstance(node, ast.If))
    seen = {}
    for node in checked.body:
        assert isinstance(node, ast.ImportFrom)
        home = importlib.import_module(node.module)
        for alias in node.names:
            inside = f"{node.module}.{alias.name}"
            seen[alias.asname or alias.name] = getattr(home, alias.name, None) or importlib.import_module(inside)
    modules = (
        {file.stem for file in Path(public.__file__).parent.glob("*.py")} if hasattr(public, "__path__") else set()
    )
    shadowed = {name for name in modules & set(seen) if not isinstance(seen[name], ModuleType)}
    assert not shadowed, "importing the module of this name would put it in the place of what is meant"
    assert set(seen) <= set(public.__all__) and all(getattr(public, name) is value for name, value in seen.items())
    with pytest.raises(AttributeError, match=f"module 'ckpt_core.{module}' has no attribute 'absent'"):
        _ = public.absent


@pytest.mark.parametrize("module", LOOKED_UP)
def test_help_and_completion_see_names_that_nobody_looked_up(module: str) -> None:
    code = "import importlib, sys; public = importlib.import_module(sys.argv[1]); assert {*public.__all__} <= {*dir(public)}"
    subprocess.run([sys.executable, "-c", code, f"ckpt_core.{module}"], check=True)


def of_core() -> dict[str, Path]:
    """The file of every module of core."""
    found = {}
    for file in CORE.rglob("*.py"):
        parts = file.relative_to(CORE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def body_of(file: Path) -> tuple[list[ast.ImportFrom], dict[str, tuple[str, str]]]:
    """What a module imports from core when it is imported, and where the names are that it looks up later."""
    tree = ast.parse(file.read_text())
    now = [
        node for node in tree.body if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ckpt_core")
    ]
    later = [node for one in tree.body if isinstance(one, ast.If) and one.orelse for node in one.body]
    homes = {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in later
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return now, homes


def test_threads_may_import_what_they_like() -> None:
    """Python holds the lock of a module while it imports it and what it needs: two threads can only block one another where modules need
    one another in a circle. A package whose body imports its own modules is one, since these need the package."""
    files = of_core()
    bodies = {module: body_of(file) for module, file in files.items()}

    def where(module: str, name: str) -> set[str]:
        """What has to be imported for a name of a module."""
        if module not in files:
            return set()
        if f"{module}.{name}" in files:
            return {module, f"{module}.{name}"}
        home = bodies[module][1].get(name)
        return {module} | (where(*home) if home else set())

    def needs(module: str) -> set[str]:
        found = {module.rpartition(".")[0]} - {""}
        return found.union(
            *(where(node.module or "", alias.name) for node in bodies[module][0] for alias in node.names)
        )

    graph: dict[str, set[str]] = {}
    pending = ["ckpt_core.api", *(one for name in ckpt_core.sdk.__all__ for one in where("ckpt_core.sdk", name))]
    while pending:
        if (module := pending.pop()) not in graph:
            pending += graph.setdefault(module, needs(module))
    assert len(graph) > 100
    graphlib.TopologicalSorter(graph).prepare()


def test_numpy_by_its_lazy_name_is_no_package() -> None:
    from ckpt_core import numpy

    assert "ndarray" in dir(numpy) and not hasattr(numpy, "__path__")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("ckpt_core.numpy.linalg")


def used_unimported(source: str) -> set[str]:
    """The names that a module uses when it runs, and imports only for a type checker."""
    tree = ast.parse(source)
    checked = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse
        for one in node.body
        if isinstance(one, ast.Import | ast.ImportFrom)
        for alias in one.names
    }

    def used(node: ast.AST, bound: set[str]) -> Iterator[str]:
        if isinstance(node, ast.Name) and node.id in checked - bound:
            yield node.id
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            inner = list(ast.walk(node))
            imports = [one for one in inner if isinstance(one, ast.Import | ast.ImportFrom)]
            bound = bound | {alias.asname or alias.name for one in imports for alias in one.names}
            bound |= {one.id for one in inner if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
            bound |= {one.arg for one in inner if isinstance(one, ast.arg)}
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns"):
                for one in value if isinstance(value, list) else [value]:
                    if isinstance(one, ast.AST):
                        yield from used(one, bound)

    return set(used(tree, set()))


def test_what_a_type_checker_alone_imports_is_not_used() -> None:
    files = [*CORE.rglob("*.py"), *Path(__file__).parents[2].glob("plugins/*/src/**/*.py")]
    found = {file: used_unimported(file.read_text()) for file in files}
    assert not {file: names for file, names in found.items() if names}
    seen = "if TYPE_CHECKING:\n    from a import B\ndef f(x: B) -> B:\n    from a import B\n    return B()\n"
    assert not used_unimported(seen) and used_unimported(seen + "y: B = B()\n") == {"B"}


class TestEntryPoints:
    def test_they_are_those_of_the_standard_library(self) -> None:
        ours, theirs = (
            sorted((entry.name, entry.value, entry.module, entry.distribution) for entry in found)
            for found in (installed._in_folders(), installed._anywhere())
        )
        assert ours == theirs != []
        for entry in installed._in_folders():
            if entry.name in ("hf", "ir"):
                assert entry.load() is importlib.import_module(entry.module)

    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second"), str(tmp_path / "absent")])
        for folder, text in (
            ("first/A_b-1.0.dist-info", "[other]\na = os\n\n[ckpt.formats]\n# a comment\na = os:path.join [extra]\n"),
            ("first/c.egg-info", "[ckpt.formats]\nc=os\n"),
            ("first/d-1.dist-info", "[console_scripts]\nd = os:path\n"),
            ("first/none-1.dist-info", None),
            ("second/a.b-2.0.dist-info", "[ckpt.formats]\na = sys\n"),
            ("second/e-1.dist-info", "[ckpt.formats]\na = sys\n"),
        ):
            (tmp_path / folder).mkdir(parents=True)
            named = Path(folder).name.partition("-")[0].removesuffix(".egg")
            file = "PKG-INFO" if folder.endswith("egg-info") else "METADATA"
            (tmp_path / folder / file).write_text(f"Name: {named}\nVersion: 1.0\n")
            if text is not None:
                (tmp_path / folder / "entry_points.txt").write_text(text)
        return tmp_path

    def test_each_distribution_counts_where_it_comes_first(self, place: Path) -> None:
        import os

        found = list(installed._in_folders())
        assert sorted((one.name, one.value) for one in found) == [
            ("a", "os:path.join [extra]"),
            ("a", "sys"),
            ("c", "os"),
        ]
        assert sorted(one.distribution for one in found) == ["A_b 1.0", "c 1.0", "e 1.0"]
        assert next(one for one in found if "join" in one.value).load() is os.path.join
        assert sorted((one.name, one.value) for one in installed._anywhere()) == sorted(
            (one.name, one.value) for one in found
        )

    def test_archives_and_other_finders_are_asked_for(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert installed._only_folders()
        (place / "archive.zip").write_bytes(b"")
        monkeypatch.setattr(sys, "path", [*sys.path, str(place / "archive.zip")])
        assert not installed._only_folders()
        monkeypatch.setattr(sys, "path", sys.path[:-1])

        class Finder:
            find_distributions = None

        monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
        assert not installed._only_folders()

    def test_an_egg_that_setup_install_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        inside = tmp_path / "a_b-1.0-py3.11.egg" / "EGG-INFO"
        inside.mkdir(parents=True)
        (inside / "PKG-INFO").write_text("Name: a-b\nVersion: 1.0\n")
        (inside / "entry_points.txt").write_text("[ckpt.formats]\na = os\n")
        monkeypatch.setattr(sys, "path", [str(inside.parent)])
        for found in (installed._in_folders(), installed._anywhere()):
            assert [(one.name, one.value, one.distribution) for one in found] == [("a", "os", "a-b 1.0")]

    @pytest.mark.parametrize(
        ("metadata", "said"),
        [
            (None, "of_a_stranger 1.0"),
            (b"", "of_a_stranger 1.0"),
            (b"\xff\xfe", "of_a_stranger 1.0"),
            (b"name:Of-A-Stranger\r\nversion:2.0\r\n\r\nName: none\r\n", "Of-A-Stranger 2.0"),
        ],
    )
    def test_what_a_stranger_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: bytes | None, said: str
    ) -> None:
        folder = tmp_path / "of_a_stranger-1.0.dist-info"
        folder.mkdir()
        (folder / "entry_points.txt").write_bytes(b"[ckpt.formats]\n# caf\xe9\na = os\n")  # in Latin-1
        if metadata is not None:
            (folder / "METADATA").write_bytes(metadata)
        monkeypatch.setattr(sys, "path", [None, "a\0b", tmp_path])
        assert installed._only_folders()
        assert [(one.name, one.distribution) for one in installed._in_folders()] == [("a", said)]
