"""What a pickle may really make: containers, byte strings, numbers, names of dtypes.

Each maker stands for one global. It gets the arguments that the pickle would
have called that global with, checks them one by one, and returns plain Python
data. A global without a maker becomes an `Opaque`; see `pickles`.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection
from typing import Any, NoReturn, Protocol

from ckpt_core.storage.dtypes import BY_TORCH, DType
from ckpt_core.storage.pickle.opaque import Opaque, brief
from ckpt_core.storage.pickle.refused import is_refused

_ENCODINGS = ("latin1", "latin-1", "iso-8859-1", "utf-8", "utf8", "ascii")
_MAX_KEY_PARTS = 64


class Reading(Protocol):
    """The pickle being read, as makers see it."""

    file: str

    def charge(self, size: int) -> None:
        """Account for `size` bytes that a maker is about to create; raises when a small pickle makes too much."""

    def fail(self, problem: str, found: object = None, expected: object = None, fix: str | None = None) -> NoReturn:
        """Raise a `FormatError` that names the file and the position."""


Args = tuple[Any, ...]
Maker = Callable[[Args, Reading], Any]


def check_key(key: object, reading: Reading) -> None:
    """Refuse a dict key or set member whose hash is missing, deep or slow.

    CPython hashes nested tuples by C recursion without a limit, and integers from
    2**61 - 1 on can be chosen to collide.
    """
    kind = type(key)
    if kind is str or kind is Opaque:
        return
    parts, pending = 0, [key]
    while pending:
        part = pending.pop()
        parts += 1
        if type(part) is tuple and parts + len(part) <= _MAX_KEY_PARTS:
            pending.extend(part)
        elif not isinstance(part, str | bytes | float | complex | DType | Opaque | None) and not (
            isinstance(part, int) and abs(part) < 2**61 - 1
        ):
            reading.fail(
                "a dict key or set member that can't be one",
                found=brief(part),
                expected="text, numbers or small tuples",
            )


def fill_dict(target: dict[Any, Any], flat: list[Any], reading: Reading) -> None:
    """Set `flat[0]: flat[1], flat[2]: flat[3], ...` in `target`."""
    if len(flat) % 2:
        reading.fail("a dict in the pickle has a key without a value")
    items = iter(flat)
    for key, value in zip(items, items, strict=True):
        if type(key) is not str:
            check_key(key, reading)
        target[key] = value


def _items(args: Args, reading: Reading) -> Collection[Any]:
    """The one optional argument of a container's constructor."""
    if not args:
        return ()
    if len(args) > 1 or not isinstance(args[0], list | tuple | dict | set | frozenset):
        reading.fail(
            "a container is made from something else", found=brief(args[0]), expected="a list, tuple, dict or set"
        )
    reading.charge(16 * len(args[0]))
    return args[0]


def _make_list(args: Args, reading: Reading) -> list[Any]:
    return list(_items(args, reading))


def _make_tuple(args: Args, reading: Reading) -> Args:
    return tuple(_items(args, reading))


def _make_set(args: Args, reading: Reading) -> set[Any]:
    made: set[Any] = set()
    for item in _items(args, reading):
        check_key(item, reading)
        made.add(item)
    return made


def _make_frozenset(args: Args, reading: Reading) -> frozenset[Any]:
    return frozenset(_make_set(args, reading))


def _fill(target: dict[Any, Any], args: Args, reading: Reading) -> dict[Any, Any]:
    source = _items(args, reading)
    pairs = source.items() if isinstance(source, dict) else source
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            reading.fail("a dict is made from something that is not a list of pairs", found=brief(pair))
        fill_dict(target, list(pair), reading)
    return target


def _make_dict(args: Args, reading: Reading) -> dict[Any, Any]:
    return _fill({}, args, reading)


def _make_ordered_dict(args: Args, reading: Reading) -> OrderedDict[Any, Any]:
    made: OrderedDict[Any, Any] = OrderedDict()
    _fill(made, args, reading)
    return made


def _make_defaultdict(args: Args, reading: Reading) -> defaultdict[Any, Any]:
    # The factory is left out: a lookup must never make anything.
    made: defaultdict[Any, Any] = defaultdict(None)
    _fill(made, args[1:], reading)
    return made


def _make_bytes(args: Args, reading: Reading) -> bytes:
    if not args:
        return b""
    if len(args) > 1 or not isinstance(args[0], bytes | bytearray):
        # `bytes(n)` would allocate n zeros; Python 2 pickles have only `bytes()`.
        reading.fail("a byte string is made from something else", found=brief(args[0]))
    reading.charge(len(args[0]))
    return bytes(args[0])


def _make_bytearray(args: Args, reading: Reading) -> bytearray:
    if len(args) == 2:  # protocol 2: bytearray(text, "latin-1")
        return bytearray(_encode(args, reading))
    return bytearray(_make_bytes(args, reading))


def _encode(args: Args, reading: Reading) -> bytes:
    """`_codecs.encode(text, "latin1")`: how protocol 2 stores bytes."""
    text, encoding = (*args, "utf-8")[:2] if args else (None, None)
    if type(text) is not str or encoding not in _ENCODINGS or len(args) > 2:
        reading.fail("bytes are stored in a way that is not known", found=brief(encoding), expected="latin1 text")
    reading.charge(2 * len(text))
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        reading.fail(f"a byte string is not {encoding}", found=brief(text))


def _number(make: type) -> Maker:
    def maker(args: Args, reading: Reading) -> Any:
        limit = 2 if make is complex else 1
        if len(args) > limit or not all(isinstance(arg, int | float) and abs(arg) < 2**1000 for arg in args):
            reading.fail(f"{make.__name__} is made from something else", found=brief(args[0]), expected="a number")
        try:
            return make(*args)
        except (ValueError, OverflowError):  # int(nan), int(inf)
            reading.fail(f"{make.__name__} is made from a number that it can't hold", found=brief(args[0]))

    return maker


def _make_str(args: Args, reading: Reading) -> str:
    if args and (len(args) > 1 or type(args[0]) is not str):
        reading.fail("text is made from something else", found=brief(args[0]))
    return args[0] if args else ""


def _make_slice(args: Args, reading: Reading) -> slice:
    if not 1 <= len(args) <= 3 or not all(arg is None or isinstance(arg, int) for arg in args):
        reading.fail("a slice or range with odd bounds", found=f"{len(args)} arguments")
    return slice(*args)


def _make_range(args: Args, reading: Reading) -> range:
    part = _make_slice(args, reading)
    bounds = [part.stop] if len(args) == 1 else list(args)
    if any(bound is None or abs(bound) >= 2**62 for bound in bounds) or (len(bounds) == 3 and bounds[2] == 0):
        reading.fail("a range with odd bounds", found=", ".join(brief(arg) for arg in args))
    return range(*bounds)


def _make_enum_by_name(args: Args, reading: Reading) -> Opaque:
    """`getattr(EnumClass, "MEMBER")`: how Python 3.11.0 to 3.11.3 pickle an enum member."""
    owner: Any
    owner, name = args if len(args) == 2 else (None, None)
    is_member = isinstance(owner, Opaque) and owner.is_reference and type(name) is str and name.isidentifier()
    if not is_member or is_refused(owner.module, f"{owner.name}.{name}"):
        reading.fail(
            "the pickle asks for builtins.getattr, as an attack does",
            found=f"getattr({brief(owner)}, {brief(name)})",
            expected="an enum class and the name of a member",
            fix="do not load this file with any other tool",
        )
    return Opaque(owner.module, f"{owner.name}.{name}")


def _make_size(args: Args, reading: Reading) -> tuple[int, ...]:
    made = args[0] if len(args) == 1 and type(args[0]) is tuple else _make_tuple(args, reading)
    if not {int}.issuperset(map(type, made)):
        reading.fail("a torch.Size that does not hold integers", found=brief(made))
    return made


def _make_reconstructed(args: Args, reading: Reading) -> Opaque:
    """`copyreg._reconstructor(cls, base, state)`: how protocols 0 and 1 make an object."""
    if len(args) != 3 or not isinstance(args[0], Opaque):
        reading.fail("copyreg._reconstructor without a class", found=f"{len(args)} arguments")
    cls, _, state = args
    return Opaque(cls.module, cls.name, args=() if state is None else (state,))


def _make_new(args: Args, reading: Reading) -> Opaque:
    if not args or not isinstance(args[0], Opaque):
        reading.fail("copyreg.__newobj__ without a class", found=f"{len(args)} arguments")
    return Opaque(args[0].module, args[0].name, args=tuple(args[1:]))


MAKERS: dict[str, Maker] = {
    "collections.OrderedDict": _make_ordered_dict,
    "typing.OrderedDict": _make_ordered_dict,
    "collections.defaultdict": _make_defaultdict,
    "collections.Counter": _make_dict,
    "_codecs.encode": _encode,
    "codecs.encode": _encode,
    "copyreg._reconstructor": _make_reconstructed,
    "copy_reg._reconstructor": _make_reconstructed,
    "copyreg.__newobj__": _make_new,
    "torch.Size": _make_size,
}
for _builtins in ("builtins", "__builtin__"):
    MAKERS |= {
        f"{_builtins}.list": _make_list,
        f"{_builtins}.tuple": _make_tuple,
        f"{_builtins}.set": _make_set,
        f"{_builtins}.frozenset": _make_frozenset,
        f"{_builtins}.dict": _make_dict,
        f"{_builtins}.bytes": _make_bytes,
        f"{_builtins}.bytearray": _make_bytearray,
        f"{_builtins}.str": _make_str,
        f"{_builtins}.unicode": _make_str,
        f"{_builtins}.bool": _number(bool),
        f"{_builtins}.int": _number(int),
        f"{_builtins}.long": _number(int),
        f"{_builtins}.float": _number(float),
        f"{_builtins}.complex": _number(complex),
        f"{_builtins}.slice": _make_slice,
        f"{_builtins}.range": _make_range,
        f"{_builtins}.xrange": _make_range,
        f"{_builtins}.getattr": _make_enum_by_name,
    }

# Globals that are values themselves, not something to call.
VALUES: dict[str, Any] = {f"torch.{name}": dtype for name, dtype in BY_TORCH.items()}
VALUES["builtins.Ellipsis"] = VALUES["__builtin__.Ellipsis"] = Ellipsis
