"""The plots of the documentation, as SVG, made of the numbers in its own tables: `docs/performance.md` has the results."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

PAGES = Path(__file__).parent
RESULTS = PAGES / "performance.md"
_WIDTH, _ROW, _LABEL, _GAP = 760, 24, 250, 120
_COLOURS = {
    "light": {"text": "#1f2430", "faint": "#667085", "ours": "#2f6fde", "theirs": "#b6bfce"},
    "dark": {"text": "#e6e9f0", "faint": "#98a2b3", "ours": "#6ea2ff", "theirs": "#4b5567"},
}


def rows(size: str) -> list[tuple[str, float, float]]:
    """(what, wall seconds, peak private MB) of every command that was measured at this size, the disk not waited for."""
    found: dict[str, tuple[str, float, float]] = {}
    for line in RESULTS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) in (8, 9) and cells[0] == f"{size} GB" and re.fullmatch(r"[\d.]+", cells[2]):
            found.setdefault(cells[1], (cells[1], float(cells[2]), float(cells[-1])))
    return list(found.values())


CONVERSIONS = (
    "hf to nanotron tp2",
    "hf to megatron torch tp2",
    "megatron torch_dist to hf",
    ".nemo tp2 to hf",
    "hf to nxdt tp8",
)
OTHERS = (
    "safetensors load + save",
    "transformers load + save",
    "torch_save_to_dcp",
    "dcp_to_torch_save",
    "mergekit passthrough",
)


def _chosen(size: str) -> list[tuple[str, float, float, bool]]:
    by_name = {what: (wall, memory) for what, wall, memory in rows(size)}
    ours = [(f"ckpt: {name}", *by_name[name], True) for name in CONVERSIONS]
    return [*ours, *((name, *by_name[name], False) for name in OTHERS)]


def compared(palette: str, size: str = "1.98") -> str:
    """Bars of time and of memory, ours above and others' below."""
    colour, chosen = _COLOURS[palette], _chosen(size)
    span = (_WIDTH - _LABEL - _GAP) / 2 - 20
    most = max(wall for _, wall, _, _ in chosen), max(memory for _, _, memory, _ in chosen)
    height = 64 + _ROW * len(chosen)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" font-family="system-ui, sans-serif" font-size="13">',
        f"<title>Time and memory of {size} GB of bf16 weights on two cores</title>",
    ]
    columns = (_LABEL, _LABEL + span + _GAP / 2 + 20)
    for left, title in zip(columns, ("wall seconds", "peak private MB"), strict=True):
        parts.append(f'<text x="{left:.0f}" y="20" fill="{colour["faint"]}">{title}</text>')
    for number, (what, wall, memory, ours) in enumerate(chosen):
        top = 34 + _ROW * number + (8 if not ours else 0)
        fill = colour["ours" if ours else "theirs"]
        parts.append(
            f'<text x="{_LABEL - 10}" y="{top + 13}" text-anchor="end" fill="{colour["text"]}">{escape(what)}</text>'
        )
        for left, value, largest, text in zip(
            columns, (wall, memory), most, (f"{wall:.1f}", f"{memory:,.0f}"), strict=True
        ):
            length = max(2.0, span * value / largest)
            parts.append(f'<rect x="{left:.0f}" y="{top}" width="{length:.1f}" height="16" rx="3" fill="{fill}"/>')
            parts.append(f'<text x="{left + length + 6:.1f}" y="{top + 13}" fill="{colour["text"]}">{text}</text>')
    return "\n".join([*parts, "</svg>", ""])


PLOTS = {PAGES / "assets" / f"compared-{palette}.svg": palette for palette in _COLOURS}
"""Where each plot is, and its palette."""
