"""`ckpt inspect`: what a checkpoint is, how that was found out, and what it can become."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.convert import parallel_text
from ckpt_core.cli.options import reading
from ckpt_core.cli.output import Page, count_text, emit_json, paint, plural, shortened, size_text, table
from ckpt_core.errors import CkptError, ProblemsFound

if TYPE_CHECKING:
    from ckpt_core.checkpoint import Checkpoint, Loss
    from ckpt_core.plugins.discovery import Plugin

_GROUPS = ("embedding", "positions", "attention", "mlp", "experts", "norms", "head", "classifier", "other")


@click.command(short_help="Say what a checkpoint is and what it can become.")
@click.argument("src")
@reading
def command(src: str, *, as_json: bool, **asked: Any) -> None:
    """Say what SRC is: format, layout, architecture, parameters, dtypes, and which formats can hold it.

    Only headers are read, so this takes no time for a model of any size.
    """
    from ckpt_core.api import read_checkpoint

    checkpoint = read_checkpoint(src, **asked)
    futures = possible_targets(checkpoint)
    if as_json:
        emit_json(checkpoint_json(checkpoint, src, futures))
    else:
        show_checkpoint(checkpoint, src, futures)


@dataclass(frozen=True)
class Future:
    """Whether a format can hold a checkpoint as it is: `refusals` if not, `losses` if so."""

    format: str
    refusals: list[str]
    losses: list[Loss]

    @property
    def possible(self) -> bool:
        return not self.refusals


def possible_targets(checkpoint: Checkpoint) -> list[Future]:
    """Every installed format that writes, asked for a plan of this checkpoint with its default options."""
    from ckpt_core.plugins.discovery import all_plugins

    return [_future(checkpoint, plugin) for plugin in all_plugins() if plugin.broken is None and plugin.info.writes]


def _future(checkpoint: Checkpoint, plugin: Plugin) -> Future:
    from ckpt_core.engine.plan import make_plan
    from ckpt_core.plugins.request import WriteRequest, typed_options

    request = WriteRequest(typed_options(plugin.info, {}, "write"), destination=os.path.abspath("converted"))
    try:
        plan = make_plan(checkpoint, plugin.hooks.ckpt_write(checkpoint=checkpoint, request=request))
    except ProblemsFound as problems:
        return Future(plugin.name, [_one_line(problem) for problem in problems.problems], [])
    except CkptError as problem:
        return Future(plugin.name, [_one_line(problem)], [])
    except Exception as error:  # a stranger's plugin; the others still answer
        return Future(plugin.name, [f"the plugin failed: {type(error).__name__}: {error}"], [])
    return Future(plugin.name, [], plan.losses)


def _one_line(problem: CkptError) -> str:
    return problem.problem + (f" ({problem.fix})" if problem.fix else "")


def group_of(name: str) -> str:
    """The group that a canonical parameter is counted in.

    >>> group_of("layers.0.attention.q_norm.weight"), group_of("encoder.layers.3.mlp.experts.up.weight")
    ('norms', 'experts')
    """
    parts = name.split(".")
    if any(part.endswith("norm") for part in parts):
        return "norms"
    if "experts" in parts:
        return "experts"
    if any(part.endswith("attention") for part in parts):
        return "attention"
    return next((part for part in parts if part in _GROUPS), "other")


def parameter_counts(checkpoint: Checkpoint) -> dict[str, int]:
    """Elements per group, without vocabulary padding; a tied head is part of the embedding."""
    from ckpt_core.architecture import parameters

    counts: Counter[str] = Counter()
    for parameter in parameters(checkpoint.architecture).values():
        rows = parameter.true_rows
        counts[group_of(parameter.name)] += (
            parameter.elements if rows is None else parameter.elements // parameter.shape[0] * rows
        )
    return {group: counts[group] for group in _GROUPS if counts[group]}


def stored_bytes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Per stored dtype: how many canonical tensors, and their bytes in the files (duplicates not counted)."""
    found: dict[str, tuple[int, int]] = {}
    for assembly in checkpoint.tensors.values():
        size = sum(block.tile.elements * block.dtype.size for block in assembly.blocks)
        tensors, total = found.get(assembly.dtype.name, (0, 0))
        found[assembly.dtype.name] = tensors + 1, total + size
    return found


def checkpoint_json(checkpoint: Checkpoint, src: str, futures: list[Future]) -> dict[str, object]:
    """Everything that `inspect` knows."""
    from ckpt_core.architecture import facts_of, to_json

    counts = parameter_counts(checkpoint)
    return {
        "path": src,
        "format": checkpoint.format,
        "evidence": checkpoint.evidence,
        "parallel": checkpoint.parallel,
        "masters": checkpoint.masters,
        "architecture": to_json(checkpoint.architecture),
        "facts": dict(facts_of(checkpoint.architecture)),
        "parameters": {"total": sum(counts.values()), **counts},
        "dtypes": {
            name: {"tensors": tensors, "bytes": size} for name, (tensors, size) in stored_bytes(checkpoint).items()
        },
        "tensors": {
            name: {"axes": {axis.name: axis.size for axis in assembly.parameter.axes}, "dtype": assembly.dtype.name}
            for name, assembly in checkpoint.tensors.items()
        },
        "notes": checkpoint.notes,
        "sidecars": {path: sidecar.size for path, sidecar in sorted(checkpoint.sidecars.items())},
        "losses": [loss.to_json() for loss in checkpoint.losses],
        "files": [{"path": state.path, "bytes": state.size} for state in checkpoint.files],
        "can_become": [
            {
                "format": one.format,
                "possible": one.possible,
                "refusals": one.refusals,
                "losses": [loss.to_json() for loss in one.losses],
            }
            for one in futures
        ],
    }


def show_checkpoint(checkpoint: Checkpoint, src: str, futures: list[Future]) -> None:
    """What `inspect` knows, as text."""
    from ckpt_core.cli.describe import describe

    page = Page()
    page.say("path", src)
    page.say("format", f"{checkpoint.format}{parallel_text(checkpoint.parallel)}")
    page.say("because", *checkpoint.evidence)
    page.say(
        "files", f"{plural(len(checkpoint.files), 'file')}, {size_text(sum(state.size for state in checkpoint.files))}"
    )
    for label, text in describe(checkpoint.architecture):
        page.say(label, text)
    counts = parameter_counts(checkpoint)
    page.say(
        "parameters",
        count_text(sum(counts.values())),
        *table((group, count_text(count)) for group, count in counts.items()),
    )
    stored = stored_bytes(checkpoint).items()
    page.say(
        "stored as", *(f"{name}: {plural(tensors, 'tensor')}, {size_text(size)}" for name, (tensors, size) in stored)
    )
    page.say("masters", "fp32 master weights exist; --weights master reads them" if checkpoint.masters else "none")
    page.say("notes", *(f"{name}: {value}" for name, value in checkpoint.notes.items() if value is not None))
    page.say("sidecars", *sorted(checkpoint.sidecars))
    page.say("losses", *map(str, checkpoint.losses))
    page.say("can become", *(line for one in futures for line in _future_lines(one)))


def _future_lines(one: Future) -> list[str]:
    if one.possible:
        return [f"{one.format}: {paint('yes', 'green')}", *(f"  {loss}" for loss in one.losses)]
    return [f"{one.format}: {paint('no', 'red')}", *(f"  {refusal}" for refusal in shortened(one.refusals))]
