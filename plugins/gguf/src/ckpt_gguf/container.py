"""The container of GGUF, version 3, little endian: metadata, what each tensor is, then the tensors.

    "GGUF" | u32 version | u64 tensors | u64 keys
    key:    string, u32 type, value                         string: u64 bytes, UTF-8; array: u32 type, u64 count, values
    tensor: string, u32 dimensions, u64 of each, the last axis first, u32 kind, u64 offset in the data
    zeros up to a multiple of general.alignment, then the data of the tensors in the order of their offsets, each padded so

No number in a header is believed: a count is compared with the bytes that are left before anything is made for it, and every
tensor must lie where llama.cpp asks for it, right behind the one before. The header alone is read.

Version 2 is the same. A real number of 32 bits is read as the shortest decimal that rounds to it, since writers mean 1e-6 and
not 9.999999974752427e-07.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ckpt_core.sdk import FormatError, Refusal, disk, schema
from ckpt_gguf.kinds import BY_NUMBER, Kind
from ckpt_gguf.places import MAGIC

__all__ = ["ALIGNMENT", "Entry", "Header", "Plan", "Typed", "plan_file", "read_header", "single"]

ALIGNMENT = 32
_ALIGNMENT_KEY = "general.alignment"
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_LONGEST_NAME = 63  # GGML_MAX_NAME is 64, with the zero that ends it
_LONGEST_KEY = 65535
# Ten times what the largest vocabularies take: a short file may stand for much memory, since a list has more bytes than its values.
_LARGEST_HEADER = 1 << 28
_MOST_VALUES = 1 << 22
_MOST_TENSORS = 1 << 18
_WINDOW = 1 << 20

# type of a value: its number, and how it is packed
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_FLOAT32, _BOOL, _STRING, _ARRAY = 6, 7, 8, 9
_LIST = 12
"""The bytes before the values of a list: their type, and how many there are."""
_NAMES = {
    0: "u8", 1: "i8", 2: "u16", 3: "i16", 4: "u32", 5: "i32", 6: "f32", 7: "bool", 8: "string", 9: "array", 10: "u64", 11: "i64", 12: "f64",
}  # fmt: skip
_NUMBERS = {name: number for number, name in _NAMES.items()}


@schema.dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file: its kind, its shape with the rows first, the byte of the file at which it begins, and how many it takes."""

    file: str
    name: str
    kind: Kind
    shape: tuple[int, ...]
    offset: int
    size: int


@schema.dataclass(frozen=True)
class Header:
    """What a file says of itself. `metadata` are the values by key; `places` are the first byte and the length of each string
    value, which may be a file of its own: a chat template, a tokenizer. `lists` are the first bytes of the lists of float32 numbers."""

    state: disk.FileState
    metadata: dict[str, Any]
    tensors: dict[str, Entry]
    places: dict[str, tuple[int, int]]
    lists: dict[str, int]


class _Bytes:
    """The bytes of a file from its front on, read in windows, and never past its end."""

    def __init__(self, state: disk.FileState) -> None:
        self.state, self.position, self.values = state, 0, 0
        self._window, self._start = b"", 0

    @property
    def left(self) -> int:
        return self.state.size - self.position

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise FormatError(
                f"the file ends too early: {what}",
                file=self.state.path,
                found=f"{self.left} bytes from byte {self.position} on",
                expected=f"{count} bytes",
                fix="copy the file again; it is cut off or damaged",
            )
        if self.position + count > _LARGEST_HEADER:
            raise FormatError(
                "the header is far too large", file=self.state.path, expected=f"at most {_LARGEST_HEADER} bytes"
            )
        begin = self.position - self._start
        if begin + count > len(self._window):
            size = min(max(count, _WINDOW), self.left)
            self._window, self._start = disk.read_range(self.state.path, self.position, size), self.position
            begin = 0
        self.position += count
        return self._window[begin : begin + count]

    def count(self, values: int, what: str) -> None:
        """Count values that are made. `FormatError` for more in all than any model has."""
        self.values += values
        if self.values > _MOST_VALUES:
            raise self.wrong(
                f"the metadata has too many values: {what}", f"{self.values} and more", f"at most {_MOST_VALUES}"
            )

    def number(self, packed: str, what: str) -> Any:
        return struct.unpack(packed, self.take(struct.calcsize(packed), what))[0]

    def text(self, limit: int, what: str) -> str:
        length = self.number("<Q", what)
        if length > limit:
            raise self.wrong(f"{what} is too long", f"{length} bytes", f"at most {limit}")
        raw = self.take(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong(f"{what} is no UTF-8", repr(raw[:40]), "text") from None

    def wrong(self, problem: str, found: object, expected: object = None) -> FormatError:
        return FormatError(problem, file=self.state.path, found=found, expected=expected)


def read_header(path: str) -> Header:
    """The metadata and the tensors of a file, every offset checked against its real size.

    `FormatError` for a file that is cut off, is of another version or of the other byte order, has a key or a tensor twice,
    or has tensors that overlap, leave the file, or are of an unknown kind.
    """
    data = _Bytes(disk.FileState.of(path))
    if data.take(4, "no magic") != MAGIC:
        raise data.wrong("this is not a GGUF file", "another beginning", repr(MAGIC))
    version = data.number("<I", "the version")
    if version not in _VERSIONS:
        big = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        raise data.wrong(
            "this file is of big-endian machines, which is not supported" if big else "this version of GGUF is not supported",
            f"version {version}", " or ".join(map(str, _VERSIONS)),
        )  # fmt: skip
    tensors, keys = data.number("<Q", "the number of tensors"), data.number("<Q", "the number of keys")
    # a key takes at least 13 bytes, and a tensor 33
    for what, count, least in (("keys", keys, 13), ("tensors", tensors, 33)):
        if count * least > data.left:
            raise data.wrong(f"the file can't hold so many {what}", f"{count} in {data.left} bytes")
    if tensors > _MOST_TENSORS:
        raise data.wrong("the file has too many tensors", tensors, f"at most {_MOST_TENSORS}")
    metadata, places, lists = _metadata(data, keys)
    entries = list(_entries(data, tensors))
    alignment = metadata.get(_ALIGNMENT_KEY, ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise data.wrong(f"{_ALIGNMENT_KEY} is not a power of two", repr(alignment)[:40])
    return Header(data.state, metadata, _placed(data, entries, alignment), places, lists)


def _metadata(data: _Bytes, count: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]], dict[str, int]]:
    metadata: dict[str, Any] = {}
    places: dict[str, tuple[int, int]] = {}
    lists: dict[str, int] = {}
    data.count(count, "its keys alone")
    for _ in range(count):
        key = data.text(_LONGEST_KEY, "the name of a key")
        if key in metadata:
            raise data.wrong(f"key {key!r} is there twice", f"a second one before byte {data.position}")
        kind = data.number("<I", f"the type of key {key!r}")
        begin = data.position
        metadata[key] = _value(data, kind, key)
        if kind == _STRING:
            places[key] = (begin + 8, data.position - begin - 8)
        elif kind == _ARRAY and _is_of_floats(metadata[key], data.position - begin):
            lists[key] = begin + _LIST
    return metadata, places, lists


def _is_of_floats(value: list[Any], size: int) -> bool:
    """Whether a list that takes `size` bytes is one of float32 numbers."""
    return bool(value) and type(value[0]) is float and size == _LIST + 4 * len(value)


def _value(data: _Bytes, kind: int, key: str) -> Any:
    what = f"the value of key {key!r}"
    if kind == _STRING:
        return data.text(data.left, what)
    if kind == _ARRAY:
        of, count = data.number("<I", what), data.number("<Q", what)
        if of == _STRING:
            if count * 8 > data.left:
                raise data.wrong(f"key {key!r} can't have so many values", f"{count} in {data.left} bytes")
            data.count(count, f"key {key!r}")
            return [data.text(data.left, what) for _ in range(count)]
        packed = _packed(data, of, key)
        size = struct.calcsize(packed)
        if count * size > data.left:
            raise data.wrong(f"key {key!r} can't have so many values", f"{count} in {data.left} bytes")
        data.count(count, f"key {key!r}")
        raw = data.take(count * size, what)
        if of == _BOOL:
            return [_flag(data, byte, key) for byte in raw]
        values = np.frombuffer(raw, packed).tolist()
        return [_shortest(value) for value in values] if of == _FLOAT32 else values
    packed = _packed(data, kind, key)
    if kind == _BOOL:
        return _flag(data, data.take(1, what)[0], key)
    value = data.number(packed, what)
    return _shortest(value) if kind == _FLOAT32 else value


def _packed(data: _Bytes, kind: int, key: str) -> str:
    if kind not in _SCALARS:
        raise data.wrong(f"key {key!r} has a value of an unknown type", kind, ", ".join(_NAMES.values()))
    return _SCALARS[kind]


def _flag(data: _Bytes, byte: int, key: str) -> bool:
    if byte > 1:
        raise data.wrong(f"key {key!r} is neither true nor false", byte)
    return bool(byte)


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to a real number of 32 bits."""
    return float(str(np.float32(value)))


def single(value: float) -> float:
    """A real number as a file keeps it: that of 32 bits next to it, read as `read_header` does."""
    return _shortest(value)


def _entries(data: _Bytes, count: int) -> Iterator[tuple[str, Kind, tuple[int, ...], int]]:
    names = set()
    for _ in range(count):
        name = data.text(_LONGEST_KEY, "the name of a tensor")
        if name in names:
            raise data.wrong(f"tensor {name!r} is there twice", f"a second one before byte {data.position}")
        names.add(name)
        dimensions = data.number("<I", f"tensor {name!r}")
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise data.wrong(f"tensor {name!r} has an impossible number of dimensions", dimensions, "1 to 4")
        sizes = struct.unpack(f"<{dimensions}Q", data.take(8 * dimensions, f"tensor {name!r}"))
        if not all(sizes) or math.prod(sizes) >= 1 << 60:
            raise data.wrong(f"tensor {name!r} has an impossible shape", sizes)
        number, offset = data.number("<I", f"tensor {name!r}"), data.number("<Q", f"tensor {name!r}")
        if number not in BY_NUMBER:
            known = ", ".join(kind.name for kind in BY_NUMBER.values())
            raise data.wrong(f"tensor {name!r} is of a kind that is not supported", f"ggml type {number}", known)
        kind = BY_NUMBER[number]
        if sizes[0] % kind.block:
            raise data.wrong(
                f"the rows of tensor {name!r} do not hold whole blocks",
                f"{sizes[0]} elements of {kind}",
                f"a multiple of {kind.block}",
            )
        yield name, kind, tuple(reversed(sizes)), offset


def _placed(data: _Bytes, entries: list[tuple[str, Kind, tuple[int, ...], int]], alignment: int) -> dict[str, Entry]:
    start = _aligned(data.position, alignment)
    end, found = 0, {}
    for name, kind, shape, offset in sorted(entries, key=lambda entry: entry[3]):
        size = kind.bytes_of(math.prod(shape))
        if offset != _aligned(end, alignment):
            raise data.wrong(
                f"tensor {name!r} leaves a gap or overlaps its neighbour",
                f"offset {offset}",
                _aligned(end, alignment),
            )
        end = offset + size
        if start + end > data.state.size:
            raise data.wrong(
                f"tensor {name!r} does not lie in the file",
                f"bytes {start + offset} to {start + end} of {data.state.size}",
                "a whole file",
            )
        found[name] = Entry(data.state.path, name, kind, shape, start + offset, size)
    if data.state.size > start + _aligned(end, alignment) and entries:
        raise data.wrong("bytes follow the last tensor", data.state.size, start + _aligned(end, alignment))
    return {name: found[name] for name, *_ in entries}


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


# --- writing ---------------------------------------------------------------------------------------------------------


@schema.dataclass(frozen=True, slots=True)
class Typed:
    """A value with the type that it is written as, where that is not the usual one for its Python type."""

    type: str
    value: Any


@schema.dataclass(frozen=True, slots=True)
class Plan:
    """A file that is known but for its data: its size, its header, and the byte at which the data of each tensor begins, and each list of
    real numbers in the header."""

    size: int
    header: bytes
    offsets: dict[str, int]
    lists: dict[str, int]


def plan_file(tensors: Mapping[str, tuple[Kind, tuple[int, ...]]], metadata: Mapping[str, Any]) -> Plan:
    """Lay out a file for `tensors` (name -> kind, shape with the rows first), in their order, behind `metadata`.

    Whole numbers are written as u32, real ones as f32, in arrays as i32 and f32. `Refusal` for a name that ggml has no room for,
    and for rows that do not hold whole blocks.
    """
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    position, lists = len(parts[0]) + len(parts[1]), {}
    for key, value in metadata.items():
        said = [_text(key), *_typed(key, value)]
        if isinstance(value, list) and value and type(value[0]) is float:
            lists[key] = position + len(said[0]) + 4 + _LIST
        parts += said
        position += sum(map(len, said))
    end, starts = 0, {}
    for name, (kind, shape) in tensors.items():
        if len(name.encode()) > _LONGEST_NAME or not 0 < len(shape) <= _MOST_DIMENSIONS:
            raise Refusal(f"ggml has no tensor called {name!r} of {len(shape)} dimensions")
        if shape[-1] % kind.block:
            raise Refusal(
                f"{name} has rows of {shape[-1]} elements, and {kind} takes {kind.block} at a time",
                fix="write it as F16, BF16 or F32",
            )
        starts[name] = _aligned(end, ALIGNMENT)
        end = starts[name] + kind.bytes_of(math.prod(shape))
        sizes = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        parts += [_text(name), struct.pack("<I", len(shape)), sizes, struct.pack("<IQ", kind.number, starts[name])]
    header = b"".join(parts)
    header += bytes(-len(header) % ALIGNMENT)
    size = len(header) + _aligned(end, ALIGNMENT)
    return Plan(size, header, {name: len(header) + start for name, start in starts.items()}, lists)


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _typed(key: str, value: Any) -> Iterator[bytes]:
    """The type of a value, and the value."""
    if isinstance(value, Typed):
        yield struct.pack("<I", _NUMBERS[value.type])
        yield struct.pack(_SCALARS[_NUMBERS[value.type]], value.value)
    elif isinstance(value, str):
        yield struct.pack("<I", _STRING) + _text(value)
    elif isinstance(value, list):
        yield struct.pack("<I", _ARRAY)
        yield from _array(key, value)
    else:
        number, packed = _usual(key, value, "<I", 4)
        yield struct.pack("<I", number) + packed(value)


def _array(key: str, values: list[Any]) -> Iterator[bytes]:
    if values and isinstance(values[0], str):
        yield struct.pack("<IQ", _STRING, len(values))
        yield from map(_text, values)
        return
    number, packed = _usual(key, values[0] if values else 0, "<i", 5)
    yield struct.pack("<IQ", number, len(values))
    yield from map(packed, values)


def _usual(key: str, value: Any, whole: str, number: int) -> tuple[int, Callable[[Any], bytes]]:
    """The type of a value, and how it is packed; whole numbers as `whole`, which has this `number`."""
    if type(value) is bool:
        return _BOOL, lambda one: struct.pack("<?", one)
    if type(value) is float:
        return _FLOAT32, lambda one: struct.pack("<f", one)

    def packed(one: int) -> bytes:
        try:
            return struct.pack(whole, one)
        except struct.error:
            raise Refusal(f"{key} is a number of 32 bits", found=one) from None

    return number, packed
