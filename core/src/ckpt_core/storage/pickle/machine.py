"""The stack machine of pickles, on inert values: see `pickles` for what it does with each kind of opcode."""

from __future__ import annotations

import codecs
import re
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from ckpt_core.errors import FormatError
from ckpt_core.storage.bytes.byterange import ByteRange
from ckpt_core.storage.pickle.arrays import is_of_numpy, set_numpy_state
from ckpt_core.storage.pickle.limits import Limits
from ckpt_core.storage.pickle.makers import VALUES, Maker, check_key, fill_dict
from ckpt_core.storage.pickle.opaque import Opaque, brief
from ckpt_core.storage.pickle.refused import is_refused

_HIGHEST_PROTOCOL = 5
# Bytes in CPython, rounded up to what its allocator hands out.
REMEMBERED, SCALAR, HELD, _SET, _ENTRY, _STORAGE = 10, 48, 16, 224, 112, 128
_INT = re.compile(rb"[+-]?\d+", re.ASCII)


class Machine:
    """The stack, the marks, the memo, and one method per kind of opcode."""

    def __init__(
        self,
        data: ByteRange,
        file: str,
        persistent_load: Callable[[Any], Any] | None,
        makers: Mapping[str, Maker],
        limits: Limits,
    ) -> None:
        self.file = file
        self.data = data
        self._start = data.position
        self._persistent_load = persistent_load
        self._makers = makers
        self.limits = limits
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each open mark
        self.memo: list[Any] = []  # picklers number what they remember from 0 on
        self.memo_elsewhere: dict[int, Any] = {}
        self._held = 0  # values on the stacks below
        self._made = 0
        self._allowed = 0  # `_made` up to here was found to be within the limits
        self._globals: dict[tuple[str, str], Any] = {}
        self.makers_of: dict[Any, Maker | None] = {}  # what was called before: by identity, as stand-ins are equal

    @property
    def bytes_read(self) -> int:
        """How much of the pickle was read."""
        return self.data.position - self._start

    def charge(self, size: int) -> None:
        """See `Reading.charge`."""
        self._made += size
        if self._made > self._allowed and self.memory_left() < 0:
            self.fail(
                "the pickle makes far more than a checkpoint of its size does",
                found=f"{self._made} bytes of memory for {self.bytes_read} bytes read",
                expected=f"at most {self._allowed}",
            )

    def memory_left(self) -> int:
        """How many more bytes may be made, after what was read so far."""
        limits = self.limits
        self._allowed = min(limits.memory, limits.memory_free + limits.memory_per_byte * self.bytes_read)
        return self._allowed - self._made

    def fail(self, problem: str, found: object = None, expected: object = None, fix: str | None = None) -> NoReturn:
        """See `Reading.fail`."""
        raise FormatError(
            f"{problem} (byte {self.bytes_read} of the pickle)",
            file=self.file,
            found=found,
            expected=expected,
            fix=fix,
        )

    def result(self) -> Any:
        """The value that is left at STOP."""
        if len(self.stack) != 1 or self._below:
            self.fail(
                "the pickle does not end with one value",
                found=f"{len(self.stack)} values, {len(self._below)} open marks",
            )
        self._made -= REMEMBERED * len(self.memo)
        self.memo.clear()
        self.memo_elsewhere.clear()
        return self.stack.pop()

    # Numbers and text

    def unpack(self, layout: struct.Struct) -> None:
        self.charge(SCALAR)
        self.stack.append(layout.unpack(self.data.take(layout.size))[0])

    def line(self) -> bytes:
        """The rest of a line of the text opcodes."""
        line = self.data.line(self.limits.line)
        self.charge(SCALAR + len(line))
        return line

    def _integer(self, data: bytes) -> int:
        return int.from_bytes(data, "little", signed=True)

    def long(self, width: int) -> None:
        count = int.from_bytes(self.data.take(width), "little", signed=width > 1)
        self._check_length(count, self.limits.integer, "an integer")
        self.charge(SCALAR + count)
        self.stack.append(self._integer(self.data.take(count)))

    def text_integer(self) -> int:
        line = self.line().rstrip(b"L")
        if not _INT.fullmatch(line) or len(line) > 2 * self.limits.integer:
            self.fail("a number in the pickle is damaged", found=brief(line))
        return int(line)

    def int_line(self) -> None:
        start = self.data.position
        value = self.text_integer()
        # Protocol 0 writes True as "01" and False as "00".
        is_bool = self.data.position - start == 3 and value in (0, 1)
        self.stack.append(bool(value) if is_bool else value)

    def float_line(self) -> None:
        line = self.line()
        try:
            self.stack.append(float(line))
        except ValueError:
            self.fail("a number in the pickle is damaged", found=brief(line))

    def counted(self, width: int) -> bytes:
        count = int.from_bytes(self.data.take(width), "little")
        self._check_length(count, self.limits.string, "a string")
        data = self.data.take(count)
        self.charge(SCALAR + count)
        return data

    def _check_length(self, count: int, limit: int, what: str) -> None:
        if not 0 <= count <= limit:
            self.fail(f"{what} in the pickle is too long", found=f"{count} bytes", expected=f"at most {limit}")

    def decode(self, data: bytes, encoding: str = "utf-8", errors: str = "surrogatepass") -> str:
        try:
            text = data.decode(encoding, errors)
        except UnicodeDecodeError:
            self.fail("a text in the pickle is damaged", found=brief(data), expected=encoding)
        if not text.isascii():
            self.charge(3 * len(text))
        return text

    def old_string(self, data: bytes) -> None:
        """A `str` of Python 2: text where it is UTF-8, else bytes."""
        try:
            self.stack.append(data.decode())
        except UnicodeDecodeError:
            self.stack.append(data)

    def quoted_line(self) -> None:
        line = self.line().strip()
        if len(line) < 2 or line[0] != line[-1] or line[0] not in b"\"'":
            self.fail("a string in the pickle has no quotes", found=brief(line))
        try:
            self.old_string(codecs.escape_decode(line[1:-1])[0])
        except ValueError:
            self.fail("a string in the pickle is damaged", found=brief(line))

    def unicode_line(self) -> None:
        self.stack.append(self.decode(self.line(), "raw-unicode-escape", "strict"))

    # Stack and memo

    def open_mark(self) -> None:
        if len(self._below) >= self.limits.marks:
            self.fail("the pickle nests too deep", expected=f"at most {self.limits.marks} open marks")
        self._held += len(self.stack)
        if self._held > self.limits.stack:
            self.fail("the pickle's stack grows too large", expected=f"at most {self.limits.stack} values")
        self._below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        if not self._below:
            self.fail("the pickle closes a group that it did not open")
        items, self.stack = self.stack, self._below.pop()
        self._held -= len(self.stack)
        return items

    def drop_mark(self) -> None:
        self.pop_mark()

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def put(self, index: int) -> None:
        value = self.stack[-1]
        if index == len(self.memo):
            self.charge(REMEMBERED)
            self.memo.append(value)
        elif 0 <= index < len(self.memo):
            self.memo[index] = value
        elif index < 0:
            self.fail("the pickle remembers a value by an impossible number", found=f"memo {index}")
        else:
            self.charge(SCALAR + _ENTRY)
            self.memo_elsewhere[index] = value

    def memoize(self) -> None:
        self.put(len(self.memo) + len(self.memo_elsewhere))

    def get(self, index: int) -> None:
        if 0 <= index < len(self.memo):
            self.stack.append(self.memo[index])
        elif index in self.memo_elsewhere:
            self.stack.append(self.memo_elsewhere[index])
        else:
            self.fail("the pickle refers to a value that it never stored", found=f"memo {index}")

    def tuple_of(self, count: int) -> None:
        self.charge(SCALAR + 8 * count)
        stack = self.stack
        if len(stack) < count:
            raise IndexError
        items = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        stack.append(items)

    # Containers

    def append_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        self.charge(64 + 9 * len(items))
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Opaque) and not target.is_reference:
            target.items = _extended(target.items, items)
        else:
            self.fail("the pickle appends to something that is not a list", found=brief(target))

    def append_item(self) -> None:
        item = self.stack.pop()
        self.append_items([item])

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            self._fill(target, flat)
        elif isinstance(target, Opaque) and not target.is_reference and len(flat) % 2 == 0:
            self.charge(32 + 40 * len(flat))
            target.entries = _extended(target.entries, zip(flat[::2], flat[1::2], strict=True))
        else:
            self.fail("the pickle sets items of something that is not a dict", found=brief(target))

    def _fill(self, target: dict[Any, Any], flat: list[Any]) -> None:
        before = sys.getsizeof(target)
        fill_dict(target, flat, self)
        self.charge(sys.getsizeof(target) - before)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def add_items(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if not isinstance(target, set):
            self.fail("the pickle adds to something that is not a set", found=brief(target))
        self._checked_update(target, items)

    def make_frozenset(self) -> None:
        items = self.pop_mark()
        self.charge(_SET)
        made: set[Any] = set()
        self._checked_update(made, items)
        self.stack.append(frozenset(made))

    def _checked_update(self, target: set[Any], items: list[Any]) -> None:
        before = sys.getsizeof(target)
        for item in items:
            check_key(item, self)
            target.add(item)
        self.charge(sys.getsizeof(target) - before)

    def make_tuple(self) -> None:
        items = self.pop_mark()
        self.charge(SCALAR + 8 * len(items))
        self.stack.append(tuple(items))

    def make_list(self) -> None:
        items = self.pop_mark()
        self.charge(sys.getsizeof(items) + 8)
        self.stack.append(items)

    def make_dict(self) -> None:
        self.charge(72)
        flat = self.pop_mark()
        self.stack.append({})
        self.set_items(flat)

    # Globals, and what would be calls

    def fetch_global(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            self.fail(
                "the pickle names a global by something that is not text", found=f"{brief(module)}, {brief(name)}"
            )
        known = self._globals.get((module, name))
        if known is None:
            if len(module) > self.limits.name or len(name) > self.limits.name:
                self.fail("the name of a global is too long", found=brief(name), expected=f"at most {self.limits.name}")
            full = f"{module}.{name}"
            if full not in self._makers and is_refused(module, name):
                self.fail(
                    f"the pickle asks for {full}, as an attack does; nothing was run",
                    found=full,
                    expected="only data, and the classes of training frameworks",
                    fix="do not load this file with any other tool, and tell whoever published it",
                )
            known = VALUES.get(full) or Opaque(module, name)
            self._globals[module, name] = known
        self.stack.append(known)

    def global_lines(self) -> tuple[str, str]:
        return self.decode(self.line()), self.decode(self.line())

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.fetch_global(module, name)

    def _call(self, target: Any, args: Any, kwargs: Any = None) -> None:
        if not isinstance(target, Opaque) or not target.is_reference:
            self.fail("the pickle calls something that is not a class or function", found=brief(target))
        if type(args) is not tuple or not (kwargs is None or isinstance(kwargs, dict)):
            self.fail(f"the pickle calls {target.qualname} with odd arguments", found=brief(args), expected="a tuple")
        maker = self.makers_of[target] = self._makers.get(target.qualname)
        if maker is None and kwargs:
            made = Opaque(target.module, target.name, args, kwargs=dict(kwargs))
        elif maker is None:
            made = Opaque(target.module, target.name, args)
        elif kwargs:
            self.fail(f"the pickle calls {target.qualname} with keywords", found=brief(kwargs))
        else:
            made = maker(args, self)
        self.charge(sys.getsizeof(made) + HELD)
        self.stack.append(made)

    def reduce(self) -> None:
        args, target = self.stack.pop(), self.stack.pop()
        self._call(target, args)

    def new_with_keywords(self) -> None:
        kwargs, args, target = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if isinstance(kwargs, dict):
            self.charge(_ENTRY * len(kwargs))
        self._call(target, args, kwargs)

    def inst(self) -> None:
        args = self.pop_mark()
        self.fetch_global(*self.global_lines())
        self._call(self.stack.pop(), tuple(args))

    def obj(self) -> None:
        target, *args = self.pop_mark() or [None]
        self._call(target, tuple(args))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Opaque) and not target.is_reference:
            if target.state is None:
                target.state = state
            elif isinstance(target.state, dict) and isinstance(state, dict) and target.state is not state:
                self.charge(_ENTRY * len(state))
                target.state.update(state)
            else:
                self.fail(f"the pickle sets the state of {target.qualname} twice")
        elif target is None or isinstance(target, Opaque | str | bytes | int | float | list | tuple):
            self.fail("the pickle sets the state of something that has none", found=brief(target))
        elif is_of_numpy(target):
            set_numpy_state(target, state, self)
        # Else attributes of a state dict (`_metadata`: module versions) or of a parameter: they hold no weights.

    def persistent(self, key: Any) -> None:
        if self._persistent_load is None:
            self.fail("the pickle refers to objects outside itself", found=brief(key), fix="give the whole torch file")
        self.charge(_STORAGE)
        self.stack.append(self._persistent_load(key))

    def protocol(self) -> None:
        protocol = self.data.byte()
        if protocol > _HIGHEST_PROTOCOL:
            self.fail("the pickle has an unknown protocol", found=protocol, expected=f"0 to {_HIGHEST_PROTOCOL}")

    def frame(self) -> None:
        length = int.from_bytes(self.data.take(8), "little")
        if length > self.data.left:
            self.fail("the pickle is cut off", found=f"{self.data.left} bytes", expected=f"a frame of {length}")

    def refuse_extension(self) -> None:
        self.fail("the pickle uses the extension registry", expected="globals by name")

    def refuse_buffer(self) -> None:
        self.fail("the pickle keeps its data in buffers outside the file")


def _extended(held: list[Any] | tuple[Any, ...], more: Iterable[Any]) -> list[Any]:
    """`held` with `more` behind it: an `Opaque` has an empty tuple until its first item, to save memory."""
    items = held if isinstance(held, list) else list(held)
    items.extend(more)
    return items
