"""Writing pickles of plain data, protocol 2, the same bytes for the same value.

Protocol 2 is what `torch.save` writes and all that `torch.load(weights_only=True)`
reads. Text and globals are remembered by value, an `Opaque` by identity, so that
what was shared or cyclic when read is so again; nothing else is remembered.

    dict, Entries, OrderedDict, list, tuple, str, int, float, bool, None, bytes
    DType     the global `torch.NAME`
    Opaque    a reference: its global; otherwise global, arguments, then state, items and entries:
              by NEWOBJ if it has a state or no arguments (objects), else by REDUCE (enums, torch.Size, paths)
"""

from __future__ import annotations

import functools
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ckpt_core.errors import FormatError
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.pickle.opaque import Opaque, brief

Path = tuple[Any, ...]

_MAX_DEPTH = 100
_CONSTANTS = {None: b"N", True: b"\x88", False: b"\x89"}
_TUPLES = {1: b"\x85", 2: b"\x86", 3: b"\x87"}


def write_pickle(value: Any, file: str) -> bytes:
    """The pickle of `value`. Raises `FormatError` with `file` and the path inside `value` for what can't be written."""
    return PickleWriter(file).pickle(value)


class Entries:
    """The entries of a dict, made one by one while they are written. No object in them is shared with anything, so that none is kept:
    the metadata of a large checkpoint has hundreds of thousands."""

    def __init__(self, make: Callable[[], Iterable[tuple[Any, Any]]]) -> None:
        self.make = make


class PickleWriter:
    """Emits one pickle. A subclass may write further types: see `special`."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._out = bytearray()
        self._memo: dict[str | tuple[str, str] | int, bytes] = {}  # how each is written again
        self._remembered = 0
        self._by_identity = True
        self._path: list[Any] = []

    def pickle(self, value: Any) -> bytes:
        """The whole pickle of `value`."""
        self._out += b"\x80\x02"
        self.value(value)
        self._out += b"."
        return bytes(self._out)

    @property
    def path(self) -> Path:
        """Where the value that is being written stands in the whole."""
        return tuple(self._path)

    def special(self, value: Any) -> bool:
        """Write a value of a type that plain pickles don't have, and say so. For subclasses."""
        return False

    def value(self, value: Any) -> None:
        """Write `value`, which stands at `path` of the whole."""
        kind = type(value)
        write = _WRITERS.get(kind)
        if write is not None:
            write(self, value)
        elif not self.special(value):
            raise self._refused(f"a {kind.__module__}.{kind.__qualname__} can't be written", "plain data and tensors")

    def text(self, value: str) -> None:
        """Write text; the second time as a reference to the first."""
        if not self._recall(value):
            data = value.encode("utf-8", "surrogatepass")
            self._out += b"X" + struct.pack("<I", len(data)) + data
            self._remember(value)

    def reference(self, module: str, name: str) -> None:
        """Write the global `module.name`."""
        if not self._recall((module, name)):
            self._out += f"c{module}\n{name}\n".encode()
            self._remember((module, name))

    def tuple_of(self, values: tuple[Any, ...]) -> None:
        """Write a tuple."""
        if not values:
            self._out += b")"
            return
        if len(values) <= 3 and {int}.issuperset(map(type, values)) and max(map(abs, values)) < 1 << 31:
            self._out += _few_integers(values)
            return
        if len(values) > 3:
            self._out += b"("
        self._each(values)
        self._out += _TUPLES.get(len(values), b"t")

    def new_ordered_dict(self) -> None:
        """Write an empty `OrderedDict`."""
        self.reference("collections", "OrderedDict")
        self._out += b")R"

    def _constant(self, value: bool | None) -> None:
        self._out += _CONSTANTS[value]

    def _float(self, value: float) -> None:
        self._out += b"G" + struct.pack(">d", value)

    def _bytes(self, value: bytes) -> None:
        # Protocol 2 has no bytes: the standard pickler writes them as text of code points 0 to 255.
        self.reference("_codecs", "encode")
        self.tuple_of((value.decode("latin1"), "latin1"))
        self._out += b"R"

    def _dtype(self, value: DType) -> None:
        self.reference("torch", value.torch)

    def _list(self, value: list[Any]) -> None:
        self._out += b"]"
        self._appends(value)

    def _dict(self, value: dict[Any, Any]) -> None:
        self._out += b"}"
        self._setitems(value.items())

    def _ordered_dict(self, value: OrderedDict[Any, Any]) -> None:
        self.new_ordered_dict()
        self._setitems(value.items())

    def _entries(self, value: Entries) -> None:
        self._out += b"}"
        self._by_identity, before = False, self._by_identity
        self._setitems(value.make())
        self._by_identity = before

    def opcodes(self, codes: bytes) -> None:
        """Write opcodes that have no method of their own."""
        self._out += codes

    def _integer(self, value: int) -> None:
        if -(1 << 31) <= value < 1 << 31:
            self._out += _narrow(value)
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            if len(data) > 255:
                raise self._refused("an integer is too large", "at most 255 bytes")
            self._out += struct.pack("<cB", b"\x8a", len(data)) + data

    def _deeper(self) -> list[Any]:
        """The path with a step more, which what is inside something puts its key or index in."""
        self._path.append(None)
        if len(self._path) > _MAX_DEPTH:
            del self._path[6:]
            raise self._refused("a value nests too deep, or contains itself", f"at most {_MAX_DEPTH} levels")
        return self._path

    def _each(self, items: Iterable[Any]) -> None:
        """Write items one after the other; each stands at its index."""
        path = self._deeper()
        for index, item in enumerate(items):
            path[-1] = index
            self.value(item)
        path.pop()

    def _appends(self, items: Sequence[Any]) -> None:
        if items:
            self._out += b"("
            self._each(items)
            self._out += b"e"

    def _setitems(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        path, empty = self._deeper(), True
        for key, item in pairs:
            if empty:
                self._out += b"("
                empty = False
            path[-1] = key
            if type(key) is str:
                self.text(key)
            else:
                self.value(key)
            self.value(item)
        path.pop()
        if not empty:
            self._out += b"u"

    def _opaque(self, value: Opaque) -> None:
        if value.args is None:
            self.reference(value.module, value.name)
            return
        if self._by_identity and self._recall(id(value)):
            return
        if value.kwargs:
            raise self._refused(f"a {value.qualname} with keyword arguments can't be written", "positional ones")
        self.reference(value.module, value.name)
        self.tuple_of(value.args)
        self._out += b"\x81" if value.state is not None or not value.args else b"R"
        self._remember(id(value) if self._by_identity else None)
        self._appends(value.items)
        if value.entries:
            self._setitems(value.entries)
        if value.state is not None:
            self.value(value.state)
            self._out += b"b"

    # What is remembered: text by itself, a global by its module and name, an object by its identity.

    def _remember(self, key: str | tuple[str, str] | int | None) -> None:
        index = self._remembered
        self._remembered += 1
        narrow = index < 256
        self._out += b"q%c" % index if narrow else _WIDE(b"r", index)
        if key is not None:
            self._memo[key] = b"h%c" % index if narrow else _WIDE(b"j", index)

    def _recall(self, key: str | tuple[str, str] | int) -> bool:
        again = self._memo.get(key)
        if again is None:
            return False
        self._out += again
        return True

    def _refused(self, problem: str, expected: str) -> FormatError:
        where = "".join(f"[{brief(step)}]" for step in self._path) or "the value itself"
        return FormatError(problem, file=self._file, found=where, expected=expected)


_WIDE = struct.Struct("<cI").pack


def _narrow(value: int) -> bytes:
    """An integer of at most 32 bits."""
    if 0 <= value < 1 << 8:
        return b"K%c" % value
    return struct.pack("<cH", b"M", value) if 0 <= value < 1 << 16 else struct.pack("<ci", b"J", value)


@functools.lru_cache(1 << 12)
def _few_integers(values: tuple[int, ...]) -> bytes:
    """A tuple of up to three such, as shapes and places are in tens of thousands."""
    return b"".join(map(_narrow, values)) + _TUPLES[len(values)]


_WRITERS: dict[type, Callable[[PickleWriter, Any], None]] = {
    str: PickleWriter.text,
    int: PickleWriter._integer,
    type(None): PickleWriter._constant,
    bool: PickleWriter._constant,
    float: PickleWriter._float,
    bytes: PickleWriter._bytes,
    tuple: PickleWriter.tuple_of,
    list: PickleWriter._list,
    dict: PickleWriter._dict,
    OrderedDict: PickleWriter._ordered_dict,
    Entries: PickleWriter._entries,
    DType: PickleWriter._dtype,
    Opaque: PickleWriter._opaque,
}
"""How values of each type are written; what else there may be is `special`."""
