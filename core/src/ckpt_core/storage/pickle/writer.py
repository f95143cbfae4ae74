"""Writing pickles of plain data, protocol 2, the same bytes for the same value.

Protocol 2 is what `torch.save` writes and all that `torch.load(weights_only=True)`
reads. Text and globals are remembered by value, an `Opaque` by identity, so that
what was shared or cyclic when read is so again; nothing else is remembered.

    dict, OrderedDict, list, tuple, str, int, float, bool, None, bytes
    DType     the global `torch.NAME`
    Opaque    a reference: its global; otherwise global, arguments, then state, items and entries:
              by NEWOBJ if it has a state or no arguments (objects), else by REDUCE (enums, torch.Size, paths)
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ckpt_core.errors import FormatError
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.pickle.opaque import Opaque, brief

Path = tuple[Any, ...]

_MAX_DEPTH = 100
_CONSTANTS = {None: b"N", True: b"\x88", False: b"\x89"}


def write_pickle(value: Any, file: str) -> bytes:
    """The pickle of `value`. Raises `FormatError` with `file` and the path inside `value` for what can't be written."""
    return PickleWriter(file).pickle(value)


class PickleWriter:
    """Emits one pickle. A subclass may write further types: see `special`."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._out = bytearray()
        self._memo: dict[Any, int] = {}

    def pickle(self, value: Any) -> bytes:
        """The whole pickle of `value`."""
        self._out += b"\x80\x02"
        self.value(value, ())
        self._out += b"."
        return bytes(self._out)

    def special(self, value: Any, path: Path) -> bool:
        """Write a value of a type that plain pickles don't have, and say so. For subclasses."""
        return False

    def value(self, value: Any, path: Path) -> None:
        """Write `value`, which stands at `path` of the whole."""
        if len(path) > _MAX_DEPTH:
            raise self._refused("a value nests too deep, or contains itself", path[:6], f"at most {_MAX_DEPTH} levels")
        kind = type(value)
        if kind is str:
            self.text(value)
        elif value is None or kind is bool:
            self._out += _CONSTANTS[value]
        elif kind is int:
            self._integer(value, path)
        elif kind is float:
            self._out += b"G" + struct.pack(">d", value)
        elif kind is tuple:
            self.tuple_of(value, path)
        elif kind is list:
            self._out += b"]"
            self._appends(value, path)
        elif kind is dict:
            self._out += b"}"
            self._setitems(list(value.items()), path)
        elif kind is OrderedDict:
            self.new_ordered_dict()
            self._setitems(list(value.items()), path)
        elif kind is bytes:
            # Protocol 2 has no bytes: the standard pickler writes them as text of code points 0 to 255.
            self.reference("_codecs", "encode")
            self.tuple_of((value.decode("latin1"), "latin1"), path)
            self._out += b"R"
        elif kind is DType:
            self.reference("torch", value.torch)
        elif kind is Opaque:
            self._opaque(value, path)
        elif not self.special(value, path):
            raise self._refused(
                f"a {kind.__module__}.{kind.__qualname__} can't be written", path, "plain data and tensors"
            )

    def text(self, value: str) -> None:
        """Write text; the second time as a reference to the first."""
        if not self._recall(("text", value)):
            data = value.encode("utf-8", "surrogatepass")
            self._out += b"X" + struct.pack("<I", len(data)) + data
            self._remember(("text", value))

    def reference(self, module: str, name: str) -> None:
        """Write the global `module.name`."""
        if not self._recall(("global", module, name)):
            self._out += f"c{module}\n{name}\n".encode()
            self._remember(("global", module, name))

    def tuple_of(self, values: tuple[Any, ...], path: Path) -> None:
        """Write a tuple."""
        if not values:
            self._out += b")"
            return
        if len(values) > 3:
            self._out += b"("
        for index, item in enumerate(values):
            self.value(item, (*path, index))
        self._out += {1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(values), b"t")

    def new_ordered_dict(self) -> None:
        """Write an empty `OrderedDict`."""
        self.reference("collections", "OrderedDict")
        self._out += b")R"

    def opcodes(self, codes: bytes) -> None:
        """Write opcodes that have no method of their own."""
        self._out += codes

    def _integer(self, value: int, path: Path) -> None:
        if 0 <= value < 1 << 8:
            self._out += struct.pack("<cB", b"K", value)
        elif 0 <= value < 1 << 16:
            self._out += struct.pack("<cH", b"M", value)
        elif -(1 << 31) <= value < 1 << 31:
            self._out += struct.pack("<ci", b"J", value)
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            if len(data) > 255:
                raise self._refused("an integer is too large", path, "at most 255 bytes")
            self._out += struct.pack("<cB", b"\x8a", len(data)) + data

    def _appends(self, items: Sequence[Any], path: Path) -> None:
        if items:
            self._out += b"("
            for index, item in enumerate(items):
                self.value(item, (*path, index))
            self._out += b"e"

    def _setitems(self, pairs: Sequence[tuple[Any, Any]], path: Path) -> None:
        if pairs:
            self._out += b"("
            for key, item in pairs:
                self.value(key, (*path, brief(key)))
                self.value(item, (*path, key))
            self._out += b"u"

    def _opaque(self, value: Opaque, path: Path) -> None:
        if value.args is None:
            self.reference(value.module, value.name)
            return
        if self._recall(("object", id(value))):
            return
        if value.kwargs:
            raise self._refused(f"a {value.qualname} with keyword arguments can't be written", path, "positional ones")
        self.reference(value.module, value.name)
        self.tuple_of(value.args, path)
        self._out += b"\x81" if value.state is not None or not value.args else b"R"
        self._remember(("object", id(value)))
        self._appends(value.items, path)
        self._setitems(value.entries, path)
        if value.state is not None:
            self.value(value.state, path)
            self._out += b"b"

    def _remember(self, key: Any) -> None:
        index = self._memo[key] = len(self._memo)
        self._out += struct.pack("<cB", b"q", index) if index < 256 else struct.pack("<cI", b"r", index)

    def _recall(self, key: Any) -> bool:
        index = self._memo.get(key)
        if index is None:
            return False
        self._out += struct.pack("<cB", b"h", index) if index < 256 else struct.pack("<cI", b"j", index)
        return True

    def _refused(self, problem: str, path: Path, expected: str) -> FormatError:
        where = "".join(f"[{brief(step)}]" for step in path) or "the value itself"
        return FormatError(problem, file=self._file, found=where, expected=expected)
