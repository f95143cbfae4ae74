"""`ckpt_core.lean.dataclass` does what the standard library's does."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import KW_ONLY, FrozenInstanceError, InitVar, field, replace
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import pytest

import ckpt_core
from ckpt_core.lean import dataclass as lean


def classes(dataclass: Any) -> tuple[type, ...]:
    """The same classes, made by either."""

    @dataclass(frozen=True)
    class Open:
        """With a dict, defaults and what is not compared, shown or hashed."""

        first: int
        second: str = "two"
        third: list[int] = field(default_factory=list, hash=False)
        secret: str = field(default="s", repr=False)
        beside: float = field(default=0.5, compare=False)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Closed:
        """With slots, arguments by name, and a field that is made."""

        one: float
        made: dict[str, int] = field(default_factory=dict, init=False)
        checked: bool = True

        def __post_init__(self) -> None:
            object.__setattr__(self, "made", {"seen": 1})

    @dataclass(frozen=True)
    class Own:
        """With methods of its own, and one field."""

        value: float

        def __eq__(self, other: object) -> bool:
            return True

        def __repr__(self) -> str:
            return "own"

    @dataclass(frozen=True, slots=True)
    class Empty:
        """Nothing to set, so that all are alike."""

    return Open, Closed, Own, Empty


OURS, THEIRS = classes(lean), classes(dataclasses.dataclass)
MADE: dict[str, Callable[..., list[Any]]] = {
    "open": lambda Open, Closed, Own, Empty: [Open(1), Open(1, "b", [2], "t"), Open(second="c", first=3, beside=4.0)],
    "closed": lambda Open, Closed, Own, Empty: [Closed(one=1.5), Closed(one=float("nan"), checked=False)],
    "own": lambda Open, Closed, Own, Empty: [Own(1.0), Own(2.0)],
    "empty": lambda Open, Closed, Own, Empty: [Empty(), Empty()],
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_values_are_shown_compared_and_hashed_alike(made: Callable[..., list[Any]]) -> None:
    ours, theirs = made(*OURS), made(*THEIRS)
    assert [repr(one).rpartition(".")[2] for one in ours] == [repr(one).rpartition(".")[2] for one in theirs]
    assert [[one == other for other in ours] for one in ours] == [[one == other for other in theirs] for one in theirs]
    assert all(one != other for one in ours for other in theirs if not isinstance(one, OURS[2]))


def test_equal_values_have_one_hash() -> None:
    Open, _, _, Empty = OURS
    assert hash(Open(1, third=[2])) == hash(Open(1, third=[3], beside=9.0)) != hash(Open(1, secret="t"))
    assert hash(Empty()) == hash(Empty())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda Open, Closed, Own, Empty: Open(),
        lambda Open, Closed, Own, Empty: Open(1, fourth=2),
        lambda Open, Closed, Own, Empty: Closed(2.0),
        lambda Open, Closed, Own, Empty: Closed(one=1.0, made={}),
        lambda Open, Closed, Own, Empty: setattr(Open(1), "first", 2),
        lambda Open, Closed, Own, Empty: setattr(Closed(one=1.0), "one", 2.0),
        lambda Open, Closed, Own, Empty: delattr(Own(1.0), "value"),
        lambda Open, Closed, Own, Empty: hash(Closed(one=1.0)),
    ],
)
def test_what_is_refused_is_refused_in_the_same_words(wrong: Callable[..., object]) -> None:
    said = []
    for made in (OURS, THEIRS):
        with pytest.raises((TypeError, FrozenInstanceError)) as refused:
            wrong(*made)
        said.append((refused.type, str(refused.value)))
    assert said[0] == said[1]


def test_it_is_a_dataclass() -> None:
    for ours, theirs in zip(OURS, THEIRS, strict=True):
        assert [one.name for one in dataclasses.fields(ours)] == [one.name for one in dataclasses.fields(theirs)]
        assert ours.__match_args__ == theirs.__match_args__ and hasattr(ours, "__slots__") == hasattr(
            theirs, "__slots__"
        )
    first = OURS[0](1)
    copies = [replace, *([copy.replace] if hasattr(copy, "replace") else [])]  # since Python 3.13
    assert all(one(first, second="b") == OURS[0](1, "b") for one in copies)
    assert first.third is not OURS[0](1).third


@pytest.mark.parametrize("kind", [lean, dataclasses.dataclass])
def test_a_signature_has_types_and_is_looked_up_where_the_class_is(kind: Any) -> None:
    Open = classes(kind)[0]
    assert str(inspect.signature(Open)).startswith(
        "(first: 'int', second: 'str' = 'two', third: 'list[int]' = <factory>"
    )
    assert get_type_hints(Open.__init__)["third"] == list[int] and Open.__init__.__module__ == __name__


@pytest.mark.parametrize("kind", [lean, dataclasses.dataclass])
def test_odd_classes(kind: Any) -> None:
    @kind(frozen=True)
    class Given:
        size: int
        by: InitVar[int] = 2
        twice: int = field(init=False)

        def __post_init__(self, by: int) -> None:
            object.__setattr__(self, "twice", self.size * by)

    @kind(frozen=True)
    class Named:
        self: int
        _set: int = 0
        _not_given: int = 1
        _default__set: int = 2
        made: list[int] = field(default_factory=list)

    @kind(frozen=True)
    class Unhashed:
        size: int
        __hash__ = None  # type: ignore[assignment]

    assert Given(2).twice == 4 and Given(2, 3).twice == 6
    assert dataclasses.astuple(Named(5, 6, 7)) == (5, 6, 7, 2, [])
    with pytest.raises(TypeError):
        hash(Unhashed(1))


@pytest.mark.parametrize("kind", [lean, dataclasses.dataclass])
def test_what_is_no_field(kind: Any) -> None:
    @kind(frozen=True)
    class Counted:
        known: ClassVar[int] = 3
        size: int
        _: KW_ONLY
        name: str = "a"

    @kind(slots=True)
    class Below(list):  # type: ignore[type-arg]
        size: int = 0

    assert [one.name for one in dataclasses.fields(Counted)] == ["size", "name"] and Counted.known == 3
    assert Counted(1, name="b") != Counted(1) and Counted.__match_args__ == ("size",)
    assert Below(2).size == 2 and not hasattr(Below(2), "other")


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_the_first_objects_are_as_the_later_ones(made: Callable[..., list[Any]]) -> None:
    fresh = classes(lean)
    some = [made(*fresh) for _ in range(40)]  # the last have a compiled `__init__`
    assert len({str([*map(repr, objects)]) for objects in some}) == 1
    assert len({str([vars(one) for one in objects if hasattr(one, "__dict__")]) for objects in some}) == 1


def test_a_signature_is_the_same_for_whoever_asks_first() -> None:
    """`inspect` of Python 3.13 gets `__init__` as if the class were an object of itself, and that of 3.11 from the class."""

    @lean
    class New:
        first: int

    bound = vars(New)["__init__"].__get__(New, type)
    assert list(inspect.signature(bound).parameters) == ["first"]
    assert list(inspect.signature(New).parameters) == ["first"]


def test_fields_know_their_types_and_a_frozen_one_is_known_as_such() -> None:
    for ours, theirs in zip(classes(lean), classes(dataclasses.dataclass), strict=True):
        told = [
            [(one.name, one.type, one.default, one.kw_only, one.init) for one in dataclasses.fields(kind)]
            for kind in (ours, theirs)
        ]
        assert told[0] == told[1] and ours.__dataclass_params__.frozen and dataclasses.is_dataclass(ours)


@pytest.mark.parametrize("kind", [lean, dataclasses.dataclass])
def test_a_wrong_class_is_refused_when_it_is_defined(kind: Any) -> None:
    wrong: list[dict[str, Any]] = [
        {"__annotations__": {"one": "int", "two": "int"}, "one": 1},
        {"__setattr__": lambda self, name, value: None},
        {"__delattr__": lambda self, name: None},
        {"__annotations__": {"one": "int"}, "two": field()},
        {"__annotations__": {"one": "list"}, "one": []},
        {"__annotations__": {"one": "list"}, "one": field(default={})},
    ]
    for inside in wrong:
        with pytest.raises((TypeError, ValueError)):
            kind(frozen=True)(type("Wrong", (), inside))


def test_a_frozen_dataclass_of_either_kind_may_inherit() -> None:
    for kind in (lean, dataclasses.dataclass):
        below = kind(frozen=True)(type("Below", (OURS[0],), {"__annotations__": {"more": "int"}, "more": 7}))
        assert below(1).more == 7 and below(1) == below(1) and below(1) != OURS[0](1)
        with pytest.raises(FrozenInstanceError):
            below(1).first = 2


def test_a_class_below_that_is_none_may_have_more() -> None:
    for kind in (lean, dataclasses.dataclass):
        above = classes(kind)[0]
        below = type("Below", (above,), {})(1)
        below.more = 7
        assert below.more == 7 and below == type(below)(1)
        del below.more
        for refused in (lambda one=below: setattr(one, "first", 2), lambda one=below: delattr(one, "first")):
            with pytest.raises(FrozenInstanceError):
                refused()


@lean(frozen=True, slots=True)
class Kept:
    """What pickles name is found in its module."""

    name: str
    size: int = 2


def test_slots_are_copied_and_pickled() -> None:
    kept = Kept("a")
    assert copy.deepcopy(kept) == pickle.loads(pickle.dumps(kept)) == kept


def test_core_defines_its_frozen_classes_so() -> None:
    files = {file: file.read_text() for file in Path(ckpt_core.__file__).parent.rglob("*.py")}
    assert not [
        file for file, text in files.items() if "\n@dataclass(frozen" in text and "ckpt_core.lean import" not in text
    ]
