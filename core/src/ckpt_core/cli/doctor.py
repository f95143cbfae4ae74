"""`ckpt doctor`: is this installation whole, what could it do with more, and does every plugin work?"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

import click

from ckpt_core import __version__
from ckpt_core.cli.output import Page, emit_json, paint, say, table
from ckpt_core.cli.progress import progress
from ckpt_core.lean import dataclass
from ckpt_core.sizes import size_text
from ckpt_core.text import plural

if TYPE_CHECKING:
    from ckpt_core.architecture import Architecture
    from ckpt_core.plugins.discovery import Plugin


@dataclass(frozen=True, slots=True)
class Library:
    """A library that nothing needs to convert: what it unlocks, and how it is installed."""

    name: str
    unlocks: str
    install: str


LIBRARIES = (
    Library("torch", "verify --logits, load_model", 'pip install "ckpt-convert[models]"'),
    Library("transformers", "verify --logits by transformers itself, load_model", 'pip install "ckpt-convert[models]"'),
    Library("huggingface_hub", "sources at hf://owner/name", 'pip install "ckpt-convert[hub]"'),
    Library("obstore", "sources at s3://, gs:// and az://", 'pip install "ckpt-convert[s3]"'),
    Library("boto3", "destinations at s3://", 'pip install "ckpt-convert[s3]"'),
    Library("azure-storage-blob", "destinations at az://", 'pip install "ckpt-convert[az]"'),
    Library("ray", "convert --engine ray", 'pip install "ckpt-convert[ray]"'),
    Library("distributed", "convert --engine dask", 'pip install "ckpt-convert[dask]"'),
    Library("matplotlib", "verify --plot", 'pip install "ckpt-convert[plot]"'),
    Library("rich", "a bar in colour", 'pip install "ckpt-core[rich]"'),
    Library("ckpt-page", "inspect --html", 'pip install "ckpt-core[page]"'),
)


@dataclass(frozen=True, slots=True)
class Examination:
    """A plugin, and what became of its self-check: passed, failed or not run. `by` says of which model, or why."""

    plugin: Plugin
    outcome: str
    by: str = ""
    seconds: float = 0.0

    @property
    def healthy(self) -> bool:
        return self.plugin.broken is None and self.outcome != "failed"


@click.command(short_help="Check the installation: versions, plugins, libraries, room.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(*, as_json: bool) -> int:
    """Say what is installed and whether it works, what more libraries would unlock, and what room there is.

    Each plugin writes a small model, finds every element where it put it, and reads every value as it was; that takes seconds. Exit 0 if
    all is well, 1 if a plugin is broken or fails, if the versions of distributions differ, or if there is no folder for temporary files.
    """
    from ckpt_core.plugins.discovery import all_plugins

    plugins = all_plugins()
    temporary = _temporary()
    mismatched = sorted({one.distribution for one in plugins if _of_ours(one) and not _of_this_version(one)})
    if not as_json:
        _show_machine(mismatched)
    examined = _examined(plugins, temporary)
    healthy = all(one.healthy for one in examined) and not mismatched and bool(plugins) and temporary is not None
    if as_json:
        emit_json(_json(examined, mismatched, healthy), "doctor")
    else:
        _show_plugins(examined, mismatched, healthy)
    return 0 if healthy else 1


def _examined(plugins: list[Plugin], temporary: str | None) -> list[Examination]:
    """The examination of each plugin. On stderr it is said how far it is."""
    if temporary is None:
        return [Examination(one, "not run", f"no folder for temporary files: {_SET_TMPDIR}") for one in plugins]
    from ckpt_core.engine.run import Progress

    examined: list[Examination] = []
    with progress("checking the plugins", of_bytes=False) as listener:
        for plugin in plugins:
            listener(Progress(len(examined), len(plugins), plugin.name))
            examined.append(examination(plugin))
    return examined


def examination(plugin: Plugin) -> Examination:
    """Take the first example model that a format holds there and back, or an adapter of it; a format that only reads is loaded and no more."""
    from ckpt_core.errors import CkptError, Refusal, UsageError

    if plugin.broken is not None:
        return Examination(plugin, "not run", "it is broken")
    adapters = plugin.info.adapters and bool(plugin.hooks.ckpt_adapter.get_hookimpls())
    if not (plugin.info.reads and (plugin.info.writes or adapters)):
        return Examination(plugin, "not run", "nothing is written in it; it loads, and its detector answers")
    began, why = time.monotonic(), ""
    for name, architecture in _models():
        try:
            what, wrong = _there_and_back(plugin, name, architecture)
        except CkptError as problem:
            if isinstance(problem, Refusal | UsageError) or _refuses(problem):
                why = why or f": {name}: {problem.problem}"
                continue
            return Examination(plugin, "failed", f"{name}: {problem.problem}", time.monotonic() - began)
        except Exception as error:  # a stranger's plugin
            return Examination(plugin, "failed", f"{name}: {type(error).__name__}: {error}", time.monotonic() - began)
        by = f"{what}: {wrong[0]}" if wrong else what
        return Examination(plugin, "failed" if wrong else "passed", by, time.monotonic() - began)
    return Examination(plugin, "not run", f"it holds none of the example models{why}")


def _there_and_back(plugin: Plugin, name: str, architecture: Architecture) -> tuple[str, list[str]]:
    """What was written and read again, and what of it was wrong. `Refusal` if the format does not hold it."""
    from ckpt_core.errors import Refusal
    from ckpt_core.storage.dtypes import dtype_named
    from ckpt_core.verify.roundtrip import there_and_back
    from ckpt_core.verify.tracer import trace

    dtype = dtype_named("bf16")
    if plugin.info.adapters:
        adapter = plugin.hooks.ckpt_adapter(architecture=architecture)
        if adapter is None:
            raise Refusal("it has no adapter of this model")
        return f"adapter of {name}", there_and_back(plugin, architecture, dtype, adapter)
    seen = trace(plugin.name, architecture, dtype)
    return name, [*map(str, (*seen.misplaced, *seen.departed))] or there_and_back(plugin, architecture, dtype)


def _refuses(problem: Exception) -> bool:
    """Whether an error is refusals and nothing else."""
    from ckpt_core.errors import ProblemsFound, Refusal, UsageError

    kinds = (Refusal, UsageError)
    return isinstance(problem, ProblemsFound) and all(isinstance(one, kinds) for one in problem.problems)


def _models() -> Iterator[tuple[str, Architecture]]:
    """The commonest models first. In the Llama a head is as wide as frameworks assume that do not say it."""
    from ckpt_core.architecture.examples import example, example_architectures

    yield "llama", example("llama", hidden=216)
    yield from example_architectures().items()


def _of_ours(plugin: Plugin) -> bool:
    """Whether the distribution is one of those that are released together with ckpt-core."""
    try:
        said, own = (metadata.metadata(name) for name in (plugin.distribution.partition(" ")[0], "ckpt-core"))
    except metadata.PackageNotFoundError:
        return False
    return "Author" in said and "Author" in own and said["Author"] == own["Author"]


def _of_this_version(plugin: Plugin) -> bool:
    return plugin.distribution.partition(" ")[2] == __version__


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution, without importing it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    said = {"ckpt": __version__, "python": platform.python_version(), "platform": platform.platform()}
    return said | {
        name: version_of(name) or "?" for name in ("numpy", "click", "pluggy", "blake3", "pyyaml", "zlib-ng")
    }


_SET_TMPDIR = "set TMPDIR to one that can be written"


def _temporary() -> str | None:
    """Where temporary files go; None if no folder that Python tries can be written."""
    import tempfile

    try:
        return tempfile.gettempdir()
    except OSError:
        return None


def _memory() -> tuple[int | None, int | None]:
    """All memory of this machine, and what is available, in bytes."""
    from ckpt_core.storage.bytes.memory import memory

    return memory()


def _disks() -> list[tuple[str, int, str]]:
    """Free bytes here and where temporary files go."""
    from ckpt_core.storage.bytes.space import free_space

    rows = []
    for path in dict.fromkeys(filter(None, (os.getcwd(), _temporary()))):
        room = free_space(path)
        if room is not None:
            rows.append((path, *room))
    return rows


def _json(examined: list[Examination], mismatched: list[str], healthy: bool) -> dict[str, object]:
    total, available = _memory()
    return {
        "healthy": healthy,
        "versions": _versions(),
        "mismatched": mismatched,
        "plugins": [
            {
                "name": one.plugin.name,
                "distribution": one.plugin.distribution,
                "broken": one.plugin.broken,
                **({} if one.plugin.broken is None else {"fix": one.plugin.fix}),
                "selfcheck": one.outcome,
                "by": one.by,
                "seconds": round(one.seconds, 3),
            }
            for one in examined
        ],
        "libraries": [
            {"name": one.name, "version": version_of(one.name), "unlocks": one.unlocks, "install": one.install}
            for one in LIBRARIES
        ],
        "machine": {
            "cores": os.cpu_count() or 1,
            "memory": total,
            "available": available,
            "disks": [{"path": path, "free": free, "mount": mount} for path, free, mount in _disks()],
        },
    }


def _show_machine(mismatched: list[str]) -> None:
    """What is known at once."""
    page = Page()
    page.say("versions", *table(_versions().items()))
    page.say("program", f"{sys.executable} -m ckpt_core")
    page.say(
        "mismatched",
        *(paint(f"{one}, where ckpt-core is {__version__}: install all of one version", "red") for one in mismatched),
    )
    total, available = _memory()
    if total is not None and available is not None:
        page.say(
            "memory",
            f"{size_text(available)} available of {size_text(total)}; a conversion takes 256 MiB, see --max-memory",
        )
    page.say("cores", str(os.cpu_count() or 1))
    page.say("disk", *(f"{size_text(free)} free at {path} (on {mount})" for path, free, mount in _disks()))


def _show_plugins(examined: list[Examination], mismatched: list[str], healthy: bool) -> None:
    """What the plugins were found to be, what is not installed, and whether all is well."""
    page = Page()
    rows = [
        (one.plugin.name, one.plugin.distribution, one.outcome, one.plugin.broken or one.by, one.plugin.fix or "")
        for one in examined
    ]
    lines = table([("FORMAT", "FROM", "SELF-CHECK", "BY", ""), *rows])
    page.say(
        "plugins",
        paint(lines[0], "bold"),
        *(line if one.healthy else paint(line, "red") for one, line in zip(examined, lines[1:], strict=True)),
    )
    if not examined:
        page.say("plugins", paint("none: pip install ckpt-convert", "red"))
    page.say(
        "libraries",
        *table(
            (one.name, found or "-", one.unlocks, "" if found else one.install)
            for one in LIBRARIES
            for found in [version_of(one.name)]
        ),
    )
    failed = sum(not one.healthy for one in examined)
    if healthy:
        say(paint("all is well", "green"))
    else:
        wrong = [plural(failed, "plugin") + " with a problem"] * bool(failed)
        wrong += ["versions that differ"] * bool(mismatched)
        wrong += [f"no folder for temporary files ({_SET_TMPDIR})"] * (_temporary() is None)
        say(paint(f"not well: {', '.join(wrong) or 'no plugin is installed'}", "red"))
