"""The layout sentence: how one rank's tensor is arranged, in one line.

    (g (q[r] + k + v) d) h

1. Juxtaposition nests (row-major), parentheses flatten into one dimension.
2. `+` concatenates. Its terms are named parts, or finer axes of one axis (partial rotary: `(e c + o)`).
3. `x[a b]` is part x with axes that only it has.
4. Names decide transposes: GPT-2's Conv1D is `h ((q + k + v) g d)`.
5. `1` is an axis of size one; `0[a]` is padding of a elements, written as zeros. `()` alone is a tensor without axes: one number.

A sentence is a polynomial over axes (product = nesting, sum = concatenation), so every part of it
is an affine map: native index = base + sum of step * index over its axes. `parse` gives the tree,
`expand` the affine maps; everything else (splitting over ranks, reading, writing) is arithmetic on those.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ckpt_core.errors import CkptError, Lines
from ckpt_core.lean import dataclass

_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<mark>[()\[\]+01]))")


class SentenceError(CkptError):
    """A sentence that does not parse or does not fit its axes; shows the column with a caret."""

    def __init__(self, problem: str, sentence: str, column: int | None = None, **parts: Any) -> None:
        picture = sentence if column is None else Lines([sentence, f"         {' ' * column}^"])
        super().__init__(problem, found=picture, **parts)


@dataclass(frozen=True, slots=True)
class Name:
    """An axis, or a part; `own` are the axes in square brackets."""

    name: str
    column: int
    own: Node | None = None


@dataclass(frozen=True, slots=True)
class One:
    """The literal `1`."""


@dataclass(frozen=True, slots=True)
class Padding:
    """`0[a]`: zeros that belong to no parameter."""

    axis: str
    column: int


@dataclass(frozen=True, slots=True)
class Product:
    """Factors from the outermost to the innermost."""

    factors: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """Terms one after the other."""

    terms: tuple[Node, ...]
    column: int


Node = Name | One | Padding | Product | Sum


@dataclass(frozen=True, slots=True)
class Sentence:
    """A parsed sentence: one node per native dimension."""

    text: str
    dims: tuple[Node, ...]

    def names(self) -> frozenset[str]:
        """Every name in the sentence, axes and parts alike."""
        return frozenset().union(*self.names_by_dim())

    def names_by_dim(self) -> tuple[frozenset[str], ...]:
        """The names in each native dimension."""
        return tuple(frozenset(one.name for one in _inside(node) if isinstance(one, Name)) for node in self.dims)

    def padding_names(self) -> frozenset[str]:
        """The axes of zeros."""
        return frozenset(one.axis for node in self.dims for one in _inside(node) if isinstance(one, Padding))

    def part_names(self) -> frozenset[str]:
        """The names that stand where a part may stand: with axes of their own, or as a bare term of a sum.

        A bare term that is also the name of an axis (v is both the vocabulary and the value) counts as a part.
        """
        return frozenset(name for node in self.dims for name in _part_names(node))


def _part_names(node: Node) -> Iterator[str]:
    match node:
        case Name(name=name, own=own) if own is not None:
            yield name
        case Product(factors=nodes):
            for inner in nodes:
                yield from _part_names(inner)
        case Sum(terms=nodes):
            for inner in nodes:
                if isinstance(inner, Name):
                    yield inner.name
                else:
                    yield from _part_names(inner)
        case _:
            return


def _inside(node: Node) -> Iterator[Node]:
    """A node and all that are in it."""
    yield node
    match node:
        case Name(own=inner) if inner is not None:
            yield from _inside(inner)
        case Product(factors=nodes) | Sum(terms=nodes):
            for inner in nodes:
                yield from _inside(inner)


@functools.cache
def parse(text: str) -> Sentence:
    """The tree of a sentence; `SentenceError` with a caret where it breaks."""
    if text.strip() == "()":
        return Sentence(text, ())
    tokens: list[tuple[str, str, int]] = []
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            column = position + len(text[position:]) - len(text[position:].lstrip())
            raise SentenceError("a character that no sentence has", text, column)
        group = "name" if match["name"] else "mark"
        kind = "name" if match["name"] else match["mark"]
        tokens.append((kind, match[group], match.start(group)))
        position = match.end()
    cursor = 0

    def peek() -> str:
        return tokens[cursor][0] if cursor < len(tokens) else "end"

    def take(expected: str) -> tuple[str, str, int]:
        nonlocal cursor
        if peek() != expected:
            column = tokens[cursor][2] if cursor < len(tokens) else len(text)
            raise SentenceError(f"expected {expected!r} here", text, column)
        cursor += 1
        return tokens[cursor - 1]

    def factor() -> Node:
        if peek() == "(":
            take("(")
            inner = expression()
            take(")")
            return inner
        if peek() == "1":
            take("1")
            return One()
        if peek() == "0":
            _, _, column = take("0")
            take("[")
            name = take("name")[1]
            take("]")
            return Padding(name, column)
        _, name, column = take("name")
        if peek() != "[":
            return Name(name, column)
        take("[")
        own = expression()
        take("]")
        return Name(name, column, own)

    def term() -> Node:
        factors = [factor()]
        while peek() in ("name", "(", "0", "1"):
            factors.append(factor())
        return factors[0] if len(factors) == 1 else Product(tuple(factors))

    def expression() -> Node:
        column = tokens[cursor][2] if cursor < len(tokens) else len(text)
        terms = [term()]
        while peek() == "+":
            take("+")
            terms.append(term())
        return terms[0] if len(terms) == 1 else Sum(tuple(terms), column)

    dims = []
    while peek() != "end":
        dims.append(factor())
    if not dims:
        raise SentenceError("an empty sentence", text, 0)
    return Sentence(text, tuple(dims))


@dataclass(frozen=True, slots=True)
class Step:
    """An axis inside a native tensor: `size` indices, `step` elements of native dimension `dim` apart."""

    axis: str
    size: int
    dim: int
    step: int


@dataclass(frozen=True, slots=True)
class Affine:
    """One part of a native tensor: native index in dimension i = base[i] + sum of step * index.

    `part` is None where the sentence names no part; `padding` marks zeros.
    """

    part: str | None
    steps: tuple[Step, ...]
    base: tuple[int, ...]
    padding: bool = False

    @property
    def elements(self) -> int:
        return math.prod(step.size for step in self.steps)


@dataclass(frozen=True, slots=True)
class _Piece:
    part: str | None
    steps: tuple[Step, ...]
    offset: int
    padding: bool = False


def expand(
    sentence: Sentence, sizes: Mapping[str, int], is_part: Callable[[str], bool]
) -> tuple[tuple[int, ...], tuple[Affine, ...]]:
    """The native shape of a sentence, and its affine parts.

    `sizes` gives every axis its size on this rank; `is_part` tells parts from axes.
    Raises `SentenceError` for an unknown name, an axis named twice, or two parts in one place.
    """

    def size_and_pieces(node: Node, dim: int) -> tuple[int, list[_Piece]]:
        match node:
            case One():
                return 1, [_Piece(None, (), 0)]
            case Padding(axis=axis, column=column):
                size = axis_size(axis, column)
                return size, [_Piece(None, (Step("0", size, dim, 1),), 0, padding=True)]
            case Name(name=name, own=own) if is_part(name):
                size, pieces = (1, [_Piece(None, (), 0)]) if own is None else size_and_pieces(own, dim)
                return size, [_Piece(name, piece.steps, piece.offset, piece.padding) for piece in pieces]
            case Name(name=name, column=column, own=own):
                if own is not None:
                    raise SentenceError(
                        f"{name!r} is an axis here, and only a part has axes of its own", sentence.text, column
                    )
                size = axis_size(name, column)
                return size, [_Piece(None, (Step(name, size, dim, 1),), 0)]
            case Product(factors=factors):
                total, combined = 1, [_Piece(None, (), 0)]
                for inner in reversed(factors):
                    size, pieces = size_and_pieces(inner, dim)
                    combined = [join(scaled(outer, total), rest) for outer in pieces for rest in combined]
                    total *= size
                return total, combined
            case Sum(terms=terms):
                total, found = 0, []
                for term in terms:
                    size, pieces = size_and_pieces(term, dim)
                    found += [_Piece(p.part, p.steps, p.offset + total, p.padding) for p in pieces]
                    total += size
                return total, found

    def axis_size(name: str, column: int) -> int:
        if name not in sizes:
            known = " ".join(f"{axis}={size}" for axis, size in sizes.items())
            raise SentenceError(f"unknown name {name!r}", sentence.text, column, expected=f"one of {known}")
        return sizes[name]

    def scaled(piece: _Piece, factor: int) -> _Piece:
        steps = tuple(Step(s.axis, s.size, s.dim, s.step * factor) for s in piece.steps)
        return _Piece(piece.part, steps, piece.offset * factor, piece.padding)

    def join(outer: _Piece, inner: _Piece) -> _Piece:
        if outer.part is not None and inner.part is not None:
            raise SentenceError(f"parts {outer.part!r} and {inner.part!r} meet in one place", sentence.text)
        return _Piece(
            outer.part or inner.part,
            outer.steps + inner.steps,
            outer.offset + inner.offset,
            outer.padding or inner.padding,
        )

    shape: list[int] = []
    combined: list[tuple[tuple[int, ...], _Piece]] = [((), _Piece(None, (), 0))]
    for dim, node in enumerate(sentence.dims):
        size, pieces = size_and_pieces(node, dim)
        shape.append(size)
        combined = [
            ((*base, piece.offset), join(rest, _Piece(piece.part, piece.steps, 0, piece.padding)))
            for base, rest in combined
            for piece in pieces
        ]
    affines = []
    for base, piece in combined:
        names = [step.axis for step in piece.steps if not piece.padding]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise SentenceError(f"axis {twice!r} occurs twice", sentence.text)
        affines.append(Affine(piece.part, piece.steps, base, piece.padding))
    return tuple(shape), tuple(affines)
