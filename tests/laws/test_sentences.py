"""Sentences: any legal one places every element once, and a malformed one is pointed at."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_core.architecture import Architecture, Axis, Parameter
from ckpt_core.architecture.canonical import head_dim_axis
from ckpt_core.layout import BoundTables, SentenceError, Table, parse, row
from ckpt_core.layout.sentence import expand
from ckpt_core.verify.elements import departure
from ckpt_tests.packing import numbered, pack, read_back, written

SIZES = {"a": 2, "b": 3, "m": 4, "n": 5}  # pairwise different; `d` has 7 elements, 4 of them rotated
PADDING = {"pad": 2, "more": 1}


@dataclass(frozen=True)
class Problem:
    """A sentence and the parameters it arranges, by part (None: the sentence names no part)."""

    sentence: str
    axes: dict[str | None, tuple[str, ...]]


def axis(name: str) -> Axis:
    return head_dim_axis(7, 4) if name == "d" else Axis(name, SIZES[name])


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """A random legal sentence: an order of axes, brackets anywhere, parts summed, padding thrown in."""

    def spelled(name: str) -> str:
        return draw(st.sampled_from(["d", "(c e + o)", "(e c + o)", "(o + e c)"])) if name == "d" else name

    def product(words: list[str]) -> str:
        """Words side by side, some of them bracketed; never empty."""
        if not words:
            return "1"
        cut = draw(st.integers(0, len(words) - 1))
        inner = " ".join(words[cut:])
        return " ".join([*words[:cut], f"({inner})" if draw(st.booleans()) else inner])

    def padded(word: str) -> str:
        zeros = f"0[{draw(st.sampled_from(sorted(PADDING)))}]"
        return draw(st.sampled_from([word, word, f"({word} + {zeros})", f"({zeros} + {word})"]))

    names = draw(st.permutations([*SIZES, "d"]))
    kinds = draw(st.integers(1, 3))
    if kinds == 1:
        held = names[: draw(st.integers(1, 4))]
        dims = split(draw, [padded(spelled(name)) for name in held])
        return Problem(" ".join(f"({product(words)})" for words in dims), {None: tuple(sorted(held))})
    common, rest = names[:2], names[2:]
    own = {part: [name for name in rest if draw(st.booleans())] for part in ("p", "q", "s")[:kinds]}
    terms = []
    for part, axes in own.items():
        inner = product([padded(spelled(name)) for name in draw(st.permutations(axes))])
        terms.append(f"{part}[{inner}]" if axes or draw(st.booleans()) else part)
    if draw(st.booleans()):
        terms.insert(draw(st.integers(0, len(terms))), "0[pad]")
    summed = "(" + " + ".join(terms) + ")"
    words = list(draw(st.permutations([summed, *(spelled(name) for name in common)])))
    dims = split(draw, words)
    return Problem(
        " ".join(f"({' '.join(words)})" for words in dims),
        {part: tuple(sorted([*common, *axes])) for part, axes in own.items()},
    )


def split(draw: st.DrawFn, words: list[str]) -> list[list[str]]:
    """Words over one or more dimensions."""
    cuts = sorted(draw(st.sets(st.integers(1, len(words) - 1)))) if len(words) > 1 else []
    return [words[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(words)], strict=True)]


def bound(problem: Problem) -> BoundTables:
    """The sentence as the only row of a format, over parameters made for it."""
    canonical = "whole" if None in problem.axes else "{part}"
    layout = BoundTables([Table("", "", [row("native", problem.sentence, canonical)])], EMPTY, sizes=PADDING)
    layout.parameters = {
        part or "whole": Parameter(part or "whole", tuple(map(axis, axes))) for part, axes in problem.axes.items()
    }
    return layout


EMPTY = Architecture(hidden=1)


@settings(max_examples=300)
@given(problems())
def test_any_legal_sentence_places_every_element_once(problem: Problem) -> None:
    layout = bound(problem)
    tensors = numbered(layout.parameters)
    native = layout.natives()["native"]
    held = {part: (layout.parameters[part or "whole"], tensors[part or "whole"]) for part in problem.axes}
    values = written(native, tensors)
    np.testing.assert_array_equal(values, pack(problem.sentence, held, sizes=PADDING))
    for name, back in read_back([(native, values)], layout.parameters).items():
        np.testing.assert_array_equal(back, tensors[name])


@settings(max_examples=300)
@given(problems(), st.data())
def test_followed_element_by_element_a_sentence_says_the_same(problem: Problem, data: st.DataObject) -> None:
    """And a sentence with two axes exchanged says so only if it puts every element in the same place."""
    layout = bound(problem)
    tensors, native = numbered(layout.parameters), layout.natives()["native"]
    assert departure(native, layout.parameters, problem.sentence, PADDING) is None
    axes = st.sampled_from(sorted({name for axes in problem.axes.values() for name in axes} - {"d"} or {"d"}))
    one, two = data.draw(axes), data.draw(axes)
    exchanged = re.sub(r"\w+", lambda word: {one: two, two: one}.get(word[0], word[0]), problem.sentence)
    try:
        other = bound(replace(problem, sentence=exchanged)).natives()["native"]
    except SentenceError:
        assert departure(native, layout.parameters, exchanged, PADDING) is not None
        return
    same = np.array_equal(written(other, tensors), written(native, tensors))
    assert (departure(native, layout.parameters, exchanged, PADDING) is None) == same


@given(problems(), st.data())
def test_a_sentence_that_loses_an_axis_is_refused(problem: Problem, data: st.DataObject) -> None:
    """The check of the check above: one axis replaced by an axis of size one leaves elements without a place."""
    layout = bound(problem)
    name = data.draw(
        st.sampled_from(sorted({name for axes in problem.axes.values() for name in axes} - {"d"} or {"d"}))
    )
    words = {"d": ["c", "d", "e", "o"]}.get(name, [name])
    text = "".join(
        "1" if character in words else character
        for character in problem.sentence.replace("pad", "PAD").replace("more", "MORE")
    )
    table = layout.tables[0]
    layout.tables = [
        Table("", "", [row("native", text.replace("PAD", "pad").replace("MORE", "more"), table.rows[0].canonical)])
    ]
    with pytest.raises(SentenceError, match="the sentence places"):
        layout.natives()


@given(st.text(alphabet="abqkv01()[]+ _x", max_size=24))
def test_any_text_parses_or_is_pointed_at(text: str) -> None:
    try:
        parse(text)
    except SentenceError as problem:
        sentence, _, pointer = str(problem.found).partition("\n")
        assert sentence == text
        assert 0 <= pointer.index("^") - len("  found: ") <= len(text)


# sentence, the column of the caret, what is said
MALFORMED = [
    ("", 0, "empty"),
    ("   ", 0, "empty"),
    ("g d) h", 3, "expected 'name'"),
    ("(g d h", 6, "expected ')'"),
    ("((g d) h", 8, "expected ')'"),
    ("(g + ) h", 5, "expected 'name'"),
    ("( + g) h", 2, "expected 'name'"),
    ("() h", 1, "expected 'name'"),
    ("g + d", 2, "expected 'name'"),
    ("q[r d h", 7, "expected ']'"),
    ("q[] d", 2, "expected 'name'"),
    ("(q[r) d", 4, "expected ']'"),
    ("g 0 d", 4, "expected '['"),
    ("g 0[] d", 4, "expected 'name'"),
    ("g 0[a b] d", 6, "expected ']'"),
    ("g 0[1] d", 4, "expected 'name'"),
    ("g, d", 1, "a character that no sentence has"),
    ("g  * d", 3, "a character that no sentence has"),
    ("(g d) h -> x", 8, "a character that no sentence has"),
    ("g 2 d", 2, "a character that no sentence has"),
    ("g d é", 4, "a character that no sentence has"),
]


@pytest.mark.parametrize(("sentence", "column", "says"), MALFORMED)
def test_a_malformed_sentence_has_a_caret_under_its_fault(sentence: str, column: int, says: str) -> None:
    with pytest.raises(SentenceError) as caught:
        parse(sentence)
    assert says in caught.value.problem
    shown = str(caught.value).splitlines()
    under = shown[shown.index(f"  found: {sentence}".rstrip("\n")) + 1]
    assert under == " " * (len("  found: ") + column) + "^"


# sentence, the column of the caret (None: none), what is said
MEANINGLESS = [
    ("(g (q[r] + k + v) d) w", 21, "unknown name 'w'"),
    ("(g (q[z] + k + v) d) h", 6, "unknown name 'z'"),
    ("h[g] (q + k)", 0, "'h' is an axis here"),
    ("(g (q[r] + k) 0[w] d) h", 14, "unknown name 'w'"),
    ("(q + k) (q + k)", None, "parts 'q' and 'q' meet"),
    ("(q k) h", None, "meet in one place"),
    ("(g g d) h", None, "axis 'g' occurs twice"),
    ("(g (q[g] + k)) h", None, "axis 'g' occurs twice"),
    ("g d h g", None, "axis 'g' occurs twice"),
]


@pytest.mark.parametrize(("sentence", "column", "says"), MEANINGLESS)
def test_a_sentence_that_does_not_fit_its_axes_is_refused(sentence: str, column: int | None, says: str) -> None:
    with pytest.raises(SentenceError) as caught:
        expand(parse(sentence), {"g": 2, "r": 3, "d": 4, "h": 5}, lambda name: name in "qkv")
    assert says in caught.value.problem
    picture = sentence if column is None else f"{sentence}\n{' ' * (len('  found: ') + column)}^"
    assert str(caught.value.found) == picture


def test_an_unknown_name_is_told_the_known_ones_with_sizes() -> None:
    with pytest.raises(SentenceError) as caught:
        expand(parse("g w"), {"g": 2, "r": 3}, lambda name: False)
    assert caught.value.expected == "one of g=2 r=3"
