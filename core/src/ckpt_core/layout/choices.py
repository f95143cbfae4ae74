"""Choices: what decides how tensors are named and arranged, and is not a fact of the model.

    Choice("experts", ("sequential", "grouped"), default="sequential", help="experts one by one, or all in one tensor")

A row stands under a choice with `under={"experts": "grouped"}`. The same name is used wherever the choice is spoken of: in the
hints of a source, in `-o` options, in the decisions of a receipt, in `sentences.txt`, in the documentation and in errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from ckpt_core.errors import CkptError
from ckpt_core.lean import dataclass

Value = str | bool | int | float
Under = tuple[tuple[str, tuple[Value, ...]], ...]
"""Choices by name, each with the values that a row is for; all of them have to be met."""

Chosen = Mapping[str, Value]
"""One value for every choice that was made; the others have their defaults."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A named decision with all its values. Without a `default` it has to be made wherever tables are bound."""

    name: str
    values: tuple[Value, ...]
    default: Value | None = None
    help: str = ""

    def __post_init__(self) -> None:
        if self.default is not None:
            self.check(self.default)

    def check(self, value: Value) -> None:
        """`CkptError` unless `value` is one of the declared values, and of their type."""
        if not any(type(value) is type(known) and value == known for known in self.values):
            raise CkptError(
                f"choice {self.name} has no value {value!r}", expected=" or ".join(repr(known) for known in self.values)
            )

    def until(self, number: float) -> Value:
        """Of a choice whose values are numbers: the last that is not above `number`, else the first.

        >>> Choice("checkpoint_version", (0.0, 1.0, 2.0, 3.0)).until(2.5)
        2.0
        """
        return max((value for value in self.values if float(value) <= number), key=float, default=self.values[0])


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of a sentence (or of a split) that choices decide: `<name>` stands for the text of those that were made."""

    name: str
    texts: tuple[tuple[str, Under], ...]


def fragment(name: str, texts: Iterable[tuple[str, Mapping[str, Value | tuple[Value, ...]]]]) -> Fragment:
    """A fragment of sentences and its texts, each with the choices it is for."""
    return Fragment(name, tuple((text, under_of(choices)) for text, choices in texts))


_FRAGMENT = re.compile(r"<(\w+)>")


def fragment_names(sentence: str) -> list[str]:
    """The fragments that a sentence names.

    >>> fragment_names("<qkv> h")
    ['qkv']
    """
    return list(dict.fromkeys(_FRAGMENT.findall(sentence)))


def texts_of(sentence: str, fragments: Mapping[str, Fragment]) -> Iterator[tuple[str, Under]]:
    """The texts that one with fragments stands for, each with its choices; `CkptError` for a fragment that is not declared."""
    names = fragment_names(sentence)
    if not names:
        yield sentence, ()
        return
    if names[0] not in fragments:
        raise CkptError(
            f"fragment <{names[0]}> is not declared", found=sentence, expected=", ".join(fragments) or "no fragment"
        )
    for text, choices in fragments[names[0]].texts:
        for whole, others in texts_of(sentence.replace(f"<{names[0]}>", text), fragments):
            both = both_of(choices, others)
            if both is not None:
                yield whole, both


def under_of(choices: Mapping[str, Value | tuple[Value, ...]] | None) -> Under:
    """`under` as it is written, in the form in which it is kept."""
    return tuple((name, values if isinstance(values, tuple) else (values,)) for name, values in (choices or {}).items())


def both_of(one: Under, other: Under) -> Under | None:
    """The choices under which both stand; None if there are none."""
    merged = dict(one)
    for name, values in other:
        merged[name] = tuple(value for value in merged.get(name, values) if value in values)
        if not merged[name]:
            return None
    return tuple(merged.items())


def is_met(under: Under, chosen: Chosen) -> bool:
    """Whether the choices that were made are those of a row."""
    return all(chosen[name] in values for name, values in under)


def words_of(under: Under) -> str:
    """Choices as `sentences.txt` and the documentation have them.

    >>> words_of((("checkpoint_version", (2.0, 3.0)), ("rotary_interleaved", (False,))))
    'checkpoint_version=2.0, 3.0; rotary_interleaved=False'
    """
    return "; ".join(f"{name}={', '.join(map(str, values))}" for name, values in under)
