"""`ckpt verify`: is DST the conversion of SRC, and is it still as it was written?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.diff import difference_json, options_of_two, show_differences
from ckpt_core.cli.options import reading
from ckpt_core.cli.output import Page, emit_json, paint, plural
from ckpt_core.cli.progress import progress

if TYPE_CHECKING:
    from ckpt_core.verify.conversion import Verdict
    from ckpt_core.verify.logits import LogitsReport
    from ckpt_core.verify.receipt import Recorded


@click.command(short_help="Check that a conversion is what it should be.")
@click.argument("src")
@click.argument("dst")
@reading
@click.option("--to", metavar="FORMAT", help="The format of DST, where neither its receipt nor its files say.")
@click.option(
    "--logits", is_flag=True, help="Run both models on random tokens too; needs an engine for the architecture."
)
@click.option(
    "--tolerance", type=float, default=1e-4, show_default=True, help="The largest difference of a logit that passes."
)
@click.option(
    "--tokens",
    type=click.IntRange(1, 1 << 20),
    default=48,
    show_default=True,
    help="Positions to run, in each of two rows.",
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
    logits: bool,
    tolerance: float,
    tokens: int,
    as_json: bool,
) -> int:
    """Check that DST is the conversion of SRC; exit 0 if it is, 3 if not.

    Every tensor of both is read. Where DST has a receipt, its files and tensors must be those that were written, and
    a changed dtype or a rewrite counts only if the receipt records it. An option -o KEY=VALUE goes to each side that
    has it, -o src.KEY=VALUE and -o dst.KEY=VALUE to one.
    """
    from ckpt_core.api import read_checkpoint
    from ckpt_core.verify.conversion import verify
    from ckpt_core.verify.receipt import find_receipt

    recorded = find_receipt(dst)
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
    source = read_checkpoint(**how)
    target = read_checkpoint(dst, format=to, config=None if recorded else config, options=target_options)
    with progress("verifying") as listener:
        verdict = verify(source, target, recorded, dst, how, listener)
    report = None
    if logits:
        from ckpt_core.verify.logits import compare_logits

        report = compare_logits(source, target, tokens)
    passed = verdict.passed and (report is None or report.within(tolerance))
    if as_json:
        emit_json(
            {"passed": passed, "source": src, "destination": dst, **verdict_json(verdict, recorded, report, tolerance)}
        )
    else:
        show_verdict(verdict, recorded, report, tolerance)
        click.echo(paint("verified", "green") if passed else paint("different", "red"))
    return 0 if passed else 3


def verdict_json(
    verdict: Verdict, recorded: Recorded | None, report: LogitsReport | None, tolerance: float
) -> dict[str, object]:
    """The verdict as a JSON object."""
    return {
        "receipt": recorded.file if recorded else None,
        "tensors": {"equal": verdict.equal, "as_recorded": verdict.recorded},
        "changed_since_conversion": [{"subject": subject, "problem": problem} for subject, problem in verdict.broken],
        "differences": [difference_json(one) for one in verdict.differences],
        "explained": [{**difference_json(one), "by": why} for one, why in verdict.explained],
        "remarks": verdict.remarks,
        "logits": None
        if report is None
        else {
            "positions": report.positions,
            "largest": report.largest,
            "mean": report.mean,
            "top1_agreement": report.agreement,
            "tolerance": tolerance,
            "engines": report.engines,
        },
    }


def show_verdict(verdict: Verdict, recorded: Recorded | None, report: LogitsReport | None, tolerance: float) -> None:
    """The verdict as text."""
    page = Page()
    if recorded is None:
        page.say("receipt", "none: compared as they are")
    else:
        tensors, documents = plural(len(recorded.digests), "tensor"), plural(len(recorded.documents), "document")
        good = f"{tensors} and {documents} as they were written"
        page.say("receipt", recorded.file, *([good] if not verdict.broken else []))
    page.say("changed", *(f"{subject}: {problem}" for subject, problem in verdict.broken))
    page.say(
        "tensors",
        f"{verdict.equal:,} equal"
        + (f", {verdict.recorded:,} changed as the receipt records" if verdict.recorded else ""),
    )
    page.say("rewrites", *(recorded.rewrites if recorded else []))
    page.say("explained", *(f"{one.subject}: {one.left} -> {one.right}, {why}" for one, why in verdict.explained))
    page.say("remark", *verdict.remarks)
    if report is not None:
        agreement = f"{100 * report.agreement:.4g}% of the most likely tokens agree"
        apart = f"{report.largest:.3g} apart at most (tolerance {tolerance:g}), {report.mean:.3g} on average"
        page.say(
            "logits",
            f"{apart}, {agreement}",
            f"{report.positions} positions, run by {' and '.join(dict.fromkeys(report.engines))}",
        )
    show_differences(verdict.differences, ("source", "target"))
