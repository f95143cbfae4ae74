"""Torch files are read as torch reads them, without their data, and damaged or hostile ones are refused."""

from __future__ import annotations

import argparse
import contextvars
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_core.errors import FormatError
from ckpt_core.storage.dtypes import BY_NAME, BY_TORCH
from ckpt_core.storage.pickle.limits import Limits
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.storage.torch import alike, reading
from ckpt_core.storage.torch.reading import read_torch_file
from ckpt_core.storage.torch.tensors import StoredStorage

DTYPES = sorted(BY_TORCH)

T = TypeVar("T")


def bits(tensor: torch.Tensor) -> bytes:
    """The elements of a tensor in row-major order."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def stored_bits(stored: StoredTensor) -> bytes:
    """The elements that a `StoredTensor` points at, in row-major order."""
    if stored.elements == 0:
        return b""
    step = stored.dtype.size
    extent = 1 + sum((size - 1) * stride for size, stride in zip(stored.shape, stored.strides, strict=True))
    with open(stored.file, "rb") as file:
        file.seek(stored.offset)
        raw = np.frombuffer(file.read(extent * step), stored.dtype.numpy)
    return np.lib.stride_tricks.as_strided(raw, stored.shape, [stride * step for stride in stored.strides]).tobytes()


def assert_same(read: Any, loaded: Any) -> None:
    """`read` (ours) and `loaded` (torch's) hold the same, tensors bit for bit."""
    if isinstance(loaded, torch.Tensor):
        assert isinstance(read, StoredTensor)
        assert read.shape == tuple(loaded.shape)
        assert read.dtype.torch == str(loaded.dtype).removeprefix("torch.")
        assert stored_bits(read) == bits(loaded)
    elif isinstance(loaded, dict):
        assert list(read) == list(loaded)
        for key in loaded:
            assert_same(read[key], loaded[key])
    elif isinstance(loaded, list | tuple):
        assert len(read) == len(loaded)
        for ours, theirs in zip(read, loaded, strict=True):
            assert_same(ours, theirs)
    elif isinstance(loaded, np.ndarray):
        assert read.dtype == loaded.dtype
        np.testing.assert_array_equal(read, loaded)
    elif isinstance(loaded, torch.dtype):
        assert read.torch == str(loaded).removeprefix("torch.")
    else:
        assert type(read) is type(loaded)
        assert read == loaded


def random(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """A tensor of random bits."""
    size = BY_TORCH[dtype].size
    count = int(np.prod(shape)) * size
    raw = torch.from_numpy(
        np.random.default_rng(count).integers(0, 2 if dtype == "bool" else 255, count, dtype=np.uint8)
    )
    return raw.view(getattr(torch, dtype)).reshape(shape)


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request, tmp_path):
    """Writes a value with torch, in one of its two formats, and gives the path."""

    def write(value, name="model.pt"):
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=request.param)
        return tmp_path / name

    return write


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(save, dtype):
    value = {"a": random((3, 4), dtype), "b": random((5,), dtype), "none": torch.empty(0, dtype=getattr(torch, dtype))}
    assert_same(read_torch_file(save(value)), value)


def test_nested_values(save):
    value = {
        "model": OrderedDict([("w", torch.ones(2)), ("b", torch.tensor(3))]),
        "list": [1, (2.5, None, True), "text", torch.float16, torch.bfloat16, b"\x00\xff"],
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "frozen": torch.nn.Parameter(torch.randn(3), requires_grad=False),
        "rng": torch.get_rng_state(),
        "big": 2**70,
    }
    path = save(value)
    assert_same(read_torch_file(path), torch.load(path, weights_only=True))


def test_views(save):
    base = torch.arange(120.0).reshape(4, 5, 6)
    value = [
        base,
        base.permute(2, 1, 0),
        base[1:3],
        base[:, ::2, 1],
        base.transpose(0, 2)[1:],
        base[2, 3, 4],
        base[0:0],
        base[:1].expand(7, 5, 6),
    ]
    path = save(value)
    found = read_torch_file(path)
    assert_same(found, torch.load(path, weights_only=True))
    assert found[0].offset == found[1].offset
    assert found[2].offset == found[0].offset + 30 * 4


def test_shared_storages(save):
    weight = torch.randn(6, 4)
    path = save({"in": weight, "out": weight, "flat": weight.view(-1), "half": weight[3:]})
    found = read_torch_file(path)
    assert_same(found, torch.load(path, weights_only=True))
    assert found["in"] == found["out"]


def test_parameters_with_attributes(save):
    weight = torch.nn.Parameter(torch.randn(2, 3))
    weight.tensor_model_parallel = True
    plain = torch.randn(4)
    plain.partition_dim = 0
    path = save([weight, plain])
    found = read_torch_file(path)
    assert_same(found, [weight, plain])


def test_a_state_dict_of_a_module(save):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    path = save(model.state_dict())  # an OrderedDict with the attribute `_metadata`
    assert_same(read_torch_file(path), torch.load(path, weights_only=True))


def test_a_whole_module_is_opaque(save):
    path = save(torch.nn.Linear(3, 4))
    found = read_torch_file(path)
    assert found.qualname == "torch.nn.modules.linear.Linear"
    assert found.fields()["_parameters"]["weight"].shape == (4, 3)


def test_namespaces_and_arrays(save):
    value = {
        "args": argparse.Namespace(hidden=8, dtype=torch.bfloat16),
        "rng": np.arange(5),
        "size": torch.Size([2, 3]),
    }
    found = read_torch_file(save(value))
    assert found["args"].fields() == {"hidden": 8, "dtype": BY_NAME["bf16"]}
    assert found["size"] == (2, 3)
    np.testing.assert_array_equal(found["rng"], np.arange(5))


def test_a_bare_storage(save):
    found = read_torch_file(save({"s": torch.arange(5.0).untyped_storage()}))["s"]
    assert isinstance(found, StoredStorage)
    assert (found.dtype.name, found.elements, found.untyped) == ("uint8", 20, True)


def test_meta_tensors_hold_no_data(save):
    found = read_torch_file(save({"m": torch.empty(3, 2, device="meta")}))["m"]
    assert found.name == "_rebuild_meta_tensor_no_storage"
    assert found.args[:2] == (BY_NAME["fp32"], (3, 2))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda: torch.ones(3, dtype=torch.complex64), "complex"),
        (lambda: torch.complex(torch.ones(3), torch.ones(3)).conj(), "complex"),
        (lambda: torch.complex(torch.ones(3), torch.ones(3)).conj().imag, "complex|negated"),
        (lambda: torch.zeros(3).to(torch.float8_e4m3fnuz), "dtype that is not read"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_other_kinds_of_tensors_are_refused_by_name(save, value, kind):
    path = save({"t": value()})
    with pytest.raises(FormatError, match=kind) as caught:
        read_torch_file(path)
    assert caught.value.file == str(path)


def test_a_torch_file_inside_another_file(save, tmp_path):
    value = {"w": random((7, 3), "bfloat16"), "v": random((2,), "float32")}
    inner = save(value).read_bytes()
    for before, after in ((b"x" * 13, b""), (b"PK\x05\x06" * 30, inner), (inner, b"y" * 100)):
        path = tmp_path / "outer.bin"
        path.write_bytes(before + inner + after)
        assert_same(read_torch_file(path, len(before), len(inner)), value)
    with pytest.raises(FormatError, match="lies outside"):
        read_torch_file(path, len(inner), 10**9)
    with pytest.raises(FormatError, match="lies outside"):
        read_torch_file(path, -1)


def test_only_headers_are_read(tmp_path, monkeypatch):
    path = tmp_path / "large.pt"
    torch.save({"w": torch.zeros(1 << 22), "v": torch.zeros(1 << 22)}, path)
    read = 0

    class Counting(io.FileIO):
        def read(self, count=-1):
            nonlocal read
            data = super().read(count)
            read += len(data)
            return data

    monkeypatch.setattr(Path, "open", lambda self, mode: Counting(self))
    tracemalloc.start()
    read_torch_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read < 100_000
    assert peak < 1e6


def test_a_pickle_that_was_read_before_is_not_read_again(tmp_path, monkeypatch):
    """As in the many files of a distributed checkpoint. All else of a file is its own, and is checked."""
    pickles = []
    read = reading.read_pickle
    monkeypatch.setattr(reading, "read_pickle", lambda *given, **named: pickles.append(given) or read(*given, **named))
    monkeypatch.setattr(reading, "_ALIKE", {})
    for number, folder in enumerate(("a", "longer")):
        value = torch.arange(12.0).reshape(3, 4) + 100 * number
        torch.save(value[1:, ::2], tmp_path / folder)  # the folder in the archive is called as the file
        found = read_torch_file(tmp_path / folder)
        assert (found.file, found.shape, found.strides) == (str(tmp_path / folder), (2, 2), (4, 2))
        data = (tmp_path / folder).read_bytes()
        assert data[found.offset : found.offset + 12] == value[1, :3].numpy().tobytes()
        assert data[found.record.offset : found.record.offset + 48] == value.numpy().tobytes()
    assert len(pickles) == 1
    damaged = bytearray((tmp_path / "a").read_bytes())
    damaged[damaged.index(b"FloatStorage")] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    with pytest.raises(FormatError, match="damaged"):
        read_torch_file(tmp_path / "damaged")


def without_checksums(save: Callable[[], T]) -> T:
    """What `save` returns, while torch writes zip archives without CRC32. Torch keeps the option in a context variable."""

    def in_a_copy() -> T:
        torch.serialization.set_crc32_options(False)
        return save()

    return contextvars.copy_context().run(in_a_copy)


def test_files_without_checksums(tmp_path):
    without_checksums(lambda: torch.save({"w": torch.ones(3)}, tmp_path / "model.pt"))
    assert_same(read_torch_file(tmp_path / "model.pt"), {"w": torch.ones(3)})


def test_files_repacked_by_other_tools(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.arange(9.0)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "again.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert_same(read_torch_file(tmp_path / "again.pt"), {"w": torch.arange(9.0)})


# Damaged and hostile files


def base_pickle(**parts: Any) -> bytes:
    """The data.pkl of {"w": tensor} with some parts replaced; sizes are of a (2, 3) float32 tensor."""
    part = {
        "function": b"ctorch._utils\n_rebuild_tensor_v2\n",
        "class": b"ctorch\nFloatStorage\n",
        "key": b"X\x01\x00\x00\x000",
        "count": b"K\x06",
        "offset": b"K\x00",
        "shape": b"K\x02K\x03\x86",
        "stride": b"K\x03K\x01\x86",
        "rest": b"\x89ccollections\nOrderedDict\n)R",
    } | parts
    identity = (
        b"(X\x07\x00\x00\x00storage" + part["class"] + part["key"] + b"X\x03\x00\x00\x00cpu" + part["count"] + b"tQ"
    )
    tensor = part["function"] + b"(" + identity + part["offset"] + part["shape"] + part["stride"] + part["rest"] + b"tR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s."


def zipped(members: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


DATA = struct.pack("<6f", *range(6))
GOOD = {"model/data.pkl": base_pickle(), "model/byteorder": b"little", "model/data/0": DATA, "model/version": b"3\n"}
GOOD_ZIP = zipped(GOOD)


def with_pickle(**parts: Any) -> bytes:
    return zipped(GOOD | {"model/data.pkl": base_pickle(**parts)})


def with_field(name: str, field: int, layout: str, value: int, central: bool = True) -> bytes:
    """The good file with one field of the headers of one member changed."""
    data = bytearray(GOOD_ZIP)
    at = 0
    signature = b"PK\x01\x02" if central else b"PK\x03\x04"
    while data[(at := data.index(signature, at)) + (46 if central else 30) :][: len(name)] != name.encode():
        at += 1
    struct.pack_into(layout, data, at + field, value)
    return bytes(data)


def with_end(field: int, layout: str, value: int) -> bytes:
    data = bytearray(GOOD_ZIP)
    struct.pack_into(layout, data, data.rindex(b"PK\x05\x06") + field, value)
    return bytes(data)


def legacy(value: Any, **changes: Any) -> bytes:
    """A legacy file, its five pickles and the storages behind them changed by name."""
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=False)
    raw = io.BytesIO(out.getvalue())
    parts = []
    for name in ("magic", "version", "system", "object", "keys"):
        start = raw.tell()
        _skip_pickle(raw)
        parts.append(changes.get(name, out.getvalue()[start : raw.tell()]))
    return b"".join(parts) + changes.get("storages", out.getvalue()[raw.tell() :])


def _skip_pickle(stream: io.BytesIO) -> None:
    import pickletools

    for _ in pickletools.genops(stream):
        pass


OTHER = "model/data/0"
BROKEN = {
    # not a torch file
    "empty": b"",
    "text": b"hello, world\n" * 20,
    "a bare pickle": pickle.dumps({"a": 1}),
    "a tar": b"\0" * 257 + b"ustar" + b"\0" * 300,
    "only a signature": b"PK\x03\x04",
    "no data.pkl": zipped({"model/version": b"3\n"}),
    "two data.pkl": zipped(GOOD | {"other/data.pkl": base_pickle()}),
    "data.pkl without a folder": zipped({"data.pkl": base_pickle()}),
    "torchscript": zipped(GOOD | {"model/constants.pkl": b"N."}),
    "big-endian": zipped(GOOD | {"model/byteorder": b"big"}),
    "endless byteorder": zipped(GOOD | {"model/byteorder": b"l" * 100_000}),
    # the archive
    "truncated in the data": GOOD_ZIP[:200],
    "truncated at the end": GOOD_ZIP[:-1],
    "truncated directory": GOOD_ZIP[:-80],
    "bytes behind": GOOD_ZIP + b"x",
    "bytes before": b"PK\x03\x04" + GOOD_ZIP,
    "a second archive behind": GOOD_ZIP + GOOD_ZIP,
    "compressed": zipped(GOOD, method=zipfile.ZIP_DEFLATED),
    "bomb": zipped(GOOD | {OTHER: b"\0" * 1_000_000}, method=zipfile.ZIP_DEFLATED),
    "encrypted": with_field(OTHER, 8, "<H", 1),
    "strongly encrypted": with_field(OTHER, 8, "<H", 0x40),
    "unknown method": with_field(OTHER, 10, "<H", 99),
    "unknown method in the local header": with_field(OTHER, 8, "<H", 8, central=False),
    "sizes differ in the directory": with_field(OTHER, 24, "<I", 1 << 20),
    "both sizes too large": bytes(
        bytearray(with_field(OTHER, 24, "<I", 1 << 20))[: GOOD_ZIP.rindex(OTHER.encode()) - 26]
        + struct.pack("<I", 1 << 20)
        + with_field(OTHER, 24, "<I", 1 << 20)[GOOD_ZIP.rindex(OTHER.encode()) - 22 :]
    ),
    "size differs in the local header": with_field(OTHER, 22, "<I", 12, central=False),
    "checksum differs in the local header": with_field(OTHER, 14, "<I", 12, central=False),
    "zip64 size without its field": with_field(OTHER, 24, "<I", 0xFFFFFFFF),
    "zip64 offset without its field": with_field(OTHER, 42, "<I", 0xFFFFFFFF),
    "overlap: same header": with_field(OTHER, 42, "<I", 0),
    "offset beyond the file": with_field(OTHER, 42, "<I", 1 << 30),
    "offset into the data": with_field(OTHER, 42, "<I", 40),
    "name too long": with_field(OTHER, 28, "<H", 60_000),
    "extra too long": with_field(OTHER, 30, "<H", 60_000),
    "comment too long": with_field(OTHER, 32, "<H", 60_000),
    "local name too long": with_field(OTHER, 26, "<H", 60_000, central=False),
    "local extra too long": with_field(OTHER, 28, "<H", 60_000, central=False),
    "another name in the local header": GOOD_ZIP.replace(OTHER.encode(), b"model/data/1", 1),
    "a member on another disk": with_field(OTHER, 34, "<H", 3),
    "more members than there are": with_end(10, "<H", 40_000),
    "fewer members than there are": bytes(
        bytearray(with_end(8, "<H", 3))[:-12] + struct.pack("<H", 3) + GOOD_ZIP[-10:]
    ),
    "several disks": with_end(4, "<H", 1),
    "directory size too large": with_end(12, "<I", 1 << 30),
    "directory offset too large": with_end(16, "<I", 1 << 30),
    "directory offset zero": with_end(16, "<I", 0),
    "comment length lies": with_end(20, "<H", 10),
    "duplicate member": None,
    "absolute name": zipped(GOOD | {"/etc/passwd": b"x"}),
    "name with dots": zipped(GOOD | {"model/../../x": b"x"}),
    "name with a backslash": zipped(GOOD).replace(b"model/version", b"model\\version"),
    "name of a drive": zipped(GOOD | {"C:/x": b"x"}),
    "name that is not UTF-8": zipped(GOOD).replace(b"model/version", b"model/versio\xff"),
    "damaged pickle": GOOD_ZIP.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v1"),
    # the pickle
    "hostile pickle": zipped(GOOD | {"model/data.pkl": b"cos\nsystem\nX\x0c\x00\x00\x00touch CANARY\x85R."}),
    "empty pickle": zipped(GOOD | {"model/data.pkl": b""}),
    "two pickles": zipped(GOOD | {"model/data.pkl": base_pickle() + b"N."}),
    # the tensor
    "storage missing": with_pickle(key=b"X\x01\x00\x00\x007"),
    "storage key that climbs": with_pickle(key=b"X\x0a\x00\x00\x00../version"),
    "storage key that is a number": with_pickle(key=b"K\x00"),
    "storage larger than its record": with_pickle(count=b"K\x07"),
    "storage smaller than its record": with_pickle(count=b"K\x02"),
    "storage of negative size": with_pickle(count=b"J\xff\xff\xff\xff"),
    "storage of text size": with_pickle(count=b"X\x01\x00\x00\x006"),
    "storage of another dtype": with_pickle(**{"class": b"ctorch\nDoubleStorage\n"}),
    "storage of no class": with_pickle(**{"class": b"N"}),
    "storage of a foreign class": with_pickle(**{"class": b"cother\nFloatStorage\n"}),
    "storage of an unknown class": with_pickle(**{"class": b"ctorch\nNewStorage\n"}),
    "quantised storage": with_pickle(**{"class": b"ctorch\nQInt8Storage\n"}),
    "shape too large": with_pickle(shape=b"K\x03K\x03\x86"),
    "offset too large": with_pickle(offset=b"K\x01"),
    "offset negative": with_pickle(offset=b"J\xff\xff\xff\xff"),
    "offset huge": with_pickle(offset=b"\x8a\x09" + b"\xff" * 8 + b"\x00"),
    "stride too large": with_pickle(stride=b"K\x04K\x01\x86"),
    "stride negative": with_pickle(stride=b"K\x03J\xff\xff\xff\xff\x86"),
    "shape negative": with_pickle(shape=b"K\x02J\xff\xff\xff\xff\x86"),
    "shape overflows": with_pickle(shape=b"\x8a\x08" + b"\x00" * 7 + b"\x40K\x04\x86"),
    "shape overflows with strides of zero": with_pickle(
        shape=b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", stride=b"K\x00K\x00\x86"
    ),
    "empty shape overflows": with_pickle(
        shape=b"K\x00" + b"\x8a\x08" + b"\xff" * 7 + b"\x3f" + b"K\x09\x87", stride=b"K\x01" * 3 + b"\x87"
    ),
    "more strides than sizes": with_pickle(stride=b"K\x03"),
    "fewer strides than sizes": with_pickle(stride=b"K\x03\x85"),
    "shape of texts": with_pickle(shape=b"X\x01\x00\x00\x002\x85"),
    "shape of booleans": with_pickle(shape=b"\x88\x88\x86"),
    "ten thousand dimensions": with_pickle(
        shape=b"(" + b"K\x01" * 10_000 + b"t", stride=b"(" + b"K\x01" * 10_000 + b"t"
    ),
    "too few arguments": with_pickle(rest=b"", stride=b""),
    "a tensor without a storage": with_pickle(function=b"ctorch._utils\n_rebuild_tensor_v2\nNN\x86R"),
    "dtype that is text": with_pickle(function=b"ctorch._utils\n_rebuild_tensor_v3\n", rest=b"\x89NX\x01\x00\x00\x00f"),
    "negated": with_pickle(rest=b"\x89N}X\x03\x00\x00\x00neg\x88s"),
    "parameter without a tensor": with_pickle(function=b"ctorch._utils\n_rebuild_parameter\n"),
    # the legacy format
    "legacy: other version": legacy(1, version=pickle.dumps(1002, 2)),
    "legacy: big-endian": legacy(1, system=pickle.dumps({"little_endian": False}, 2)),
    "legacy: system of a list": legacy(1, system=b"]."),
    "legacy: hostile": legacy(1, object=b"cos\nsystem\nX\x0c\x00\x00\x00touch CANARY\x85R."),
    "legacy: truncated": legacy(torch.ones(3))[:-1],
    "legacy: no storages": legacy(torch.ones(3), storages=b""),
    "legacy: no keys": legacy(torch.ones(3), keys=b"]."),
    "legacy: keys of a dict": legacy(torch.ones(3), keys=b"}."),
    "legacy: other keys": legacy(torch.ones(3), keys=pickle.dumps(["x"], 2)),
    "legacy: keys of lists": legacy(torch.ones(3), keys=b"]]a."),
    "legacy: other size": legacy(torch.ones(3), storages=struct.pack("<q", 4) + b"\0" * 16),
    "legacy: huge size": legacy(torch.ones(3), storages=b"\xff" * 20),
    "legacy: odd persistent id": legacy(1, object=b"NQ."),
    "legacy: short persistent id": legacy(1, object=b"X\x07\x00\x00\x00storage\x85Q."),
    "legacy: unhashable persistent id": legacy(1, object=b"(]]]t" + b"Q."),
    "legacy: huge storage": legacy(
        1,
        object=b"(X\x07\x00\x00\x00storagectorch\nByteStorage\nX\x01\x00\x00\x000N\x8a\x08" + b"\xff" * 7 + b"\x3fNtQ.",
    ),
}
with pytest.warns(UserWarning, match="Duplicate name"):
    BROKEN["duplicate member"] = zipped([*GOOD.items(), (OTHER, DATA)])


def test_the_good_file_is_good(tmp_path):
    (tmp_path / "model.pt").write_bytes(GOOD_ZIP)
    assert_same(read_torch_file(tmp_path / "model.pt"), {"w": torch.arange(6.0).reshape(2, 3)})
    (tmp_path / "model.pt").write_bytes(legacy(torch.ones(3)))
    assert_same(read_torch_file(tmp_path / "model.pt"), torch.ones(3))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    path.write_bytes(BROKEN[name])
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            read_torch_file(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.file == str(path)
    assert peak < 50e6
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("new_format", [True, False])
def test_every_truncation_and_every_changed_header_byte_is_refused_or_harmless(tmp_path, new_format):
    value = {"w": torch.arange(6.0), "n": torch.nn.Parameter(torch.ones(2))}
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=new_format)
    good = out.getvalue()
    path = tmp_path / "model.pt"
    for cut in range(0, len(good), 7):
        path.write_bytes(good[:cut])
        with pytest.raises(FormatError):
            read_torch_file(path)
    for at in range(0, len(good), 3):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :])
        try:
            found = read_torch_file(path)
        except FormatError as error:
            assert error.file == str(path)
        else:
            assert found is not None


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(FormatError, match="can't be read") as caught:
        read_torch_file(tmp_path / "none.pt")
    assert "No such file" in str(caught.value)


def test_many_members_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("ckpt_core.storage.archive.zipdir._MAX_MEMBERS", 3)
    (tmp_path / "model.pt").write_bytes(GOOD_ZIP)
    with pytest.raises(FormatError, match="too many members"):
        read_torch_file(tmp_path / "model.pt")


# Real checkpoints


def _goldens() -> list[Path]:
    root = os.environ.get("CKPT_GOLDENS")
    return (
        sorted(path for path in Path(root).rglob("*") if path.suffix in (".pt", ".ckpt") and path.is_file())
        if root
        else []
    )


@pytest.mark.skipif("CKPT_GOLDENS" not in os.environ, reason="needs CKPT_GOLDENS, a folder of real checkpoints")
def test_real_checkpoints():
    """Every torch file reads; those that torch itself calls safe hold the same bits."""
    paths = _goldens()
    assert paths
    compared = 0
    for path in paths:
        found = read_torch_file(path)
        try:
            loaded = torch.load(path, weights_only=True, map_location="cpu")
        except pickle.UnpicklingError:
            continue
        assert_same(found, loaded)
        compared += 1
    assert compared > len(paths) // 2


class TestAlike:
    """Files in a file that look like one that was read: told by `alike`, or by the readers themselves, they say the same."""

    @staticmethod
    def many(folder: Path, count: int = 6) -> tuple[Path, list[tuple[int, int]]]:
        """Torch files of tensors of two shapes one behind the other, as in a `.distcp`, and where each lies."""
        path, places = folder / "__0_0.distcp", []
        with open(path, "wb") as file:
            for number in range(count):
                buffer, shape = io.BytesIO(), (5, 3) if number % 3 else (3, 5)
                torch.save(torch.arange(15, dtype=torch.bfloat16).reshape(shape) + number, buffer)
                places.append((file.tell(), len(buffer.getvalue())))
                file.write(buffer.getvalue())
        return path, places

    @staticmethod
    def outcome(path: Path, start: int, length: int) -> object:
        try:
            return read_torch_file(path, start, length)
        except FormatError as error:
            return str(error)

    def both(self, path: Path, place: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> tuple[object, object]:
        """What is said of a file with all that was remembered, and without."""
        told = self.outcome(path, *place)
        with monkeypatch.context() as patch:
            patch.setattr(alike, "_FORMS", {})
            patch.setattr(reading, "_ALIKE", {})
            return told, self.outcome(path, *place)

    @pytest.fixture(autouse=True)
    def nothing_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(alike, "_FORMS", {})
        monkeypatch.setattr(reading, "_ALIKE", {})

    def test_most_are_told_from_the_first(self, tmp_path, monkeypatch):
        path, places = self.many(tmp_path)
        whole = []
        read = reading._ZipFile.read
        monkeypatch.setattr(reading._ZipFile, "read", lambda *given: whole.append(1) or read(*given))
        found = [read_torch_file(path, *place) for place in places]
        assert len(whole) < len(places)
        for number, (stored, (start, length)) in enumerate(zip(found, places, strict=True)):
            again = torch.load(io.BytesIO(path.read_bytes()[start : start + length]))
            assert again[0, 0] == number
            assert_same(stored, again)
            assert stored.record.crc == zipfile.crc32(
                path.read_bytes()[stored.record.offset : stored.record.offset + stored.record.size]
            )
        assert all(self.both(path, place, monkeypatch) == (one, one) for one, place in zip(found, places, strict=True))

    def test_every_byte_that_differs_is_seen(self, tmp_path, monkeypatch):
        """Each byte of a file is changed, one after the other."""
        path, places = self.many(tmp_path, 3)
        for place in places:
            read_torch_file(path, *place)
        assert alike._FORMS
        start, length = places[1]
        data = path.read_bytes()
        told = set()
        for at in range(length):
            (tmp_path / "changed").write_bytes(
                data[: start + at] + bytes([data[start + at] ^ 1]) + data[start + at + 1 :]
            )
            mine, theirs = self.both(tmp_path / "changed", places[1], monkeypatch)
            assert mine == theirs, at
            told.add(type(mine))
        assert told == {str, StoredTensor}

    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_damage_is_told_alike(self, tmp_path_factory, data):
        folder = tmp_path_factory.mktemp("alike")
        with pytest.MonkeyPatch.context() as monkeypatch:
            path, places = self.many(folder, 3)
            for place in places:
                read_torch_file(path, *place)
            damaged = bytearray(path.read_bytes())
            start, length = places[data.draw(st.integers(0, 2))]
            for _ in range(data.draw(st.integers(1, 5))):
                at = start + data.draw(st.integers(0, length - 1))
                size = data.draw(st.sampled_from((1, 1, 4)))
                damaged[at : at + size] = data.draw(st.binary(min_size=size, max_size=size))
            moved = data.draw(st.sampled_from((0, 0, 0, 1, -1)))
            path.write_bytes(damaged)
            mine, theirs = self.both(path, (start, length + moved), monkeypatch)
            assert mine == theirs

    def test_without_checksums(self, tmp_path, monkeypatch):
        path, places = without_checksums(lambda: self.many(tmp_path))
        for place in places:
            mine, theirs = self.both(path, place, monkeypatch)
            assert mine == theirs and mine.record is None

    def test_a_file_that_is_a_tar_in_gzip_is_read_by_whoever_inflates_it(self, tmp_path, monkeypatch):
        path, places = self.many(tmp_path)
        for place in places:
            read_torch_file(path, *place)
        monkeypatch.setattr(alike, "holds_tar_in_gzip", lambda file: True)
        assert alike.known(str(path), *places[1], Limits()) is None
