"""Names that speak against what a table says of them: a reader and a writer that share a mistake agree with each other."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase as fnmatch

from ckpt_core.architecture.facts import every_path
from ckpt_core.config import Entry, FactIs, Ignore, Implied
from ckpt_core.config.entry import every_line
from ckpt_core.errors import did_you_mean
from ckpt_core.layout import Row
from ckpt_core.plugins.discovery import require
from ckpt_core.testing.laws.base import Law

_Named = tuple[str, tuple[str, ...]]


class Names(Law):
    """Keys and tensors are not called as what another line of their table says."""

    def test_no_two_names_are_exchanged(self) -> None:
        """`low_freq_factor` says the low factor, and `high_freq_factor` the high one, not the other way round."""
        wrong: list[tuple[str, str]] = []
        for family in require(self.format).hooks.ckpt_tables() or ():
            if family.config is not None:
                wrong += exchanged(keys_with_facts(family.config.entries))
            rows = [row for table in family.tables for row in table.rows if not row.copy]
            by_sentence = itertools.groupby(sorted(rows, key=_alike), key=_alike)
            for _, alike in by_sentence:
                wrong += exchanged([(row.native, (row.canonical,)) for row in alike])
        self._assert_nothing(wrong)

    def test_what_is_ignored_is_not_fixed(self) -> None:
        """A table that ignores `norm_eps`, and says that the eps of a norm is always 1e-5, would read another eps as this one."""
        wrong: list[tuple[str, str]] = []
        for family in require(self.format).hooks.ckpt_tables() or ():
            if family.config is not None:
                wrong += ignored_and_fixed(family.config.entries)
        self._assert_nothing(wrong)

    def test_every_fact_exists(self) -> None:
        """A path that no architecture has would be read as an unknown fact, and never be written."""
        wrong = [
            (family.name, text)
            for family in require(self.format).hooks.ckpt_tables() or ()
            if family.config is not None
            for text in unknown_facts(family.config.entries)
        ]
        self._assert_nothing(wrong)

    def _assert_nothing(self, wrong: Sequence[tuple[str, str]]) -> None:
        said = dict.fromkeys(
            text for name, text in wrong if not any(fnmatch(name, known) for known in self.quirks.misnamed)
        )
        assert not said, "\n".join(said) + "\nIf the framework really has it so, give the reason in Quirks.misnamed"


def _alike(row: Row) -> tuple[str, str]:
    return row.sentence, str(row.splits)


def unknown_facts(lines: Iterable[Entry]) -> Iterator[str]:
    """What is wrong with each path that lines claim, and that no architecture has."""
    for path in dict.fromkeys(claim for line in every_line(lines) for claim in line.claims):
        bare = path.removesuffix("?").removesuffix(".*")
        if bare not in every_path():
            yield f"no architecture has the fact {path!r}: {did_you_mean(bare, every_path(), 'ckpt explain ir lists them')}"


def keys_with_facts(lines: Iterable[Entry]) -> list[_Named]:
    """Each key of lines that say facts by their keys alone, with those facts."""
    whole = [line for line in every_line(lines) if line.claims and not line.held and not line.by_hand]
    return [(key, line.claims) for line in whole for key in line.keys]


def exchanged(named: Iterable[_Named]) -> Iterator[tuple[str, str]]:
    """Pairs of names that would both fit better if they were exchanged, judged by the words that a name shares with a path."""
    for (one, ones), (two, twos) in itertools.combinations(named, 2):
        if _fit(one, twos) > _fit(one, ones) and _fit(two, ones) > _fit(two, twos):
            yield one, f"exchanged? {one} is {', '.join(ones)}, and {two} is {', '.join(twos)}"


def ignored_and_fixed(lines: Iterable[Entry]) -> Iterator[tuple[str, str]]:
    """Keys that are ignored, though they are called as a number that is the same in every model of the table."""
    said = [*every_line(lines)]
    ignored = [line for line in said if isinstance(line, Ignore) and not isinstance(line, Implied) and not line.written]
    fixed = [line for line in said if isinstance(line, FactIs) and isinstance(line.value, float)]
    for line in ignored:
        for fact in fixed:
            if _same_word(_words(line.key)[-1], _words(fact.path)[-1]):
                yield (
                    line.key,
                    f"{line.key} is ignored, and {fact.path} is always {fact.value}: a file with another value would be read "
                    f"as this one. Say key_is({line.key!r}, {fact.value}), or key({line.key!r}, {fact.path!r})",
                )


@functools.cache
def _fit(name: str, paths: tuple[str, ...]) -> int:
    """How many words of a name one of the paths has, at most."""
    return max(sum(any(_same_word(one, two) for two in _words(path)) for one in {*_words(name)}) for path in paths)


@functools.cache
def _words(name: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[^a-z0-9]+", name.lower()) if word) or ("",)


@functools.cache
def _same_word(one: str, two: str) -> bool:
    """Whether two words are one, or one is the other cut short after three letters or more: `eps` and `epsilon`."""
    return one == two or (min(len(one), len(two)) >= 3 and (one.startswith(two) or two.startswith(one)))
