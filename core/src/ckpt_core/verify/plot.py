"""A picture of where two models part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt_core.errors import CkptError

if TYPE_CHECKING:
    from ckpt_core.verify.logits import LogitsReport


def draw(report: LogitsReport, tolerance: float, path: str) -> None:
    """Write the relative difference after every block as an image to `path` (its suffix says which kind).

    Raises `CkptError` if matplotlib is not installed, or can't write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CkptError("a plot needs matplotlib", fix='pip install "ckpt-core[plot]"') from None
    figure = Figure(figsize=(max(6.0, 0.16 * len(report.steps)), 4.0), layout="constrained")
    axes = figure.subplots()
    places = range(len(report.steps))
    axes.plot(places, [step.relative for step in report.steps], marker=".", label="difference")
    axes.axhline(tolerance, color="tab:red", linestyle="--", label="tolerance")
    # Zero has no place on a logarithmic axis, and equal models are all zeros.
    axes.set_yscale("symlog", linthresh=1e-9)
    axes.set_ylim(bottom=0)
    axes.set_xticks(places, [step.name for step in report.steps], rotation=90, fontsize=6)
    axes.set_ylabel("largest difference / largest value")
    axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise CkptError(f"the plot can't be written: {error}", file=path) from None
