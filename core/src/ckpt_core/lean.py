"""`dataclass` as in the standard library, and twenty times as quick to define: a command defines two hundred before it does anything.

The standard library looks at each annotation of a class and writes up to six methods as text, which it compiles when the class is defined: 0.4 ms
of a frozen one on Python 3.11. Here the methods are closures over the names of the fields. What the standard library would say of the fields is
asked of it when somebody wants to know. Only `__init__` is compiled, and only when a class has had its first objects: most classes have none in a
command, or a handful. Fields, `replace`, patterns, signatures and pickles work as in the standard library. A subclass may use either decorator, and
a type checker sees no difference.
"""

from __future__ import annotations

import abc
import dataclasses
import inspect
import reprlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field
from functools import cached_property, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls=None, /, *, frozen=False, slots=False, kw_only=False, **others):
        """The class with the methods of a dataclass. A class that inherits fields, has other arguments or is odd goes to the standard library."""
        if cls is None:
            return lambda cls: dataclass(cls, frozen=frozen, slots=slots, kw_only=kw_only, **others)
        if others or any(map(dataclasses.is_dataclass, cls.__bases__)) or _is_odd(cls, frozen, slots):
            return dataclasses.dataclass(frozen=frozen, slots=slots, kw_only=kw_only, **others)(cls)
        fields = [_field(cls, name, kw_only) for name in inspect.get_annotations(cls)]
        _check_order(fields)
        own = {name for name, value in vars(cls).items() if value is not None}  # `__hash__` is None beside an `__eq__`
        made = _with_slots(cls, fields) if slots else _with_defaults(cls, fields)
        methods = {
            "__init__": _FirstInit(made, fields, frozen),
            "__repr__": _repr(fields, frozen),
            "__eq__": _eq(fields),
        }
        methods["__replace__"] = _replaced  # what `copy.replace` calls, since Python 3.13
        methods["__match_args__"] = tuple(field.name for field in fields if field.init and not field.kw_only)
        if frozen:
            methods |= _frozen(made, fields) | (_PICKLED if slots else {})
        else:
            methods["__hash__"] = None
        for name, method in methods.items():
            if name not in own:
                setattr(made, name, method)
        for name in _KNOWN:
            setattr(made, name, _Known(made, fields, frozen, name))
        abc.update_abstractmethods(made)
        return made


__all__ = ["dataclass"]
_FEW = 24
"""The objects of a class that take as long without a compiled `__init__` as compiling it takes."""
_KNOWN = ("__dataclass_fields__", "__dataclass_params__")


def _is_odd(cls: type, frozen: bool, slots: bool) -> bool:
    """Whether a class has what few have: annotations or attributes that are no fields, a field called `self`, a default that objects would
    share and change, slots beside those of other bases, no hash although it has no `__eq__`, or methods that a frozen one must not have."""
    own, kinds = vars(cls), inspect.get_annotations(cls)
    words = " ".join(map(str, kinds.values()))
    defaults = (value.default if isinstance(value, Field) else value for value in map(own.get, kinds))
    return (
        "self" in kinds
        or any(word in words for word in ("ClassVar", "InitVar", "KW_ONLY"))
        or any(isinstance(value, Field) and name not in kinds for name, value in own.items())
        or any(type(default).__hash__ is None for default in defaults)
        or (slots and (cls.__bases__ != (object,) or "__slots__" in own))
        or ("__hash__" in own and own["__hash__"] is None and "__eq__" not in own)
        or (frozen and not own.keys().isdisjoint(("__setattr__", "__delattr__")))
    )


def _field(cls: type, name: str, kw_only: bool) -> Field[Any]:
    """A field as it was written. Its type is added by `_Known`."""
    value: Any = getattr(cls, name, MISSING)
    field: Field[Any] = value if isinstance(value, Field) else dataclasses.field(default=value)
    field.name = name
    if field.kw_only is MISSING:
        field.kw_only = kw_only
    return field


def _check_order(fields: Sequence[Field[Any]]) -> None:
    """An argument without a default behind one that has one is an error of who wrote the class, not of who makes an object."""
    before = None
    for field in fields:
        if not field.init or field.kw_only:
            continue
        if not _is_needed(field):
            before = field.name
        elif before is not None:
            raise TypeError(f"non-default argument {field.name!r} follows default argument {before!r}")


def _is_needed(field: Field[Any]) -> bool:
    """Whether a field has neither a default nor what makes one."""
    return field.default is MISSING and field.default_factory is MISSING


def _with_defaults(cls: type, fields: Sequence[Field[Any]]) -> type:
    """The class, in which the default stands in place of each `Field`."""
    for field in fields:
        if vars(cls).get(field.name) is field:
            if field.default is MISSING:
                delattr(cls, field.name)
            else:
                setattr(cls, field.name, field.default)
    return cls


def _with_slots(cls: type, fields: Sequence[Field[Any]]) -> type:
    """The class made again: one that exists gets no slots."""
    names = tuple(field.name for field in fields)
    inside = {name: value for name, value in vars(cls).items() if name not in (*names, "__dict__", "__weakref__")}
    made = type(cls)(cls.__name__, cls.__bases__, inside | {"__slots__": names})
    made.__qualname__ = cls.__qualname__
    return made


class _Known:
    """What the standard library knows of a dataclass. It is asked when somebody looks, and its answer takes this one's place."""

    def __init__(self, made: type, fields: Sequence[Field[Any]], frozen: bool, name: str) -> None:
        self._made, self._fields, self._frozen, self._name = made, fields, frozen, name

    def __get__(self, instance: object, owner: type) -> Any:
        made = self._made
        inside = {
            "__annotations__": inspect.get_annotations(made),
            "__module__": made.__module__,
            "__doc__": "its fields",
        }
        alike: Any = type(made.__name__, (), inside | {field.name: field for field in self._fields})
        alike = dataclasses.dataclass(init=False, repr=False, eq=False)(alike)
        alike.__dataclass_params__.frozen = (
            self._frozen
        )  # a frozen dataclass of the standard library may inherit from it
        for name in _KNOWN:
            setattr(made, name, getattr(alike, name))
        return getattr(made, self._name)


class _FirstInit:
    """`__init__` while a class has few objects. After them, or when somebody looks for it, one is compiled that takes this one's place."""

    def __init__(self, made: type, fields: Sequence[Field[Any]], frozen: bool) -> None:
        self._made, self._fields, self._frozen, self._left = made, fields, frozen, _FEW

    def __get__(self, instance: object, owner: type) -> Callable[..., None]:
        self._left -= 1
        if self._left >= 0 and isinstance(instance, self._made):
            return partial(self._set, instance)
        return self._compiled(instance)  # `inspect.signature` of Python 3.13 asks as if the class were an object of it

    def _compiled(self, instance: object) -> Callable[..., None]:
        compiled = self._made.__init__ = _init(self._made, self._fields, self._frozen)  # type: ignore[misc]
        return compiled if instance is None else compiled.__get__(instance)

    @cached_property
    def _arguments(self) -> tuple[list[str], frozenset[str], frozenset[str]]:
        """The names of those that stand by their place, of all, and of those that have to be given."""
        arguments = [field for field in self._fields if field.init]
        placed = [field.name for field in arguments if not field.kw_only]
        needed = (field.name for field in arguments if _is_needed(field))
        return placed, frozenset(field.name for field in arguments), frozenset(needed)

    def _set(self, instance: Any, /, *given: object, **named: object) -> None:
        placed, known, needed = self._arguments
        values = dict(zip(placed, given, strict=False)) | named
        if len(values) < len(given) + len(named) or not needed <= values.keys() <= known:
            return self._compiled(instance)(*given, **named)  # which says in Python's words what is wrong
        set_ = object.__setattr__ if self._frozen else setattr
        for field in self._fields:
            if field.name in values:
                set_(instance, field.name, values[field.name])
            elif field.default is not MISSING:
                set_(instance, field.name, field.default)
            elif field.default_factory is not MISSING:
                set_(instance, field.name, field.default_factory())
        if hasattr(instance, "__post_init__"):
            instance.__post_init__()


def _repr(fields: Sequence[Field[Any]], frozen: bool) -> Callable[[object], str]:
    named = [field.name for field in fields if field.repr]
    shown, words = _values(named), ", ".join(f"{name}=%r" for name in named)

    def __repr__(self: object) -> str:
        return f"{type(self).__qualname__}({words % shown(self)})"

    # What is frozen was made after all that it holds. Looking for itself in that would take as long as all else.
    return __repr__ if frozen else reprlib.recursive_repr()(__repr__)


def _eq(fields: Sequence[Field[Any]]) -> Callable[[object, object], bool]:
    compared = _values([field.name for field in fields if field.compare])

    def __eq__(self: object, other: object) -> bool:
        if self is other:
            return True
        return compared(self) == compared(other) if other.__class__ is self.__class__ else NotImplemented

    return __eq__


def _frozen(made: Any, fields: Sequence[Field[Any]]) -> dict[str, Callable[..., Any]]:
    """What a frozen class has besides: a hash, and no way to set a field."""
    hashed = _values([field.name for field in fields if (field.compare if field.hash is None else field.hash)])

    def __hash__(self: object) -> int:
        return hash(hashed(self))

    names = {field.name for field in fields}

    def __setattr__(self: object, name: str, value: object) -> None:
        if type(self) is made or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(made, self).__setattr__(name, value)  # a subclass that is no dataclass may have more attributes

    def __delattr__(self: object, name: str) -> None:
        if type(self) is made or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(made, self).__delattr__(name)

    return {"__hash__": __hash__, "__setattr__": __setattr__, "__delattr__": __delattr__}


def _values(names: Sequence[str]) -> Callable[[object], tuple[Any, ...]]:
    """A function that gives the fields of these names as a tuple. `attrgetter` does so only for two names or more."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda self: tuple(getattr(self, name) for name in names)


def _init(made: Any, fields: Sequence[Field[Any]], frozen: bool) -> Callable[..., None]:
    """`__init__`, which sets the fields. It has to be compiled, because its arguments differ for each class."""
    known: dict[str, Any] = {"__set": object.__setattr__, "__not_given": _NotGiven(), "__made": made}
    positional: list[str] = []
    by_name: list[str] = []
    values: dict[str, str] = {}
    for field in fields:
        name, value = field.name, field.name
        argument = name
        if field.default is not MISSING:
            known[f"__default_{name}"] = field.default
            argument, value = f"{name}=__default_{name}", name if field.init else f"__default_{name}"
        elif field.default_factory is not MISSING:
            known[f"__make_{name}"] = field.default_factory
            argument = f"{name}=__not_given"
            value = f"__make_{name}() if {name} is __not_given else {name}" if field.init else f"__make_{name}()"
        elif not field.init:
            continue  # __post_init__ sets it
        if field.init:
            (by_name if field.kw_only else positional).append(argument)
        values[name] = value
    plainly = "; ".join(f"self.{name} = {value}" for name, value in values.items()) or "pass"
    lines = [plainly]
    if frozen:
        lines = [f"__set(self, {name!r}, {value})" for name, value in values.items()]
        if len(values) > 1 and made.__bases__ == (object,) and "__slots__" in vars(made):
            # An object with slots may change its class for another with the same: while it is of this one, nothing stops an assignment,
            # which takes half the time of `object.__setattr__`.
            known["__unfrozen"] = type(made.__name__, (), {"__slots__": made.__slots__})
            quickly = f"__set(self, '__class__', __unfrozen); {plainly}; self.__class__ = __made"
            lines = [f"if type(self) is __made: {quickly}", f"else: {'; '.join(lines)}"]
    if hasattr(made, "__post_init__"):
        lines.append("self.__post_init__()")
    arguments = ", ".join(["self", *positional, *(["*", *by_name] if by_name else [])])
    body = "\n  ".join(lines or ["pass"])
    text = f"def make({', '.join(known)}):\n def __init__({arguments}):\n  {body}\n return __init__"
    inside: dict[str, Any] = {}
    exec(
        text, vars(sys.modules[made.__module__]), inside
    )  # types of its arguments are looked up in the module of the class
    init: Callable[..., None] = inside["make"](**known)
    init.__qualname__ = f"{made.__qualname__}.__init__"  # errors about arguments name it
    kinds = inspect.get_annotations(made)
    init.__annotations__ = {field.name: kinds[field.name] for field in fields if field.init} | {"return": None}
    return init


class _NotGiven:
    """The default of an argument whose value is made."""

    def __repr__(self) -> str:
        return "<factory>"  # as the standard library shows it


def _replaced(self: Any, /, **changes: object) -> Any:
    return dataclasses.replace(self, **changes)


def _state(self: Any) -> list[object]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _set_state(self: Any, state: list[object]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)


_PICKLED = {
    "__getstate__": _state,
    "__setstate__": _set_state,
}  # an object with slots has no `__dict__` that a pickle could keep
