"""`ckpt inspect`: what a checkpoint is, how that was found out, and what it can become."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.names import PATH, FormatCommand
from ckpt_core.cli.options import reading, reading_words
from ckpt_core.cli.output import Page, count_text, emit_json, paint, shortened, table
from ckpt_core.cli.phrases import launch_lines, parallel_text
from ckpt_core.cli.progress import announced, progress
from ckpt_core.cli.survey import Future, Survey, not_finite_text
from ckpt_core.errors import CkptError, UsageError
from ckpt_core.sizes import size_text
from ckpt_core.text import plural

if TYPE_CHECKING:
    from ckpt_core.checkpoint import Checkpoint
    from ckpt_core.description import Fragment
    from ckpt_core.training import Training
    from ckpt_core.verify.statistics import Statistics


@click.command(cls=FormatCommand, short_help="Say what a checkpoint is, and what it can become.")
@click.argument("src", type=PATH)
@reading
@click.option("--stats", is_flag=True, help="Read every tensor: norm, mean, min, max, zeros, NaNs and infinities.")
@click.option(
    "--all",
    "whole",
    is_flag=True,
    help="All of it: evidence, notes, ledger, and what it can become: what each format loses or refuses.",
)
@click.option(
    "--html", type=PATH, metavar="FILE", help="Write it all to a page too, to be opened in a browser; FILE is replaced."
)
def command(src: str, *, as_json: bool, stats: bool, whole: bool, html: str | None, **asked: Any) -> None:
    """Say what SRC is: format, layout, architecture, parameters, dtypes, and what is lost; with --all, which formats can hold it.

    Only headers are read, so this takes no time for a model of any size; with --stats all of it is read, once.

    \b
    ckpt inspect run/step-1000
    ckpt inspect hf://Qwen/Qwen3-0.6B --all
    ckpt inspect model --stats --html model.html
    """
    from ckpt_core.api import read_model_or_fragment
    from ckpt_core.company.vocabulary import with_sound_tokenizer
    from ckpt_core.storage.bytes.remote.schemes import scheme_of

    with announced("reading headers"):
        checkpoint = read_model_or_fragment(src, training_state="auto", **asked)
    if isinstance(checkpoint, tuple):
        if stats or html is not None:
            raise checkpoint[2].lacks
        _show_fragment(src, *checkpoint, _alone(src, asked) if whole or as_json else None, as_json=as_json)
        return
    complete = whole or as_json or html is not None
    if complete or scheme_of(src) is None:  # in a store, the tokenizer is megabytes to fetch
        checkpoint = with_sound_tokenizer(checkpoint)
    if html is not None:
        page = _page()
        page.check_page_file(html, src, checkpoint)  # before everything is read for nothing
    statistics = None
    if stats:
        from ckpt_core.verify.statistics import statistics as statistics_of

        with progress("reading") as listener:
            statistics = statistics_of(checkpoint, listener=listener)
    survey = Survey(checkpoint, src, statistics, reading_words(**asked))
    if complete:
        with announced("asking every format"):
            _ = survey.futures
    if html is not None:
        page.write_page_file(html, page.page_of(survey))
    if as_json:
        emit_json(survey_json(survey) | ({"page": html} if html is not None else {}), "inspect")
    else:
        show(survey, whole=whole)
        if html is not None:
            Page().say("page", html)


def _alone(src: str, asked: Mapping[str, Any]) -> Checkpoint | CkptError:
    """An adapter as it is converted into one of another kind, with its ledger; for what can't be read so, what it takes."""
    from ckpt_core.api import read_checkpoint

    try:
        return read_checkpoint(src, alone=True, **asked)
    except CkptError as problem:
        return problem


def _show_fragment(
    src: str, format: str, fact: str, fragment: Fragment, alone: Checkpoint | CkptError | None, *, as_json: bool
) -> None:
    """What is not a model by itself, and what it lacks to be one; with the ledger of what can be read `alone`."""
    known = alone if alone is not None and not isinstance(alone, CkptError) else None
    if as_json:
        lacks = fragment.lacks.to_json()
        emit_json(
            {
                "path": src,
                "format": format,
                "evidence": [fact],
                "fragment": dict(fragment.facts),
                **({} if known is None else {"ledger": known.ledger.to_json(known.path)}),
                "lacks": lacks,
            },
            "fragment",
        )
        return
    page = Page()
    page.say("path", src)
    page.say("format", format)
    page.say("because", fact)
    for label, lines in fragment.lines.items():
        page.say(label, *lines)
    if known is not None:
        page.say("ledger", *Survey(known, src, None).ledger_lines)
        page.say("losses", *map(str, known.all_losses))
    elif isinstance(alone, CkptError):
        page.say("ledger", f"none yet: {alone.fix}")
    page.say("lacks", *str(fragment.lacks).splitlines())


def _page() -> ModuleType:
    """The package that makes the page, an extra of the command line; `UsageError` if it is not installed."""
    try:
        return importlib.import_module("ckpt_page")
    except ModuleNotFoundError as error:
        if error.name != "ckpt_page":
            raise
        raise UsageError(
            "--html needs the package ckpt-page, which is not installed", fix="pip install 'ckpt-core[page]'"
        ) from None


def survey_json(survey: Survey) -> dict[str, object]:
    """Everything that `inspect` knows."""
    from ckpt_core.architecture import facts_of, to_json

    checkpoint, statistics = survey.checkpoint, survey.statistics
    return {
        "path": survey.src,
        "format": checkpoint.format,
        "evidence": checkpoint.provenance.evidence,
        "parallel": checkpoint.parallel,
        "masters": checkpoint.provenance.masters,
        **({} if checkpoint.training is None else {"training": _training_json(checkpoint.training)}),
        "architecture": to_json(checkpoint.architecture),
        "facts": dict(facts_of(checkpoint.architecture)),
        "parameters": {"total": sum(survey.counts.values()), **survey.counts},
        "dtypes": {name: {"tensors": tensors, "bytes": size} for name, (tensors, size) in survey.dtypes.items()},
        "tensors": {
            name: {
                "axes": {axis.name: axis.size for axis in assembly.parameter.axes},
                "dtype": assembly.dtype.name,
                **({} if statistics is None else {"statistics": statistics[name].to_json()}),
            }
            for name, assembly in checkpoint.tensors.items()
        },
        **({} if statistics is None else {"not_finite": list(survey.not_finite)}),
        "notes": checkpoint.notes,
        "sidecars": {path: sidecar.size for path, sidecar in sorted(checkpoint.sidecars.items())},
        "losses": [loss.to_json() for loss in checkpoint.all_losses],
        "ledger": checkpoint.ledger.to_json(checkpoint.path),
        "files": [{"path": state.path, "bytes": state.size} for state in checkpoint.files],
        **({} if survey.launch is None else {"launch": launch_lines(survey.launch, survey.src, survey.asked)[0]}),
        "can_become": [
            {
                "format": one.format,
                "possible": one.possible,
                "refusals": one.refusals,
                "losses": [loss.to_json() for loss in one.losses],
            }
            for one in survey.futures
        ],
    }


def show(survey: Survey, *, whole: bool) -> None:
    """What `inspect` knows, as text; what is seldom asked for only as a `whole`."""
    from ckpt_core.cli.describe import describe

    checkpoint, page = survey.checkpoint, Page()
    page.say("path", survey.src)
    page.say("format", f"{checkpoint.format}{parallel_text(checkpoint.parallel)}")
    page.say("because", *checkpoint.provenance.evidence[: None if whole else 1])
    counted = survey.files.total() if whole else len(checkpoint.files)
    of_all = f", of the {counted:,} that the ledger counts" if counted != len(checkpoint.files) else ""
    page.say("files", f"{plural(len(checkpoint.files), 'file')}, {size_text(survey.bytes)}{of_all}")
    for label, text in describe(checkpoint.architecture):
        page.say(label, text)
    page.say(
        "parameters",
        count_text(sum(survey.counts.values())),
        *table((group, count_text(count)) for group, count in survey.counts.items()),
    )
    page.say(
        "stored as",
        *(f"{name}: {plural(tensors, 'tensor')}, {size_text(size)}" for name, (tensors, size) in survey.stored.items()),
    )
    if whole or checkpoint.provenance.masters:
        page.say(
            "masters",
            "fp32 master weights exist; --weights master reads them" if checkpoint.provenance.masters else "none",
        )
    page.say("training", *([] if checkpoint.training is None else _training_lines(checkpoint.training)))
    if whole:
        page.say("notes", *(f"{name}: {value}" for name, value in checkpoint.notes.items() if value is not None))
        page.say("sidecars", *sorted(checkpoint.sidecars))
        page.say("ledger", *survey.ledger_lines)
    else:
        page.say("sidecars", *_in_short(sorted(checkpoint.sidecars)))
    page.say("losses", *map(str, checkpoint.all_losses))
    if whole:
        page.say("launch", *launch_lines(survey.launch, survey.src, survey.asked))
        page.say("can become", *(line for one in survey.futures for line in _future_lines(one)))
    else:
        page.say("more", *_more(checkpoint.format, shlex.join([survey.src, *survey.asked])))
    if survey.statistics is not None:
        page.say("values", *statistics_lines(survey.statistics))
        bad = [paint(f"{name}: {not_finite_text(found)}", "red") for name, found in survey.not_finite.items()]
        page.say("not finite", *(bad or ["nothing: no NaN and no infinity in any tensor"]))


def _training_json(state: Training) -> dict[str, object]:
    """The state of a training as it is in `training.json` of the intermediate representation, and the bytes of its tensors."""
    from ckpt_core.training import to_json

    return {**to_json(state), "tensors": len(state.tensors), "bytes": state.bytes}


def _training_lines(state: Training) -> list[str]:
    """How far a training is, and what is kept of it."""
    masters = "masters of their own" if state.own_masters else "the weights are what the optimizer steps"
    counted = [plural(state.step, "step")]
    counted += [] if state.consumed_samples is None else [plural(state.consumed_samples, "sample")]
    counted += [] if state.next_lr is None else [f"next learning rate {state.next_lr:.9g}"]
    frozen = [f"{plural(len(state.frozen), 'parameter')} frozen"] if state.frozen else []
    return [
        f"{state.optimizer} after {', '.join(counted)}",
        f"{plural(len(state.tensors), 'tensor')}, {size_text(state.bytes)}; {masters}",
        *(
            f"{plural(len(group.parameters), 'parameter')}: weight decay {group.weight_decay:g}, betas {group.betas[0]:g} {group.betas[1]:g}, eps {group.eps:g}"
            for group in state.groups
        ),
        *frozen,
    ]


def _more(format: str, path: str) -> list[str]:
    """The commands that say what is not shown, of a path with the options that it is read by."""
    from ckpt_core.plugins.discovery import require

    trained = require(format).hooks.ckpt_launch.get_hookimpls()
    return [
        f"ckpt inspect --all {path}: what it can become, notes, ledger",
        *([f"ckpt launch {path}: how its framework starts with it"] if trained else []),
    ]


def _in_short(names: Sequence[str]) -> list[str]:
    """Names on a line; nothing for none."""
    return [", ".join(shortened(names, head=20))] if names else []


def _future_lines(one: Future) -> list[str]:
    if one.possible:
        return [f"{one.format}: {paint('yes', 'green')}", *(f"  {loss}" for loss in one.losses)]
    return [f"{one.format}: {paint('no', 'red')}", *(f"  {refusal}" for refusal in shortened(one.refusals))]


def statistics_lines(statistics: dict[str, Statistics]) -> list[str]:
    """A table of the statistics of all tensors, one a line under their names."""
    rows = [["tensor", "norm", "mean", "min", "max", "zeros", "NaN", "inf"]]
    for name, found in statistics.items():
        numbers = (found.norm, found.mean, found.low, found.high)
        counts = (found.zeros, found.nans, found.infinities)
        rows.append([name, *map(number_text, numbers), *(f"{count:,}" for count in counts)])
    return table(rows)


def number_text(value: float | None) -> str:
    """Five digits of a number; `-` for none.

    >>> number_text(0.0123456789), number_text(None)
    ('0.012346', '-')
    """
    return "-" if value is None else f"{value:.5g}"
