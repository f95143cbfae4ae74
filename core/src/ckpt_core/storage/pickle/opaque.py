"""Inert stand-ins for the classes and functions that a pickle names.

Reading a checkpoint never imports what it names. `argparse.Namespace`, an enum
of Megatron, a node of OmegaConf: each becomes an `Opaque` that keeps what the
pickle said about it (arguments, state, items) and does nothing else.

    class named only      Opaque("typing", "Any")                          args is None
    enum member           Opaque("m.enums", "ModelType", args=(1,))        .value == 1
    object with state     Opaque("argparse", "Namespace", args=(), state={"lr": 0.1})
    subclass of list      .items holds what was appended
    subclass of dict      .entries holds the (key, value) pairs
"""

from __future__ import annotations

from typing import Any


class Opaque:
    """A global that a pickle names, or an object that it would have made by calling one.

    Two stand-ins are equal only if they are the same object, so that a cyclic state
    (OmegaConf's `_parent`) can't make a comparison or a hash run for ever.
    Treat it as frozen: only the reader that builds it writes to it.
    """

    __slots__ = ("args", "entries", "items", "kwargs", "module", "name", "state")

    def __init__(
        self,
        module: str,
        name: str,
        args: tuple[Any, ...] | None = None,
        state: Any = None,
        kwargs: dict[str, Any] | None = None,
        items: list[Any] | tuple[Any, ...] = (),
        entries: list[tuple[Any, Any]] | tuple[tuple[Any, Any], ...] = (),
    ) -> None:
        self.module = module
        self.name = name
        self.args = args
        self.state = state
        self.kwargs = kwargs
        self.items = items
        self.entries = entries

    @property
    def qualname(self) -> str:
        """`module.name`, as in an import.

        >>> Opaque("argparse", "Namespace").qualname
        'argparse.Namespace'
        """
        return f"{self.module}.{self.name}"

    @property
    def is_reference(self) -> bool:
        """Whether the pickle only named it, without making an object."""
        return self.args is None

    @property
    def value(self) -> Any:
        """The only positional argument (what an enum is pickled as), or None."""
        return self.args[0] if self.args is not None and len(self.args) == 1 else None

    def fields(self) -> dict[str, Any]:
        """What the object was given, by name: positional arguments as "0", "1"..., keywords, then its state.

        A state is a dict, or a pair (dict, dict of slots) as `__slots__` classes have. Any
        other state stands under "state". The values are as stored: this does not recurse.

        >>> Opaque("argparse", "Namespace", args=(), state={"lr": 0.1}).fields()
        {'lr': 0.1}
        >>> Opaque("megatron.enums", "ModelType", args=(1,)).fields()
        {'0': 1}
        """
        if not self.args and not self.kwargs and type(self.state) is dict and {str}.issuperset(map(type, self.state)):
            return dict(self.state)  # as most are
        found: dict[str, Any] = {str(index): value for index, value in enumerate(self.args or ())}
        found.update(self.kwargs or {})
        parts = self.state if isinstance(self.state, tuple) and len(self.state) == 2 else (self.state,)
        if all(part is None or isinstance(part, dict) for part in parts):
            for part in parts:
                found.update({str(key): value for key, value in (part or {}).items()})
        else:
            found["state"] = self.state
        return found

    def __repr__(self) -> str:
        if self.is_reference:
            return f"<global {self.qualname}>"
        if self.state is None and type(self.value) in (int, float, bool, str):
            return f"<{self.qualname}({brief(self.value)})>"
        return f"<{self.qualname} with {len(self.fields())} fields>"


def brief(value: object, width: int = 60) -> str:
    """A short text for an error message. Never recurses: `repr` of a hostile nest can take for ever.

    >>> brief({"a": [1, 2]})
    'a dict of 1'
    """
    if value is None or type(value) in (bool, float):
        return repr(value)
    if type(value) is int:
        return repr(value) if value.bit_length() < 200 else f"an int of {value.bit_length()} bits"
    if isinstance(value, str | bytes):
        text = repr(value[:width])
        return text if len(value) <= width else f"{text[:-1]}...{text[-1]} ({len(value)} long)"
    if isinstance(value, Opaque):
        return repr(value)
    if isinstance(value, list | tuple | dict | set | frozenset):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
