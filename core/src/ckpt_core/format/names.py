"""Names of files with numbers of ranks in them, both ways: `consolidated.{tp:02}.pth` and `consolidated.03.pth`."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Iterator, Mapping
from functools import cached_property

from ckpt_core.errors import CkptError
from ckpt_core.lean import dataclass


@dataclass(frozen=True)
class NamePattern:
    """A path below a folder, with the fields that `known` allows, as in Python's format strings.

    >>> pattern = NamePattern("rank_{tp}/model.{pp:02}.pt", ("tp", "pp"))
    >>> pattern.name({"tp": 1, "pp": 3})
    'rank_1/model.03.pt'
    >>> pattern.numbers("rank_1/model.03.pt"), pattern.numbers("rank_1/model.3.pt")
    ({'tp': 1, 'pp': 3}, None)
    """

    text: str
    known: tuple[str, ...]

    def __post_init__(self) -> None:
        parts = self.text.split("/")
        if os.path.isabs(self.text) or {"", ".", ".."} & set(parts):
            raise CkptError("a file of a format lies below the folder of the checkpoint", found=repr(self.text))
        for field in self.fields:
            if field not in self.known:
                allowed = ", ".join("{" + name + "}" for name in self.known) or "no field"
                raise CkptError(f"the name {self.text!r} has an unknown field", found=field, expected=allowed)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The fields in the name, each once."""
        found = [field for _, field, _, _ in string.Formatter().parse(self.text) if field is not None]
        return tuple(dict.fromkeys(found))

    def name(self, numbers: Mapping[str, int]) -> str:
        """The name for these numbers."""
        return self.text.format(**{field: numbers[field] for field in self.fields})

    def numbers(self, name: str) -> dict[str, int] | None:
        """The numbers in a name; None for a name that the pattern does not give."""
        match = self._expression.fullmatch(name)
        if match is None:
            return None
        numbers = {field: int(match[field]) for field in self.fields}
        return numbers if self.name(numbers) == name else None

    def files(self, folder: str) -> Iterator[tuple[dict[str, int], str]]:
        """The numbers and the name of every file below a folder that the pattern gives, in the order of the names."""
        for name in sorted(_names(folder, self.text.count("/"))):
            numbers = self.numbers(name)
            if numbers is not None:
                yield numbers, name

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        text, seen = "", set()
        for literal, field, _, _ in string.Formatter().parse(self.text):
            text += re.escape(literal)
            if field is not None:
                text += f"(?P={field})" if field in seen else rf"(?P<{field}>\d{{1,9}})"
                seen.add(field)
        return re.compile(text)


def _names(folder: str, depth: int) -> Iterator[str]:
    """The files that lie just `depth` folders below a folder."""
    if not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if depth and entry.is_dir():
                yield from (f"{entry.name}/{name}" for name in _names(entry.path, depth - 1))
            elif not depth and entry.is_file():
                yield entry.name
