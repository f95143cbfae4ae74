"""A picture of where two models part."""

from __future__ import annotations

import math
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ckpt_core.errors import CkptError, UsageError
from ckpt_core.storage.bytes.home import absolute

if TYPE_CHECKING:
    from ckpt_core.verify.logits import LogitsReport

_BEGINNINGS = (
    *(b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*"),  # PNG, JPEG, GIF, WebP, TIFF
    *(b"%PDF-", b"%!PS-", b"%% Creator", b"<?xml", b"<svg", b"\x1f\x8b"),  # PDF, PostScript, PGF, SVG, SVG in gzip
)
_LINE, _APART = "#2f6fde", "#c8332b"


def check_plot(path: str) -> None:
    """Raise what keeps a plot from being written to `path`, as far as that is known before there is one."""
    if find_spec("matplotlib") is None:
        raise CkptError("a plot needs matplotlib", fix='pip install "ckpt-convert[plot]"')
    from matplotlib.backend_bases import FigureCanvasBase

    kinds, suffix = FigureCanvasBase.get_supported_filetypes(), os.path.splitext(path)[1][1:].lower()
    if os.path.isdir(path):
        raise UsageError("a plot needs the name of a file, and this is a folder", file=path)
    if suffix not in kinds:
        raise UsageError("the suffix says which kind of image a plot is", file=path, expected=", ".join(sorted(kinds)))
    if not os.path.isdir(folder := os.path.dirname(absolute(path))):
        raise UsageError("the folder of the plot does not exist", file=path, fix=f"mkdir {folder}")
    if os.path.exists(path) and not _is_image(path):
        raise UsageError(
            "the plot would replace a file that is not an image", file=path, fix="remove it, or choose another name"
        )


def _is_image(path: str) -> bool:
    """Whether a file begins as an image of a kind that is drawn, or is empty: as a page of `inspect --html`, an image replaces only its like."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        head = file.read(16)
    return not head or head.startswith(_BEGINNINGS)


def draw(report: LogitsReport, tolerance: float, path: str) -> None:
    """Write the relative difference after every block as an image to `path` (its suffix says which kind).

    `check_plot` says beforehand whether it can be; `CkptError` where the disk does not take it.
    """
    from matplotlib.figure import Figure

    count = len(report.steps)
    figure = Figure(figsize=(min(16.0, max(7.0, 0.14 * count)), 4.0), dpi=160, layout="constrained")
    axes = figure.subplots()
    differences = [step.relative for step in report.steps]
    apart = [not difference <= tolerance for difference in differences]  # NaN is apart, too
    axes.plot(range(count), differences, color=_LINE, linewidth=1.2, zorder=2)
    axes.scatter(range(count), differences, s=18, c=[_APART if one else _LINE for one in apart], zorder=3)
    axes.axhline(tolerance, color=_APART, linestyle="--", linewidth=1, zorder=1)
    axes.text(
        0.995,
        tolerance,
        "tolerance",
        color=_APART,
        fontsize=8,
        ha="right",
        va="bottom",
        transform=axes.get_yaxis_transform(),
    )
    # Zero has no place on a logarithmic axis, and equal models are all zeros.
    axes.set_yscale("symlog", linthresh=1e-9)
    axes.set_ylim(0, 10 * max(tolerance, *filter(math.isfinite, differences)))
    axes.set_xlim(-0.5, count - 0.5)
    # Of many blocks every second or third has room for its name; the first that is apart always has.
    first = apart.index(True) if any(apart) else None
    named = [place for place in range(count) if place % (1 + count // 110) == 0 or place == first]
    axes.set_xticks(named, [report.steps[place].name for place in named], rotation=90, fontsize=7)
    axes.set_ylabel("largest difference / largest value", fontsize=9)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    said = (
        "equal after every block"
        if first is None and not any(differences)
        else "within the tolerance after every block"
    )
    axes.set_title(said if first is None else f"apart from {report.steps[first].name} on", fontsize=10, loc="left")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise CkptError(f"the plot can't be written: {error}", file=path) from None
