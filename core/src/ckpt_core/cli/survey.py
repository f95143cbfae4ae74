"""What `ckpt inspect` finds out about a checkpoint, before it is shown as text, JSON or a page."""

from __future__ import annotations

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ckpt_core.errors import CkptError, ProblemsFound
from ckpt_core.lean import dataclass
from ckpt_core.text import plural

if TYPE_CHECKING:
    from ckpt_core.checkpoint import Checkpoint, Loss
    from ckpt_core.cli.stand_in import StandIn
    from ckpt_core.launch import Launch
    from ckpt_core.ledger import Entry, Fate
    from ckpt_core.plugins.discovery import Plugin
    from ckpt_core.tensors.assembly import LazyParameter
    from ckpt_core.verify.statistics import Statistics

_FATES: tuple[Fate, ...] = ("used", "carried", "left")
GROUPS = ("embedding", "positions", "attention", "mlp", "experts", "norms", "head", "classifier", "predictors", "other")


@dataclass(frozen=True)
class Future:
    """Whether a format can hold a checkpoint as it is: `refusals` if not, `losses` beyond those of reading if so."""

    format: str
    refusals: list[str]
    losses: list[Loss]
    launch: Launch | None = None

    @property
    def possible(self) -> bool:
        return not self.refusals


@dataclass(frozen=True)
class Survey:
    """A checkpoint, the path that was given, with `--stats` the statistics of its tensors, and the options that it was read by (`asked`)."""

    checkpoint: Checkpoint
    src: str
    statistics: dict[str, Statistics] | None = None
    asked: Sequence[str] = ()

    @functools.cached_property
    def futures(self) -> list[Future]:
        """What the checkpoint can become: every format is asked, so this takes longer than all else."""
        return possible_targets(self.checkpoint)

    @property
    def launch(self) -> Launch | None:
        """How the framework of the checkpoint's own format is started; None if no program trains it."""
        own = [one.launch for one in self.futures if one.format == self.checkpoint.format]
        return own[0] if own else None

    @property
    def bytes(self) -> int:
        """The size of the checkpoint's files."""
        return sum(state.size for state in self.checkpoint.files)

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """Elements per group, without vocabulary padding; a tied head is part of the embedding."""
        from ckpt_core.architecture import parameters

        counts: Counter[str] = Counter()
        for parameter in parameters(self.checkpoint.architecture).values():
            rows = parameter.true_rows
            counts[group_of(parameter.name)] += (
                parameter.elements if rows is None else parameter.elements // parameter.shape[0] * rows
            )
        return {group: counts[group] for group in GROUPS if counts[group]}

    @functools.cached_property
    def dtypes(self) -> dict[str, tuple[int, int]]:
        """Per dtype that is read: how many canonical tensors, and their bytes in the files (duplicates not counted)."""
        return self._counted(lambda assembly: assembly.dtype.name)

    @functools.cached_property
    def stored(self) -> dict[str, tuple[int, int]]:
        """The same for each dtype, and for each scheme of codes and scales, as the files have them."""
        return self._counted(_kind)

    def _counted(self, kind: Callable[[LazyParameter], str]) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for assembly in self.checkpoint.tensors.values():
            size = sum(block.stored_bytes for block in assembly.value_blocks)
            tensors, total = found.get(name := kind(assembly), (0, 0))
            found[name] = tensors + 1, total + size
        return found

    @property
    def ledger_lines(self) -> list[str]:
        """How many files and keys of the source are used, carried and left; what is left is among the losses by name."""
        files = self.files
        keys: Counter[Fate] = Counter(entry.fate for entry in self.checkpoint.ledger if entry.key)
        return [
            f"{plural(counts.total(), what)}{where}: "
            + ", ".join(f"{counts[fate]:,} {fate}" for fate in _FATES if counts[fate])
            for what, where, counts in (("file", "", files), ("key", " in them", keys))
            if counts
        ]

    @functools.cached_property
    def files(self) -> Counter[Fate]:
        """The files of the source by what became of them, each counted once: a file of which only keys are known is used if one of them is."""
        whole: dict[str, Entry] = {}
        inside: dict[str, set[Fate]] = {}
        for entry in self.checkpoint.ledger:
            if entry.key:
                inside.setdefault(entry.file, set()).add(entry.fate)
            else:
                whole[entry.file] = entry
        alone = (  # and not the folder of a checkpoint whose keys lie in many files
            file for file in inside.keys() - whole.keys() if not any(one.startswith(file + os.sep) for one in whole)
        )
        counts: Counter[Fate] = Counter(next(fate for fate in _FATES if fate in inside[file]) for file in alone)
        for entry in whole.values():
            counts[entry.fate] += entry.files
        return counts

    @functools.cached_property
    def not_finite(self) -> dict[str, Statistics]:
        """The tensors in which statistics found NaNs or infinities."""
        return {name: found for name, found in (self.statistics or {}).items() if not found.finite}


def _kind(assembly: LazyParameter) -> str:
    """What a tensor is stored as: its dtype, or a scheme of codes and scales with the dtype that is computed of them."""
    schemes = (block.quantised.what for block in assembly.value_blocks if block.quantised is not None)
    what = next(schemes, None)
    return assembly.dtype.name if what is None else f"{what}, read as {assembly.dtype}"


def possible_targets(checkpoint: Checkpoint) -> list[Future]:
    """What every installed format that writes would make of this checkpoint, with its default options.

    Each is asked for a plan of a few layers that stand for all. Where it refuses those, or asks for values, it is asked
    for a plan of the whole: what is said is what a conversion would say.
    """
    from ckpt_core.cli.stand_in import stand_in
    from ckpt_core.plugins.discovery import all_plugins

    checkpoint = replace(checkpoint, training=None)  # what a format can hold of the model
    small = stand_in(checkpoint)
    return [
        _future(checkpoint, small, plugin) for plugin in all_plugins() if plugin.broken is None and plugin.info.writes
    ]


def _future(checkpoint: Checkpoint, small: StandIn | None, plugin: Plugin) -> Future:
    if small is not None:
        with contextlib.suppress(Exception):
            return Future(plugin.name, [], *_planned(checkpoint, plugin, small))
    try:
        return Future(plugin.name, [], *_planned(checkpoint, plugin))
    except ProblemsFound as problems:
        return Future(plugin.name, [_one_line(problem) for problem in problems.problems], [])
    except CkptError as problem:
        return Future(plugin.name, [_one_line(problem)], [])
    except Exception as error:  # a stranger's plugin; the others still answer
        return Future(plugin.name, [f"the plugin failed: {type(error).__name__}: {error}"], [])


def _planned(checkpoint: Checkpoint, plugin: Plugin, small: StandIn | None = None) -> tuple[list[Loss], Launch | None]:
    """What a plan loses besides what reading did, of the whole or of what stands for it, and how the format is started;
    raises what the format refuses.
    """
    from ckpt_core.api import target_of
    from ckpt_core.engine.plan import make_plan
    from ckpt_core.plugins.request import WriteRequest
    from ckpt_core.plugins.values import typed_options

    request = WriteRequest(typed_options(plugin.info, {}, "write"), destination=os.path.abspath("converted"))
    asked = checkpoint if small is None else small.checkpoint
    target = target_of(plugin, asked, request)
    plan = make_plan(checkpoint, target)
    losses = plan.losses if small is None else plan.losses_counted(small.stands_for)
    of_source = checkpoint.all_losses
    return [loss for loss in losses if loss not in of_source], target.launch


def _one_line(problem: CkptError) -> str:
    return problem.problem + (f" ({problem.fix})" if problem.fix else "")


def group_of(name: str) -> str:
    """The group that a canonical parameter is counted in.

    >>> group_of("layers.0.attention.q_norm.weight"), group_of("encoder.layers.3.mlp.experts.up.weight")
    ('norms', 'experts')
    """
    parts = name.split(".")
    if "predictors" in parts:
        return "predictors"
    if any(part.endswith("norm") for part in parts):
        return "norms"
    if "experts" in parts:
        return "experts"
    if any(part.endswith("attention") for part in parts):
        return "attention"
    return next((part for part in parts if part in GROUPS), "other")


def not_finite_text(found: Statistics) -> str:
    """`3 NaN, 1 infinite`."""
    parts = ((found.nans, "NaN"), (found.infinities, "infinite"))
    return ", ".join(f"{count:,} {kind}" for count, kind in parts if count)
