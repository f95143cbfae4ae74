"""Markdown as the generated pages have it: tables, code in them, and links to headings."""

from __future__ import annotations

import re
from collections.abc import Iterable


def table(titles: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table. A bar in code cannot be escaped there, so alternatives are words of their own."""
    lines = [list(titles), *([_in_cell(str(cell)) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _in_cell(text: str) -> str:
    apart = re.sub(r"`[^`]*`", lambda span: span[0].replace(" | ", "` or `"), text)
    return apart.replace("|", "\\|").replace("\n", " ")


def matrix(text: str) -> str:
    """A table of many narrow columns: their titles stand upright."""
    return f'<div class="matrix tall" markdown>\n\n{text}\n\n</div>'


def code(text: object) -> str:
    """Text as code; nothing for nothing."""
    return f"`{text}`" if str(text) else ""


def codes(texts: Iterable[object]) -> str:
    """Several texts as code, with commas between."""
    return ", ".join(map(code, texts))


def anchor(heading: str) -> str:
    """What the address of a heading ends in.

    >>> anchor("LlamaForCausalLM (internlm3)")
    'llamaforcausallm-internlm3'
    """
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
