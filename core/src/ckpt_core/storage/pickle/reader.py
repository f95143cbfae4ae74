"""Reading pickles without running them.

A pickle is a program for a stack machine: it pushes values, groups them into
containers, remembers them by number (the memo), and, what makes it dangerous,
fetches any importable name (GLOBAL) and calls it (REDUCE). This module runs
that machine on data alone:

    GLOBAL, STACK_GLOBAL     -> an `Opaque` that carries the name; nothing is imported
    REDUCE, NEWOBJ, INST...  -> a maker from a short table (`pickle_makers`, `torch_tensors`), else an `Opaque`
    BUILD, APPEND, SETITEM   -> kept as the state or items of the `Opaque`
    PERSID, BINPERSID        -> the caller's `persistent_load`; refused without one
    EXT*, NEXT_BUFFER        -> refused

All of protocols 0 to 5 is read. A file that names a global which only an attack
needs (`pickle_refused`) is refused by name. Every count is bounded (`Limits`),
and no length is believed before the bytes are there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from ckpt_core.storage.bytes.byterange import ByteRange
from ckpt_core.storage.pickle.arrays import NUMPY_MAKERS
from ckpt_core.storage.pickle.commonest import commonest
from ckpt_core.storage.pickle.graph import NOTE, measure
from ckpt_core.storage.pickle.limits import Limits
from ckpt_core.storage.pickle.machine import Machine
from ckpt_core.storage.pickle.makers import MAKERS, Maker

__all__ = ["PLAIN_MAKERS", "Limits", "read_pickle"]

PLAIN_MAKERS: Mapping[str, Maker] = {**MAKERS, **NUMPY_MAKERS}

_Step = Callable[[Machine], None]
_UINT16, _INT32, _FLOAT64 = struct.Struct("<H"), struct.Struct("<i"), struct.Struct(">d")


def _push(make: Callable[[], Any], size: int) -> _Step:
    def step(machine: Machine) -> None:
        machine.charge(size)
        machine.stack.append(make())

    return step


# The names and layouts are those of the standard library's `pickletools`, which documents every opcode.
# fmt: off
_TABLE: dict[bytes, _Step] = {
    # numbers
    b"N": lambda m: m.stack.append(None),
    b"\x88": lambda m: m.stack.append(True),
    b"\x89": lambda m: m.stack.append(False),
    b"I": Machine.int_line,
    b"L": lambda m: m.stack.append(m.text_integer()),
    b"F": Machine.float_line,
    b"J": lambda m: m.unpack(_INT32),
    b"K": lambda m: m.stack.append(m.data.byte()),
    b"M": lambda m: m.unpack(_UINT16),
    b"G": lambda m: m.unpack(_FLOAT64),
    b"\x8a": lambda m: m.long(1),
    b"\x8b": lambda m: m.long(4),
    # text and bytes
    b"S": Machine.quoted_line,
    b"V": Machine.unicode_line,
    b"T": lambda m: m.old_string(m.counted(4)),
    b"U": lambda m: m.old_string(m.counted(1)),
    b"X": lambda m: m.stack.append(m.decode(m.counted(4))),
    b"\x8c": lambda m: m.stack.append(m.decode(m.counted(1))),
    b"\x8d": lambda m: m.stack.append(m.decode(m.counted(8))),
    b"B": lambda m: m.stack.append(m.counted(4)),
    b"C": lambda m: m.stack.append(m.counted(1)),
    b"\x8e": lambda m: m.stack.append(m.counted(8)),
    b"\x96": lambda m: m.stack.append(bytearray(m.counted(8))),
    # stack and memo
    b"(": Machine.open_mark,
    b"0": Machine.pop,
    b"1": Machine.drop_mark,
    b"2": lambda m: m.stack.append(m.stack[-1]),
    b"p": lambda m: m.put(m.text_integer()),
    b"q": lambda m: m.put(m.data.byte()),
    b"r": lambda m: m.put(int.from_bytes(m.data.take(4), "little")),
    b"\x94": Machine.memoize,
    b"g": lambda m: m.get(m.text_integer()),
    b"h": lambda m: m.get(m.data.byte()),
    b"j": lambda m: m.get(int.from_bytes(m.data.take(4), "little")),
    # containers
    b")": lambda m: m.stack.append(()),
    b"]": _push(list, 72),
    b"}": _push(dict, 72),
    b"\x8f": _push(set, 224),
    b"t": Machine.make_tuple,
    b"l": Machine.make_list,
    b"d": Machine.make_dict,
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"a": Machine.append_item,
    b"e": lambda m: m.append_items(m.pop_mark()),
    b"s": Machine.set_item,
    b"u": lambda m: m.set_items(m.pop_mark()),
    b"\x90": Machine.add_items,
    b"\x91": Machine.make_frozenset,
    # globals and what would be calls
    b"c": lambda m: m.fetch_global(*m.global_lines()),
    b"\x93": Machine.stack_global,
    b"R": Machine.reduce,
    b"\x81": Machine.reduce,
    b"\x92": Machine.new_with_keywords,
    b"i": Machine.inst,
    b"o": Machine.obj,
    b"b": Machine.build,
    b"P": lambda m: m.persistent(m.decode(m.line())),
    b"Q": lambda m: m.persistent(m.stack.pop()),
    # about the pickle itself
    b"\x80": Machine.protocol,
    b"\x95": Machine.frame,
    b"\x82": Machine.refuse_extension,
    b"\x83": Machine.refuse_extension,
    b"\x84": Machine.refuse_extension,
    b"\x97": Machine.refuse_buffer,
    b"\x98": Machine.refuse_buffer,
}
# fmt: on
_OPCODES: list[_Step | None] = [_TABLE.get(bytes([code])) for code in range(256)]
_STOP = ord(".")


def read_pickle(
    source: ByteRange | bytes,
    file: str,
    *,
    persistent_load: Callable[[Any], Any] | None = None,
    makers: Mapping[str, Maker] = PLAIN_MAKERS,
    limits: Limits = Limits(),
) -> Any:
    """The value of the pickle that `source` starts with; a `ByteRange` is left just behind it.

    `file` is named in errors; `makers` say what may be made (see `pickle_makers`);
    `persistent_load` gets each persistent id and returns its value.
    Raises `FormatError` for anything that is not a bounded, harmless pickle.
    """
    data = ByteRange(source, file) if isinstance(source, bytes) else source
    machine = Machine(data, file, persistent_load, makers, limits)
    left, most = limits.opcodes, limits.stack
    while left > 0:
        try:
            left -= commonest(machine, left)
            if len(machine.stack) > most:
                machine.fail("the pickle's stack grows too large", expected=f"at most {limits.stack} values")
            if not left:
                break
            left -= 1
            code = data.byte()
            if code == _STOP:
                return _walkable(machine.result(), machine, limits)
            step = _OPCODES[code]
            if step is None:
                machine.fail(
                    f"the pickle holds an unknown opcode {bytes([code])!r}", fix="the file is damaged or no pickle"
                )
            step(machine)
        except IndexError:
            machine.fail("the pickle takes more from its stack than there is")
        except (TypeError, ValueError, ArithmeticError, AttributeError, MemoryError) as error:
            # An argument of a kind that its maker did not foresee, such as an array where a text belongs.
            machine.fail("the pickle gives something a value of a wrong kind", found=f"{type(error).__name__}: {error}")
    machine.fail("the pickle is too long", expected=f"at most {limits.opcodes} opcodes")


def _walkable(value: Any, machine: Machine, limits: Limits) -> Any:
    """`value`, if its nesting and sharing are within the limits; see `pickle_graph`."""
    depth, size = measure(value, limits.depth, machine.memory_left() // NOTE)
    if depth > limits.depth:
        machine.fail("the pickle nests too deep", expected=f"at most {limits.depth} levels")
    if not size:
        machine.charge(machine.memory_left() + 1)
    most = min(limits.walk, 1_000_000 + limits.walk_per_byte * machine.bytes_read)
    if size > most:
        machine.fail("the pickle unfolds to too many values", found=f"{size:.3g}", expected=f"at most {most}")
    return value
