"""The sentences that a format declares: what its tables must say, written down a second time and shipped beside them.

    mlp.linear_fc1.weight | mlp.{part}.weight | ((gate + up) f) h | tp=f | | | 14: legacy-llama-tp2, ...

A line is a row's native name, its canonical parameters, the sentence, how ranks divide it, the map of its values, the
decision it is for where a tensor has several lines (`checkpoint_version=1.0`), and what bears it out: checkpoints written by the
framework itself, read by this sentence, with the logits that the framework computed. `ckpt selftest` holds the tables that
are in use against them, so a table that was changed by mistake is seen even where reading and writing make the same mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources

from ckpt_core.errors import FormatError
from ckpt_core.layout import Row
from ckpt_core.layout.split import ROWS
from ckpt_core.lean import dataclass

FILE = "sentences.txt"
_COLUMNS = 7
_DIVIDED = re.compile(r"\w+=\S+")  # what `_division` makes of one dimension of ranks


@dataclass(frozen=True, slots=True)
class Declared:
    """One line: how a native tensor is arranged, and what bears that out."""

    native: str
    canonical: str
    sentence: str
    division: str
    values: str
    under: str = ""
    shown_by: tuple[str, ...] = ()

    @classmethod
    def of(cls, row: Row, *shown_by: str) -> Declared:
        """What a table's row says. A line does not say that ranks hold blocks of rows: that divides no axis."""
        divided = [(dimension, axes) for dimension, axes in row.splits if axes != ROWS]
        return cls(
            row.native,
            row.canonical,
            row.sentence,
            " ".join(f"{dimension}={axes.replace(' ', ',')}" for dimension, axes in divided),
            type(row.via).__name__ if row.via else "",
            shown_by=shown_by,
        )

    @property
    def arrangement(self) -> tuple[str, str, str]:
        """The sentence, the division over ranks and the map of values."""
        return self.sentence, self.division, self.values

    def says_the_same(self, other: Declared) -> bool:
        """Whether it says the same of the same parameters."""
        return (self.canonical, *self.arrangement) == (other.canonical, *other.arrangement)

    def allows(self, decisions: Mapping[str, object]) -> bool:
        """Whether the line is for a writer that took these decisions."""
        name, _, values = self.under.partition("=")
        return not name or str(decisions.get(name)) in values.split(", ")

    def __str__(self) -> str:
        shown = f"{len(self.shown_by)}: {', '.join(self.shown_by)}" if self.shown_by else ""
        return " | ".join((self.native, self.canonical, *self.arrangement, self.under, shown)).rstrip()


def _division(text: str) -> str:
    """A division over ranks as rows print it, of that text or of what `row` is given.

    >>> _division('tp=g,r'), _division('tp="g r" ep=e')
    ('tp=g,r', 'tp=g,r ep=e')
    """
    quoted = re.sub(r'"([^"]*)"', lambda axes: axes[1].strip().replace(" ", ","), text)
    return " ".join(quoted.split())


class Sentences:
    """The lines of one format, by native name."""

    def __init__(self, lines: Iterable[Declared] = ()) -> None:
        self._lines: dict[str, list[Declared]] = {}
        for line in lines:
            self._lines.setdefault(line.native, []).append(line)

    @classmethod
    def beside(cls, module: str) -> Sentences:
        """Those in the package of a format's hooks; none if it ships none."""
        try:
            file = resources.files(module) / FILE
            text = file.read_text(encoding="utf-8") if file.is_file() else ""
        except TypeError:  # hooks in a module that is not a package
            text = ""
        return cls.parsed(text, f"{module}/{FILE}")

    @classmethod
    def parsed(cls, text: str, file: str) -> Sentences:
        """The lines of a file; empty ones and those that begin with `#` say nothing. Raises `FormatError`."""
        lines = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("# "):
                continue
            cells = [cell.strip() for cell in line.split("|")]
            if len(cells) != _COLUMNS:
                raise FormatError(
                    f"line {number} has {len(cells)} columns", file=file, found=line, expected=f"{_COLUMNS}, between |"
                )
            native, canonical, sentence, division, values, decision, shown = cells
            count, _, names = shown.partition(":")
            by = tuple(name.strip() for name in names.split(",")) if shown else ()
            if shown and (count.strip() != str(len(by)) or not all(by)):
                raise FormatError(
                    f"line {number} does not say how many checkpoints show it, and which",
                    file=file,
                    found=shown,
                    expected="nothing, or as in 2: tiny-tp2, tiny-bf16",
                )
            divided = _division(division)
            if not all(_DIVIDED.fullmatch(part) for part in divided.split()):
                raise FormatError(
                    f"line {number} does not say which axes ranks divide",
                    file=file,
                    found=division,
                    expected='nothing, or as in tp=g,r or tp="g r" ep=x',
                )
            lines.append(Declared(native, canonical, sentence, divided, values, decision, by))
        return cls(lines)

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[Declared]:
        return (line for lines in self._lines.values() for line in lines)

    def of(self, row: Row, decisions: Mapping[str, object]) -> list[Declared]:
        """The lines of a row's native tensor that are for these decisions; without any, all of it; the row's own parameters first."""
        lines = self._lines.get(row.native, [])
        right = [line for line in lines if line.allows(decisions)] or lines
        return sorted(right, key=lambda line: line.canonical != row.canonical)
