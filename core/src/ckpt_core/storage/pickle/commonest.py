"""The commonest opcodes of a pickle in one loop, for the metadata of a large distributed checkpoint has three million.

Here they are carried out as long as nothing is odd. Whatever else there is (other opcodes, values of other kinds, numbers that were never
remembered, an end that comes too early) is left, untouched, to the steps of the machine, which refuse what is wrong.
"""

from __future__ import annotations

import struct
import sys

from ckpt_core.storage.pickle.machine import HELD, REMEMBERED, SCALAR, Machine
from ckpt_core.storage.pickle.opaque import Opaque

# The names are those of the standard library's `pickletools`.
_BINGET, _LONG_BINGET, _BINPUT, _LONG_BINPUT, _MEMOIZE = b"hjqr\x94"
_NONE, _BININT1, _BININT2, _BININT, _LONG1, _BINUNICODE = b"NKMJ\x8aX"
_BOOLEANS = b"\x88\x89"  # NEWTRUE, NEWFALSE
_MARK, _EMPTY_TUPLE, _TUPLE1, _TUPLE2, _TUPLE3, _TUPLE = b"()\x85\x86\x87t"
_EMPTY_DICT, _SETITEMS, _BUILD = b"}ub"
_CALLS = b"\x81R"  # NEWOBJ, REDUCE
_UINT16, _UINT32, _INT32 = (struct.Struct(layout).unpack_from for layout in ("<H", "<I", "<i"))

_WIDEST = 5  # bytes of an opcode and its operand, but for those of a long integer
_FEW = 8  # entries that are set in a dict at a time
_MOST = 1 << 12  # opcodes until what they made is counted


def commonest(machine: Machine, opcodes: int) -> int:
    """Carry out the opcodes that come next, `opcodes` of them at most, as far as they are of the commonest. Returns how many were.

    What they make is charged before it returns. So it is never more than a few thousand of them may make beyond the limits.
    """
    data, memo, stack, makers_of = machine.data, machine.memo, machine.stack, machine.makers_of
    buffer, at = data.at_hand()
    last = len(buffer) - _WIDEST
    made = done = 0
    for done in range(min(opcodes, _MOST)):  # noqa: B007
        if at > last:
            break
        code = buffer[at]
        if code == _LONG_BINGET:
            (index,) = _UINT32(buffer, at + 1)
            if index >= len(memo):
                break
            stack.append(memo[index])
            at += 5
        elif code == _LONG_BINPUT:
            (index,) = _UINT32(buffer, at + 1)
            if index != len(memo) or not stack:
                break
            memo.append(stack[-1])
            made += REMEMBERED
            at += 5
        elif code == _BININT1:
            stack.append(buffer[at + 1])
            at += 2
        elif code == _BINGET:
            if buffer[at + 1] >= len(memo):
                break
            stack.append(memo[buffer[at + 1]])
            at += 2
        elif code == _EMPTY_TUPLE:
            stack.append(())
            at += 1
        elif code in _CALLS:
            if len(stack) < 2:
                break
            target, args = stack[-2], stack[-1]
            if type(target) is not Opaque or type(args) is not tuple or target not in makers_of:
                break
            at += 1
            maker = makers_of[target]
            if maker is None:
                one = Opaque(target.module, target.name, args)
            else:
                data.go(at)
                one = maker(args, machine)
            stack.pop()
            stack[-1] = one
            made += sys.getsizeof(one) + HELD
        elif code == _MARK:
            at += 1
            data.go(at)
            machine.open_mark()
            stack = machine.stack
        elif code == _BUILD:
            target = stack[-2] if len(stack) > 1 else None
            if type(target) is not Opaque or target.args is None or target.state is not None:
                break
            target.state = stack.pop()
            at += 1
        elif code == _EMPTY_DICT:
            stack.append({})
            made += 72
            at += 1
        elif code == _SETITEMS:
            at += 1
            data.go(at)
            items = machine.pop_mark()
            stack = machine.stack
            target = stack[-1]
            keys, values = items[::2], items[1::2]
            if type(target) is dict and len(keys) == len(values) <= _FEW and {str}.issuperset(map(type, keys)):
                made -= sys.getsizeof(target)
                target.update(zip(keys, values, strict=True))
                made += sys.getsizeof(target)
            else:
                machine.set_items(items)
        elif _TUPLE1 <= code <= _TUPLE3:
            count = code - _TUPLE1 + 1
            if len(stack) < count:
                break
            stack[-count:] = (tuple(stack[-count:]),)
            made += SCALAR + 8 * count
            at += 1
        elif code == _MEMOIZE:
            if not stack or machine.memo_elsewhere:
                break
            memo.append(stack[-1])
            made += REMEMBERED
            at += 1
        elif code == _BININT2:
            stack += _UINT16(buffer, at + 1)
            made += SCALAR
            at += 3
        elif code == _NONE:
            stack.append(None)
            at += 1
        elif code == _LONG1:
            stop = at + 2 + buffer[at + 1]
            if stop > len(buffer) or buffer[at + 1] > machine.limits.integer:
                break
            stack.append(int.from_bytes(buffer[at + 2 : stop], "little", signed=True))
            made += SCALAR + buffer[at + 1]
            at = stop
        elif code == _BINUNICODE:
            start = at + 5
            stop = start + _UINT32(buffer, at + 1)[0]
            if stop > len(buffer) or stop - start > machine.limits.string:
                break
            at = stop
            data.go(at)
            stack.append(machine.decode(buffer[start:stop]))
            made += SCALAR + stop - start
        elif code == _BININT:
            stack += _INT32(buffer, at + 1)
            made += SCALAR
            at += 5
        elif code == _BINPUT:
            if buffer[at + 1] != len(memo) or not stack:
                break
            memo.append(stack[-1])
            made += REMEMBERED
            at += 2
        elif code in _BOOLEANS:
            stack.append(code == _BOOLEANS[0])
            at += 1
        else:
            break
    else:
        done += 1
    data.go(at)
    machine.charge(made)
    return done
