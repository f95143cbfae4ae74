"""`ckpt verify`: is DST the conversion of SRC, and is it still as it was written?"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.diff import difference_json, options_of_two, show_differences
from ckpt_core.cli.names import PATH, FormatCommand
from ckpt_core.cli.options import Size, reading, training_state
from ckpt_core.cli.output import Page, emit_json, paint, say, shortened
from ckpt_core.cli.progress import progress, steadily_said
from ckpt_core.errors import CkptError, NotCarried, UsageError
from ckpt_core.text import plural

if TYPE_CHECKING:
    from ckpt_core.checkpoint import Checkpoint
    from ckpt_core.receipt import Receipt
    from ckpt_core.verify.conversion import Verdict
    from ckpt_core.verify.logits import LogitDifference, LogitsReport
    from ckpt_core.verify.row_parallel import RowParallelReport

_TORCH = "pip install torch; without a GPU: pip install torch --index-url https://download.pytorch.org/whl/cpu"


@click.command(cls=FormatCommand, short_help="Check that a conversion is what it should be.")
@click.argument("src", type=PATH)
@click.argument("dst", type=PATH)
@reading
@training_state
@click.option("--to", metavar="FORMAT", help="The format of DST, where neither its receipt nor its files say.")
@click.option(
    "--logits", is_flag=True, help="Run both models too, by the reference forward, and compare them block by block."
)
@click.option(
    "--tolerance",
    type=float,
    default=1e-4,
    show_default=True,
    help="The largest difference of logits that passes, in units of the largest logit if that is above 1.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1, 1 << 20),
    default=48,
    show_default=True,
    help="Random positions to run, in each of two rows.",
)
@click.option("--prompt", metavar="IDS", help="Token ids to run instead, separated by commas.")
@click.option(
    "--row-parallel",
    type=click.IntRange(2),
    metavar="RANKS",
    help="Run DST also with sums of partial products, as so many tensor parallel ranks compute it, and say how far that goes.",
)
@click.option(
    "--plot",
    type=PATH,
    metavar="FILE",
    help="Draw the difference after every block; needs matplotlib. An image FILE is replaced.",
)
@click.option(
    "--max-memory",
    type=Size(),
    metavar="SIZE",
    default="2GB",
    show_default=True,
    help="How much memory weights may take. A framework that judges by itself needs the whole model in float32.",
)
def command(
    src: str,
    dst: str,
    *,
    format: str | None,
    to: str | None,
    config: str | None,
    options: dict[str, str],
    weights: str,
    training: bool,
    logits: bool,
    tolerance: float,
    tokens: int,
    prompt: str | None,
    row_parallel: int | None,
    plot: str | None,
    max_memory: int,
    as_json: bool,
) -> int:
    """Check that DST is the conversion of SRC; exit 0 if it is, 3 if not.

    Every tensor of both is read. Where DST has a receipt, every file must be as it was written, none missing and none
    added, and a changed dtype or a rewrite counts only if the receipt records it. The state of a training is checked where the receipt records it,
    and without a receipt with --training-state. An option -o KEY=VALUE goes to each side that
    has it, -o src.KEY=VALUE and -o dst.KEY=VALUE to one.

    \b
    ckpt verify run/step-1000 model
    ckpt verify run/step-1000 model --logits --plot difference.png
    """
    from ckpt_core.api import read_checkpoint
    from ckpt_core.plugins.discovery import require
    from ckpt_core.receipt import find_receipt
    from ckpt_core.storage.bytes.remote import localised
    from ckpt_core.verify.conversion import verify

    if logits or prompt or plot or row_parallel:
        _check_run(prompt, plot)
    place = localised(dst)
    recorded = find_receipt(place)
    to = to or (recorded.format if recorded else None)
    if recorded and weights == "auto":
        weights = recorded.weights
    source_options, target_options = options_of_two((src, dst), (format, to), options, ("src", "dst"))
    how: dict[str, Any] = {
        "path": src,
        "format": format,
        "config": config,
        "options": source_options,
        "weights": weights,
    }
    alone = to is not None and require(to).info.adapters
    if alone and (logits or prompt or plot or row_parallel):
        raise UsageError(
            "an adapter computes nothing by itself", found=dst, fix="verify the model that it makes of its base"
        )
    kept = recorded.keeps_training if recorded else training
    if training and not kept:
        raise NotCarried(
            "the conversion took no state of a training along",
            file=dst,
            fix="leave --training-state out: the losses in its receipt say what stayed behind",
        )

    def read() -> Checkpoint:
        known = None if recorded else config
        return read_checkpoint(
            place,
            format=to,
            config=known,
            options=target_options,
            alone=alone,
            training_state="keep" if kept else "drop",
        )

    def verified() -> tuple[Checkpoint, Verdict]:
        source = read_checkpoint(**how, alone=alone, training_state="keep" if kept else "drop")
        with progress("verifying") as listener:
            return source, verify(source, read, recorded, place, how, listener)

    source, verdict = steadily_said(verified)
    report, summed, target = None, None, verdict.target
    if target is not None and (logits or prompt or plot):
        report = _run_both(source, target, tokens, prompt, max_memory)
    if target is not None and row_parallel:
        summed = _run_summed(target, tokens, prompt, row_parallel, max_memory)
    if report is not None and plot:
        from ckpt_core.verify.plot import draw

        draw(report, tolerance, plot)
    passed = verdict.passed and (report is None or report.within(tolerance))
    if not verdict.passed and recorded and (words := _options_then(recorded, source, source_options)):
        verdict.remarks.append(f"the conversion read the source with {words}: give that here, too")
    if as_json:
        emit_json(
            {"passed": passed, "source": src, "destination": dst, **verdict_json(verdict, recorded, report, tolerance)}
            | ({"row_parallel": _summed_json(summed)} if summed else {}),
            "verify",
        )
    else:
        show_verdict(verdict, recorded, report, tolerance)
        if summed is not None:
            show_row_parallel(summed)
        say(paint("verified", "green") if passed else paint("different", "red"))
    return 0 if passed else 3


def _options_then(recorded: Receipt, source: Checkpoint, options: Mapping[str, str]) -> str:
    """The options, as they are typed, by which the recorded conversion read its source, and which are not given now."""
    from ckpt_core.plugins.discovery import require

    declared = {one.name for one in require(source.format).info.options if one.side != "write"}
    plain = {name: value for name, value in recorded.options.items() if not name.startswith(("src.", "dst."))}
    given = plain | {name[4:]: value for name, value in recorded.options.items() if name.startswith("src.")}
    return shlex.join(
        word
        for name, value in given.items()
        if name in declared - options.keys()
        for word in ("-o", f"src.{name}={value}")
    )


def _check_run(prompt: str | None, plot: str | None) -> None:
    """Raise what keeps models from being run and drawn, before every tensor is compared: that may take hours."""
    if find_spec("torch") is None:
        raise CkptError("running a model needs torch", fix=_TORCH)
    if prompt is not None:
        _token_ids(prompt)
    if plot is not None:
        from ckpt_core.verify.plot import check_plot

        check_plot(plot)


def verdict_json(
    verdict: Verdict, recorded: Receipt | None, report: LogitsReport | None, tolerance: float
) -> dict[str, object]:
    """The verdict as a JSON object."""
    return {
        "receipt": recorded.file if recorded else None,
        "tensors": {"equal": verdict.equal, "as_recorded": verdict.recorded},
        "changed_since_conversion": [{"subject": subject, "problem": problem} for subject, problem in verdict.broken],
        "differences": [difference_json(one) for one in verdict.differences],
        "explained": [{**difference_json(one), "by": why} for one, why in verdict.explained],
        "remarks": verdict.remarks,
        "logits": None if report is None else _report_json(report, tolerance),
    }


def _run_both(source: Checkpoint, target: Checkpoint, tokens: int, prompt: str | None, max_memory: int) -> LogitsReport:
    try:
        from ckpt_core.reference import given_inputs, random_inputs
        from ckpt_core.verify.logits import compare_logits
    except ImportError:
        raise CkptError("running a model needs torch", fix=_TORCH) from None
    both = source.architecture, target.architecture
    inputs = random_inputs(both, tokens) if prompt is None else given_inputs(_token_ids(prompt), both)
    with progress("running", of_bytes=False) as listener:
        return compare_logits(source, target, inputs, max_memory, listener)


def _run_summed(target: Checkpoint, tokens: int, prompt: str | None, ranks: int, max_memory: int) -> RowParallelReport:
    try:
        from ckpt_core.reference import given_inputs, random_inputs
        from ckpt_core.verify.row_parallel import compare_row_parallel
    except ImportError:
        raise CkptError("running a model needs torch", fix=_TORCH) from None
    both = target.architecture, target.architecture
    inputs = random_inputs(both, tokens) if prompt is None else given_inputs(_token_ids(prompt), both)
    return compare_row_parallel(target, inputs, ranks, max_memory)


def _token_ids(prompt: str) -> list[int]:
    try:
        return [int(part) for part in prompt.split(",")]
    except ValueError:
        raise UsageError("--prompt takes token ids", found=prompt[:60], expected="1,529,306") from None


def _report_json(report: LogitsReport, tolerance: float) -> dict[str, object]:
    return {
        "positions": report.positions,
        "tolerance": tolerance,
        **_apart_json(report.logits),
        "first_apart": report.first_apart(tolerance),
        "steps": [{"name": step.name, "largest": step.largest, "mean": step.mean} for step in report.steps],
        "judges": {
            path: {"framework": report.frameworks[path], **_apart_json(one)} for path, one in report.judges.items()
        },
        "refused": {path: {"framework": report.frameworks[path], "why": why} for path, why in report.refused.items()},
        "by_reference_alone": {
            path: {"framework": report.frameworks[path] or None, "why": why} for path, why in report.alone.items()
        },
    }


def _apart_json(one: LogitDifference) -> dict[str, object]:
    return {
        "largest": one.largest,
        "relative": one.relative,
        "mean": one.mean,
        "top1_agreement": one.agreement,
    }


def show_verdict(verdict: Verdict, recorded: Receipt | None, report: LogitsReport | None, tolerance: float) -> None:
    """The verdict as text."""
    page = Page()
    if recorded is None:
        page.say("receipt", "none: compared as they are")
    else:
        tensors, files = plural(len(recorded.digests), "tensor"), plural(recorded.count, "file")
        good = f"{tensors} in {files}, as they were written"
        page.say("receipt", recorded.file, *([good] if not verdict.broken else []))
    page.say("changed", *shortened([f"{subject}: {problem}" for subject, problem in verdict.broken], head=20))
    page.say(
        "tensors",
        f"{verdict.equal:,} equal"
        + (f", {verdict.recorded:,} changed as the receipt records" if verdict.recorded else ""),
    )
    page.say("rewrites", *(recorded.rewrites if recorded else []))
    page.say("explained", *(f"{one.subject}: {one.left} -> {one.right}, {why}" for one, why in verdict.explained))
    page.say("remark", *verdict.remarks)
    if report is not None:
        page.say(
            "logits",
            _apart_text(report.logits, tolerance),
            f"{plural(report.positions, 'position')}, by the reference forward",
        )
        first = report.first_apart(tolerance)
        page.say("apart from", *([f"{first} on"] if first else []))
        page.say("judge", *_judge_lines(report, tolerance))
    show_differences(verdict.differences, ("source", "target"))


def _judge_lines(report: LogitsReport, tolerance: float) -> list[str]:
    """Which side was judged by its own framework, and which by the reference forward alone."""
    names = {path: f", {name}" if name else "" for path, name in report.frameworks.items()}
    lines = [
        f"{path} loaded by its own framework{names[path]}: {_apart_text(one, tolerance)}"
        for path, one in report.judges.items()
    ]
    lines += [f"{path} refused by its own framework{names[path]}: {why}" for path, why in report.refused.items()]
    return lines + [
        f"{path} by the reference forward alone: {f'{report.frameworks[path]}: ' if names[path] else ''}{why}"
        for path, why in report.alone.items()
    ]


def show_row_parallel(report: RowParallelReport) -> None:
    """What summing partial products changes, as text. It is not a difference between SRC and DST."""
    page = Page()
    page.say(
        "row-parallel",
        f"logits of sums over {report.ranks} ranks against single products, of the same weights:",
        *(
            f"{dtype} {one.largest:.3g} apart at most, {one.mean:.3g} on average, of logits up to {one.scale:.3g}; "
            f"{100 * one.agreement:.4g}% of the most likely tokens agree"
            for dtype, one in report.by_dtype.items()
        ),
    )


def _summed_json(report: RowParallelReport) -> dict[str, object]:
    return {"ranks": report.ranks} | {dtype: _apart_json(one) for dtype, one in report.by_dtype.items()}


def _apart_text(one: LogitDifference, tolerance: float) -> str:
    agreement = f"{100 * one.agreement:.4g}% of the most likely tokens agree"
    return f"{one.largest:.3g} apart at most (tolerance {tolerance * one.scale:.3g}), {one.mean:.3g} on average, {agreement}"
