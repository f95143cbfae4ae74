"""Finding formats: by entry point, one by one, and only when asked for.

Names are listed without importing anything. A plugin that fails to import is one broken row, never a crash.
`CKPT_PLUGINS=hf,nanotron` restricts what is seen.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from importlib import metadata

import pluggy

from ckpt_core.checkpoint import Loss, Target
from ckpt_core.errors import CkptError, UsageError, did_you_mean
from ckpt_core.launch import Launch
from ckpt_core.plugins import hookspecs
from ckpt_core.plugins.request import FormatInfo, WriteRequest


@dataclass(frozen=True, slots=True)
class Plugin:
    """A format that may or may not load: `broken` says why not. Hooks and info of a broken one raise that.

    `module` is where its hooks are.
    """

    name: str
    distribution: str
    module: str = ""
    broken: str | None = None
    _loaded: tuple[pluggy.HookRelay, FormatInfo] | None = None

    @property
    def hooks(self) -> pluggy.HookRelay:
        """The plugin's hooks."""
        return self._working()[0]

    @property
    def info(self) -> FormatInfo:
        """What the plugin says about its format."""
        return self._working()[1]

    def _working(self) -> tuple[pluggy.HookRelay, FormatInfo]:
        if self._loaded is None:
            raise CkptError(f"format {self.name} is installed but broken", found=f"{self.distribution}: {self.broken}")
        return self._loaded


@functools.cache
def _entry_points() -> dict[str, metadata.EntryPoint]:
    allowed = os.environ.get("CKPT_PLUGINS")
    names = None if allowed is None else {name.strip() for name in allowed.split(",")}
    found: dict[str, metadata.EntryPoint] = {}
    for entry in sorted(metadata.entry_points(group=hookspecs.GROUP), key=lambda entry: (entry.name, entry.value)):
        if names is None or entry.name in names:
            found.setdefault(entry.name, entry)
    return found


def format_names() -> list[str]:
    """The names of all installed formats, loaded or not."""
    return list(_entry_points())


@functools.cache
def load(name: str) -> Plugin:
    """Load one format. A failure is in `broken`; an unknown name is a `UsageError`."""
    entries = _entry_points()
    if name not in entries:
        raise UsageError(f"unknown format {name!r}", expected=", ".join(entries), fix=did_you_mean(name, entries))
    entry = entries[name]
    distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "?"
    try:
        manager = pluggy.PluginManager("ckpt")
        manager.add_hookspecs(hookspecs)
        manager.register(entry.load(), name)
        manager.check_pending()
        info = manager.hook.ckpt_info()
        if info is None:
            raise CkptError("it has no ckpt_info hook")
        if info.sdk != hookspecs.SDK:
            raise CkptError(f"it was written for SDK {info.sdk}, this is SDK {hookspecs.SDK}")
        if info.name != name:
            raise CkptError(f"it calls itself {info.name!r}, its entry point says {name!r}")
    except Exception as error:  # whatever a stranger's import raises
        problem = str(error).splitlines()[0] if str(error) else ""
        return Plugin(name, distribution, entry.module, broken=f"{type(error).__name__}: {problem}")
    return Plugin(name, distribution, entry.module, _loaded=(manager.hook, info))


def require(name: str) -> Plugin:
    """Load one format, or raise why it cannot be used."""
    plugin = load(name)
    plugin._working()
    return plugin


def all_plugins() -> list[Plugin]:
    """Every installed format, broken ones included."""
    return [load(name) for name in format_names()]


def detect(path: str) -> list[tuple[Plugin, str]]:
    """The formats that recognise `path`, with the fact that decided it.

    A plugin that fails instead of answering does not hide what the others say; if none of them knows the path either,
    its failure is the error.
    """
    found, failure = [], None
    for plugin in all_plugins():
        if plugin.broken is None:
            try:
                fact = plugin.hooks.ckpt_detect(path=path)
            except Exception as error:  # whatever a stranger's code raises
                failure = CkptError(
                    f"format {plugin.name} fails to look at this path",
                    file=path,
                    found=f"{plugin.distribution}: {type(error).__name__}: {error}",
                    fix="name the format with --from, and report this to the plugin's authors",
                )
                continue
            if fact:
                found.append((plugin, fact))
    if failure is not None and not found:
        raise failure
    return found


def launched(plugin: Plugin, target: Target, request: WriteRequest, *, resumed: bool = False) -> Launch | None:
    """How a framework is started with a target; None for a format that no program trains. What its framework can't be
    told becomes a loss of the target.
    """
    launch: Launch | None = plugin.hooks.ckpt_launch(target=target, request=request, resumed=resumed)
    if launch is not None:
        target.losses += [
            Loss("unsaid", f"{one.name} = {one.value}", f"no argument of {launch.framework} says it")
            for one in launch.unsaid
        ]
    return launch
