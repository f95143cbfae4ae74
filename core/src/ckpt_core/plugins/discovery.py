"""Finding formats: by entry point, one by one, and only when they are asked for.

A plugin that cannot be used is one row that says why, and never a crash.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from ckpt_core.errors import CkptError, Lines, StoreError, UsageError, nearest
from ckpt_core.lean import dataclass
from ckpt_core.ledger import Loss
from ckpt_core.plugins import hookspecs
from ckpt_core.plugins.installed import EntryPoint, distributions, entry_points, format_names

if TYPE_CHECKING:
    from ckpt_core.checkpoint import Target
    from ckpt_core.launch import Launch
    from ckpt_core.plugins.request import FormatInfo, WriteRequest

_ABSENT = os.path.join(os.devnull, "absent")  # no file system has a path below a device
_FOLDER = os.path.dirname(__file__)  # a folder that is not a checkpoint of any format


@dataclass(frozen=True, slots=True)
class Plugin:
    """A format that may or may not load: `broken` says why not, and `fix` what to do. Hooks and info of a broken one raise that."""

    name: str
    entries: Sequence[EntryPoint]
    broken: str | None = None
    fix: str | None = None
    _loaded: tuple[pluggy.HookRelay, FormatInfo] | None = None

    @property
    def distribution(self) -> str:
        """The name and the version of what was installed."""
        return distributions(self.entries)

    @property
    def module(self) -> str:
        """Where its hooks are."""
        return self.entries[0].module

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
            raise CkptError(
                f"format {self.name} is installed but broken",
                found=f"{self.distribution}: {self.broken}",
                fix=self.fix or f"report this to the authors of {self.distribution}",
            )
        return self._loaded


@functools.cache
def load(name: str) -> Plugin:
    """Load one format. A failure is in `broken`; an unknown name is a `UsageError`."""
    known = entry_points()
    if name not in known:
        raise UsageError(f"unknown format {name!r}", expected=", ".join(known), fix=_meant(name, list(known)))
    entries = known[name]
    if len(entries) > 1:
        said = f"several distributions have a format of this name: {distributions(entries)}"
        return Plugin(name, entries, said, "uninstall all of them but one")
    try:
        return Plugin(name, entries, _loaded=_loaded(entries[0]))
    except CkptError as fault:
        return Plugin(name, entries, _told(fault), fault.fix)
    except Exception as error:  # whatever a stranger's code raises
        return Plugin(name, entries, _one_line(error))


def _meant(name: str, known: list[str]) -> str:
    """What to do about a name that no format has: another name of one (`huggingface`), or one that is written alike."""
    from ckpt_core.diagnosis import package_of

    called = {one: plugin.name for plugin in map(load, known) if not plugin.broken for one in plugin.info.called}
    asked = name.lower().replace("_", "-").replace(" ", "-")
    package = package_of(asked)
    if package is not None and asked not in known:
        return f"pip install {package}, or ckpt-convert for all formats"
    meant = asked if asked in known else called.get(asked) or nearest(asked, [*known, *called])
    return f"did you mean {called.get(meant, meant)!r}?" if meant else "see: ckpt formats"


def _told(fault: CkptError) -> str:
    """An error in one line: what is wrong, and what it was found in, as the layout sentence that does not parse."""
    found = fault.found[0] if isinstance(fault.found, Lines) else fault.found
    return f"{fault.problem}: {found}" if found else fault.problem


def _one_line(error: Exception) -> str:
    """An error of a plugin's own. Pluggy says in several lines what is wrong with a hook; all others say it in the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = "; ".join(lines) if isinstance(error, pluggy.PluginValidationError) else (lines or [""])[0]
    return f"{type(error).__name__}: {said}"


class _Hooks(pluggy.PluginManager):
    """Looks at what may be a hook. Pluggy by itself looks at every name of a module, and that with the slow means of `inspect`."""

    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
        return super().parse_hookspec_opts(module_or_class, name) if name.startswith("ckpt_") else None

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        value = vars(plugin).get(name) if isinstance(plugin, ModuleType) else None
        is_none = name.startswith("__") or isinstance(value, type | ModuleType)
        return None if is_none else super().parse_hookimpl_opts(plugin, name)


def _loaded(entry: EntryPoint) -> tuple[pluggy.HookRelay, FormatInfo]:
    """The hooks of a format, all of them checked; a `CkptError` says what is wrong with them."""
    manager = _Hooks("ckpt")
    manager.register(entry.load(), entry.name)
    if not hasattr(manager.hook, "ckpt_info"):
        raise CkptError("it has no hook ckpt_info", fix=f"add ckpt_info to {entry.module}, and mark it with @hookimpl")
    info: FormatInfo | None = next(iter(manager.hook.ckpt_info()), None)
    if info is None:
        raise CkptError("its ckpt_info returns None", fix="let ckpt_info return a FormatInfo")
    # First of all, since the hooks of another SDK may be others.
    if info.sdk != hookspecs.SDK:
        newer = "ckpt-core" if info.sdk > hookspecs.SDK else distributions([entry]).partition(" ")[0]
        raise CkptError(
            f"it was written for SDK {info.sdk}, this is SDK {hookspecs.SDK}", fix=f"pip install --upgrade {newer}"
        )
    if info.name != entry.name:
        raise CkptError(
            f"it calls itself {info.name!r}, its entry point says {entry.name!r}", fix="give both the same name"
        )
    _check_names(manager, entry.module)
    manager.add_hookspecs(hookspecs)  # which checks the arguments
    _check_needed(manager.hook, info, entry.module)
    _check_detection(manager.hook)
    return manager.hook, info


def _check_names(manager: pluggy.PluginManager, module: str) -> None:
    known = [name for name in vars(hookspecs) if name.startswith("ckpt_")]
    for name in vars(manager.hook):
        if name.startswith("ckpt_") and name not in known:
            meant = nearest(name, known)
            fix = f"rename it to {meant}" if meant else f"remove it, or its @hookimpl, from {module}"
            raise CkptError(f"ckpt has no hook {name}", fix=fix)


def _check_needed(hooks: pluggy.HookRelay, info: FormatInfo, module: str) -> None:
    for name, why in (
        ("ckpt_detect", "which every format needs"),
        ("ckpt_read", "and FormatInfo says reads=True" if info.reads else ""),
        (
            "ckpt_write",
            "and FormatInfo says writes=True"
            if info.writes
            else "and FormatInfo says adapters=True"
            if info.adapters
            else "",
        ),
    ):
        if why and not getattr(hooks, name).get_hookimpls():
            raise CkptError(f"it has no hook {name}, {why}", fix=f"add {name} to {module}, and mark it with @hookimpl")


def _check_detection(hooks: pluggy.HookRelay) -> None:
    """A detector is asked about every path that a user gives, so it may neither fail nor take anything for its own."""
    for path, what in ((_ABSENT, "a path that does not exist"), (_FOLDER, "a folder of Python files")):
        try:
            fact = hooks.ckpt_detect(path=path)
        except Exception as error:
            raise CkptError(
                f"its ckpt_detect raises {_one_line(error)} on {what}", fix="let ckpt_detect return None there"
            ) from error
        if fact:
            raise CkptError(f"its ckpt_detect takes {what} for its own: {fact}", fix="let ckpt_detect look closer")


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

    Where one of them says that it comes before another (`FormatInfo.before`), the other is not among them, and the fact says so.
    A plugin that fails instead of answering does not hide what the others say: the fact names it. If none of them knows the
    path either, its failure is the error.
    """
    found: list[tuple[Plugin, str]] = []
    failures: list[CkptError] = []
    for plugin in all_plugins():
        if plugin.broken is None:
            try:
                fact = plugin.hooks.ckpt_detect(path=path)
            except StoreError:  # a store that fails says nothing of the plugin
                raise
            except Exception as error:  # whatever a stranger's code raises
                failures.append(_failed(plugin, path, error))
                continue
            if fact:
                found.append((plugin, fact))
    if failures and not found:
        raise failures[0]
    unasked = [f"{failure.problem} ({failure.found})" for failure in failures]
    best = []
    for plugin, fact in found:
        if not any(_comes_before(other, plugin) for other, _ in found):
            passed = [f"before {other.name} ({its})" for other, its in found if _comes_before(plugin, other)]
            best.append((plugin, "; ".join([fact, *passed, *unasked])))
    return best


def _comes_before(one: Plugin, other: Plugin) -> bool:
    """Whether `one` says that it is the more specific of the two. Where each says it of the other, the user decides."""
    return other.name in one.info.before and one.name not in other.info.before


def check_returned(plugin: Plugin, hook: str, returned: object, wanted: type) -> None:
    """What a plugin hands back, before anything is done with it. Raises `CkptError` for what is not a `wanted`."""
    if not isinstance(returned, wanted):
        raise CkptError(
            f"{hook} of format {plugin.name} returns no {wanted.__name__}",
            found=f"{returned!r:.80} from {plugin.distribution}",
            fix="report this to the plugin's authors",
        )


def _failed(plugin: Plugin, path: str, error: Exception) -> CkptError:
    return CkptError(
        f"format {plugin.name} fails to look at this path",
        file=path,
        found=f"{plugin.distribution}: {_one_line(error)}",
        fix="name the format with --from, and report this to the plugin's authors",
    )


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
