"""Headers that lie: every count, size, type, name and place that is wrong is an error with the file's name, and costs nothing."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ckpt_core.errors import FormatError, Refusal
from ckpt_gguf.container import Typed, plan_file, read_header
from ckpt_gguf.files import read_files
from ckpt_gguf.kinds import BY_NUMBER, F16, F32, Q8_0

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "a.count": 7,
    "a.real": 1e-6,
    "a.flag": True,
    "a.text": "Ġ é",
    "a.texts": ["x", "", "yz"],
    "a.numbers": [1, -2, 3],
    "a.reals": [0.5, 1e-5],
    "a.flags": [True, False],
    "split.no": Typed("u16", 0),
}
TENSORS = {"one.weight": (F32, (3,)), "two.weight": (Q8_0, (5, 64)), "three.weight": (F16, (2, 4, 6))}


def written(path: Path, metadata: dict[str, Any] = METADATA, tensors: Any = TENSORS) -> Path:
    plan = plan_file(tensors, metadata)
    path.write_bytes(plan.header + bytes(range(1, 256)) * ((plan.size - len(plan.header)) // 255 + 1))
    with open(path, "rb+") as stream:
        stream.truncate(plan.size)
    return path


def test_what_is_written_is_read_and_the_package_reads_the_same(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf")
    header, reader = read_header(str(path)), gguf.GGUFReader(str(path))
    assert header.metadata == {**METADATA, "split.no": 0}
    for key in METADATA:
        found, theirs = header.metadata[key], reader.fields[key].contents()
        assert (
            np.allclose(found, theirs, rtol=1e-7) if isinstance(found, float) else found == theirs or key == "a.reals"
        )
    for tensor in reader.tensors:
        entry = header.tensors[tensor.name]
        assert (entry.offset, entry.size) == (tensor.data_offset, tensor.n_bytes)
        assert (entry.shape, entry.kind.name) == (tuple(reversed(tensor.shape.tolist())), tensor.tensor_type.name)


def test_sizes_of_blocks_are_those_of_the_package() -> None:
    sizes = {number.value: size for number, size in gguf.GGML_QUANT_SIZES.items()}
    assert {number: (kind.block, kind.size) for number, kind in BY_NUMBER.items()}.items() <= sizes.items()


def at(data: bytes, name: str, behind: int) -> int:
    """The place of what lies so far behind a name."""
    return data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name) + behind


def put(place: Callable[[bytes], int], packed: str, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        struct.pack_into(packed, data, place(bytes(data)), value)

    return change


LIES = {
    "magic": (put(lambda data: 0, "<I", 7), "not a GGUF file"),
    "version 1": (put(lambda data: 4, "<I", 1), "version of GGUF"),
    "big endian": (put(lambda data: 4, ">I", 3), "big-endian"),
    "tensors": (put(lambda data: 8, "<Q", 1 << 60), "so many tensors"),
    "one tensor more": (put(lambda data: 8, "<Q", 4), ""),
    "keys": (put(lambda data: 16, "<Q", 1 << 61), "so many keys"),
    "length of a name": (put(lambda data: 24, "<Q", 1 << 62), "too long"),
    "type of a value": (put(lambda data: at(data, "a.count", 0), "<I", 13), "unknown type"),
    "length of a text": (put(lambda data: at(data, "a.text", 4), "<Q", 1 << 40), "too long"),
    "no UTF-8": (put(lambda data: at(data, "a.text", 12), "<B", 0xFF), "UTF-8"),
    "neither true nor false": (put(lambda data: at(data, "a.flag", 4), "<B", 2), "neither true nor false"),
    "an array of arrays": (put(lambda data: at(data, "a.numbers", 4), "<I", 9), "unknown type"),
    "length of an array": (put(lambda data: at(data, "a.numbers", 8), "<Q", 1 << 50), "so many values"),
    "length of texts": (put(lambda data: at(data, "a.texts", 8), "<Q", 1 << 50), "so many values"),
    "dimensions": (put(lambda data: at(data, "two.weight", 0), "<I", 5), "number of dimensions"),
    "no dimensions": (put(lambda data: at(data, "two.weight", 0), "<I", 0), "number of dimensions"),
    "a size of zero": (put(lambda data: at(data, "two.weight", 4), "<Q", 0), "impossible shape"),
    "a size that overflows": (put(lambda data: at(data, "two.weight", 4), "<Q", 1 << 63), "impossible shape"),
    "rows of broken blocks": (put(lambda data: at(data, "two.weight", 4), "<Q", 48), "whole blocks"),
    "one row more": (put(lambda data: at(data, "two.weight", 12), "<Q", 9), "does not lie in the file"),
    "a kind": (put(lambda data: at(data, "two.weight", 20), "<I", 4), "kind that is not supported"),
    "another kind": (put(lambda data: at(data, "two.weight", 20), "<I", 0), "does not lie in the file"),
    "an offset": (put(lambda data: at(data, "two.weight", 24), "<Q", 64), "gap or overlaps"),
    "an offset outside": (put(lambda data: at(data, "three.weight", 32), "<Q", 1 << 62), "gap or overlaps"),
    "an offset between": (put(lambda data: at(data, "two.weight", 24), "<Q", 33), "gap or overlaps"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_by_name(lie: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf")
    data = bytearray(path.read_bytes())
    change, said = LIES[lie]
    change(data)
    path.write_bytes(data)
    with pytest.raises(FormatError) as refused:
        read_header(str(path))
    assert said in str(refused.value) and str(path) in str(refused.value)


@pytest.mark.parametrize("name", ["a.count", "two.weight"])
def test_a_name_that_is_there_twice_is_refused(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf")
    other = {"a.count": b"a.texts", "two.weight": b"one.weight"}[name]
    path.write_bytes(path.read_bytes().replace(other, name.encode()))
    with pytest.raises(FormatError, match="there twice"):
        read_header(str(path))


@pytest.mark.parametrize("kind", [0, 6, 7, 8, 11])
def test_a_file_of_holes_costs_no_memory(kind: int, tmp_path: Path) -> None:
    """An array of zeros takes no room on the disk, and a list of them takes much in memory."""
    path, count = tmp_path / "x.gguf", 1 << 23
    path.write_bytes(struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, kind, count))
    with open(path, "rb+") as stream:
        stream.truncate(1 << 27)
    with pytest.raises(FormatError, match="too many values: key 'a'"):
        read_header(str(path))


def test_more_keys_and_tensors_than_any_model_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for tensors, keys, said in ((1 << 19, 0, "too many tensors"), (0, 1 << 23, "too many values: its keys alone")):
        path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, tensors, keys))
        with open(path, "rb+") as stream:
            stream.truncate(1 << 27)
        with pytest.raises(FormatError, match=said):
            read_header(str(path))


@pytest.mark.parametrize("alignment", [0, 24, 1 << 30])
def test_an_alignment_that_is_none_is_refused(alignment: int, tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", {**METADATA, "general.alignment": alignment})
    with pytest.raises(FormatError, match=r"general\.alignment"):
        read_header(str(path))


def test_a_file_that_ends_early_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf")
    data = path.read_bytes()
    for size in [*range(0, len(data), 7), len(data) - 20]:
        path.write_bytes(data[:size])
        with pytest.raises(FormatError, match=r"x\.gguf"):
            read_header(str(path))


def test_what_ggml_has_no_room_for_is_not_written() -> None:
    for tensors in ({"n" * 64: (F32, (3,))}, {"a": (F32, (1, 2, 3, 4, 5))}, {"a": (Q8_0, (2, 48))}):
        with pytest.raises(Refusal):
            plan_file(tensors, {})  # type: ignore[arg-type]
    with pytest.raises(Refusal, match="32 bits"):
        plan_file({}, {"a": 1 << 40})


def part(folder: Path, number: int, count: int, tensors: Any, **more: Any) -> None:
    said = {"split.no": Typed("u16", number), "split.count": Typed("u16", count), **more}
    metadata = said if number else {"general.architecture": "llama", "split.tensors.count": Typed("i32", 2), **said}
    written(folder / f"m-{number + 1:05d}-of-{count:05d}.gguf", metadata, tensors)


def test_parts_are_read_together(tmp_path: Path) -> None:
    for number, name in enumerate(("one.weight", "two.weight")):
        part(tmp_path, number, 2, {name: (F32, (3, 4))})
    for given in (tmp_path, tmp_path / "m-00002-of-00002.gguf"):
        files = read_files(str(given))
        assert list(files.tensors) == ["one.weight", "two.weight"]
        assert files.metadata["general.architecture"] == "llama"


@pytest.mark.parametrize(
    ("names", "number", "said"),
    [(("one", "one"), 1, "two parts"), (("one", "two"), 0, "another part"), (("one",), 0, "is missing")],
)
def test_parts_that_do_not_belong_together_are_refused(
    names: tuple[str, ...], number: int, said: str, tmp_path: Path
) -> None:
    for place, name in enumerate(names):
        part(tmp_path, place, 2, {name: (F32, (3,))}, **({"split.no": Typed("u16", number)} if place else {}))
    with pytest.raises(FormatError, match=said):
        read_files(str(tmp_path))


def test_a_folder_of_several_models_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / f"{name}.gguf")
    with pytest.raises(FormatError, match="several models"):
        read_files(str(tmp_path))
