"""Planned torch files load in torch in every way, and the plan says where each byte goes."""

from __future__ import annotations

import argparse
import random
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_core.errors import FormatError
from ckpt_core.storage.bytes.crc32 import of_remainder
from ckpt_core.storage.dtypes import BF16, BY_NAME, BY_TORCH, FP32
from ckpt_core.storage.pickle.opaque import Opaque
from ckpt_core.storage.torch.reading import read_torch_file
from ckpt_core.storage.torch.writing import TensorSpec, TorchFilePlan, patch_crc, plan_torch_file


def write(plan: TorchFilePlan, path: Path, data: list[bytes]) -> None:
    """Write a plan's literals, the data of each slot, and the checksums, in a shuffled order."""
    pieces = list(plan.literals)
    for slot, raw in zip(plan.slots, data, strict=True):
        assert len(raw) == slot.size
        pieces += [(slot.offset, raw)]
    random.Random(0).shuffle(pieces)
    with path.open("wb") as file:
        file.truncate(plan.size)
        for offset, raw in pieces:
            file.seek(offset)
            file.write(raw)
        for slot, raw in zip(plan.slots, data, strict=True):
            for offset, patch in patch_crc(slot, zlib.crc32(raw)):
                file.seek(offset)
                file.write(patch)


def noise(plan: TorchFilePlan) -> list[bytes]:
    """Random data for each slot; bytes of 0 and 1, which are valid for every dtype."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 2, slot.size, dtype=np.uint8).tobytes() for slot in plan.slots]


def raw_bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


VALUE = {
    "model": OrderedDict(
        [("a", TensorSpec(BF16, (4, 3))), ("b", TensorSpec(FP32, (5,))), ("none", TensorSpec(FP32, (0, 3)))]
    ),
    "scalar": TensorSpec(BY_NAME["int64"], ()),
    "list": [1, -5, 256, 65536, 2**40, -(2**80), 1.5, None, True, False, "text", "text", ("a",), (), (1, 2, 3, 4)],
    "nested": [{"deep": (TensorSpec(BY_NAME["bool"], (2, 1, 2)),)}],
    "keys": {1: "one", (2, "b"): "two"},
    "dtype": BF16,
    "bytes": b"\x00\xff",
}
LOADERS = [
    {"weights_only": True},
    {"weights_only": False},
    {"weights_only": True, "mmap": True},
    {"weights_only": False, "mmap": True},
]


@pytest.mark.parametrize("options", LOADERS, ids=str)
def test_torch_loads_what_was_planned(tmp_path, options):
    path = tmp_path / "model.pt"
    plan = plan_torch_file(VALUE, "model.pt")
    data = noise(plan)
    write(plan, path, data)
    loaded = torch.load(path, **options)
    assert list(loaded) == list(VALUE)
    assert type(loaded["model"]) is OrderedDict
    assert {key: loaded[key] for key in ("list", "keys", "bytes")} == {
        key: VALUE[key] for key in ("list", "keys", "bytes")
    }
    assert loaded["dtype"] is torch.bfloat16
    found = read_torch_file(path)
    for slot, raw in zip(plan.slots, data, strict=True):
        (where,) = slot.paths
        tensor, spec, stored = loaded, VALUE, found
        for step in where:
            tensor, spec, stored = tensor[step], spec[step], stored[step]
        assert (tuple(tensor.shape), str(tensor.dtype)) == (spec.shape, f"torch.{spec.dtype.torch}")
        assert raw_bits(tensor) == raw
        assert tensor.is_contiguous()
        assert (stored.offset, stored.shape) == (slot.offset, spec.shape)


def test_the_archive_is_sound(tmp_path):
    path = tmp_path / "model.pt"
    plan = plan_torch_file(VALUE, "some/folder/model.pt")
    write(plan, path, noise(plan))
    assert path.stat().st_size == plan.size
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[:3] == ["model/data.pkl", "model/byteorder", "model/data/0"]
        assert names[-1] == "model/version"
        assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    assert all(slot.offset % 64 == 0 for slot in plan.slots)


def test_literals_and_slots_tile_the_file():
    plan = plan_torch_file(VALUE, "model.pt")
    pieces = sorted(
        [(offset, len(data)) for offset, data in plan.literals]
        + [(slot.offset, slot.size) for slot in plan.slots if slot.size]
    )
    at = 0
    for offset, size in pieces:
        assert offset == at
        at += size
    assert at == plan.size


def test_the_layout_is_that_of_torch(tmp_path):
    """The same pickle as torch writes but for the numbering of its memo, so the same objects and sharing."""
    weights = {"a": torch.zeros(4, 3), "b": torch.zeros(5, dtype=torch.int16)}
    torch.save(weights, tmp_path / "model.pt")
    specs = {
        key: TensorSpec(BY_TORCH[str(t.dtype).removeprefix("torch.")], tuple(t.shape)) for key, t in weights.items()
    }
    plan = plan_torch_file(specs, "model.pt")
    write(plan, tmp_path / "ours.pt", [bytes(slot.size) for slot in plan.slots])
    import pickletools

    def opcodes(name):
        with zipfile.ZipFile(tmp_path / name) as archive:
            (pickle,) = [member for member in archive.namelist() if member.endswith("data.pkl")]
            return [
                (opcode.name, argument)
                for opcode, argument, _ in pickletools.genops(archive.read(pickle))
                if "PUT" not in opcode.name and "GET" not in opcode.name
            ]

    assert opcodes("ours.pt") == opcodes("model.pt")


@pytest.mark.parametrize("name", sorted(BY_NAME))
@pytest.mark.parametrize("mmap", [False, True])
def test_every_dtype(tmp_path, name, mmap):
    plan = plan_torch_file({"w": TensorSpec(BY_NAME[name], (3, 5))}, "model.pt")
    data = noise(plan)
    write(plan, tmp_path / "model.pt", data)
    loaded = torch.load(tmp_path / "model.pt", weights_only=True, mmap=mmap)["w"]
    assert str(loaded.dtype) == f"torch.{BY_NAME[name].torch}"
    assert raw_bits(loaded) == data[0]
    assert read_torch_file(tmp_path / "model.pt")["w"].dtype == BY_NAME[name]


def test_shared_storages_are_written_once(tmp_path):
    value = {
        "in": TensorSpec(BF16, (4, 3), "tied"),
        "own": TensorSpec(BF16, (4, 3)),
        "out": TensorSpec(BF16, (12,), "tied"),
    }
    plan = plan_torch_file(value, "model.pt")
    assert [slot.paths for slot in plan.slots] == [(("in",), ("out",)), (("own",),)]
    write(plan, tmp_path / "model.pt", noise(plan))
    loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    assert loaded["in"].data_ptr() == loaded["out"].data_ptr() != loaded["own"].data_ptr()
    with pytest.raises(FormatError, match="share a storage"):
        plan_torch_file({"in": TensorSpec(BF16, (4, 3), "tied"), "out": TensorSpec(FP32, (4, 3), "tied")}, "model.pt")


def test_output_is_deterministic():
    plans = [plan_torch_file(VALUE, "model.pt") for _ in range(2)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("a/b/model.step=5.pt", "model.step=5"),
        ("pytorch_model.bin", "pytorch_model"),
        ("ä.pt", "archive"),
        ("...", "archive"),
    ],
)
def test_the_folder_is_the_stem(tmp_path, name, folder):
    plan = plan_torch_file({"w": TensorSpec(FP32, (2,))}, name)
    write(plan, tmp_path / "file", noise(plan))
    with zipfile.ZipFile(tmp_path / "file") as archive:
        assert archive.namelist()[0] == f"{folder}/data.pkl"
    assert torch.load(tmp_path / "file", weights_only=True)["w"].shape == (2,)


def test_namespaces_and_sizes_are_written(tmp_path):
    value = {"args": Opaque("argparse", "Namespace", (), {"hidden": 8}), "size": Opaque("torch", "Size", ((2, 3),))}
    plan = plan_torch_file(value, "model.pt")
    write(plan, tmp_path / "model.pt", [])
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert loaded == {"args": argparse.Namespace(hidden=8), "size": torch.Size([2, 3])}


@pytest.mark.parametrize(
    "value",
    [
        {"a": {1, 2}},
        {"a": np.float32(1)},
        {"a": object()},
        {"a": TensorSpec(FP32, (-1,))},
        {"a": TensorSpec(FP32, (1 << 62, 4))},
    ],
    ids=["set", "numpy", "object", "negative", "overflow"],
)
def test_what_can_not_be_written_is_named(value):
    with pytest.raises(FormatError) as caught:
        plan_torch_file(value, "model.pt")
    assert (caught.value.file, caught.value.found) == ("model.pt", "['a']")


def test_a_file_beyond_4_gib(tmp_path):
    """Sparse on disk: a tensor of 5 GiB, and one whose header lies behind it."""
    value = {
        "large": TensorSpec(BY_NAME["uint8"], (5 << 30,)),
        "w": TensorSpec(FP32, (3,)),
        "empty": TensorSpec(FP32, (0,)),
    }
    plan = plan_torch_file(value, "large.pt")
    path = tmp_path / "large.pt"
    crc = of_remainder(0, 5 << 30)  # that of zeros
    small = np.arange(3, dtype=np.float32).tobytes()
    with path.open("wb") as file:
        file.truncate(plan.size)
        patches = patch_crc(plan.slots[0], crc) + patch_crc(plan.slots[1], zlib.crc32(small))
        for offset, raw in [*plan.literals, (plan.slots[1].offset, small), *patches]:
            file.seek(offset)
            file.write(raw)
    found = read_torch_file(path)
    assert found["large"].elements == 5 << 30
    assert found["w"].offset == plan.slots[1].offset > 5 << 30
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("large/data/0").file_size == 5 << 30
        assert archive.read("large/data/1") == small
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert loaded["w"].tolist() == [0, 1, 2]
    assert loaded["large"].numel() == 5 << 30


def test_more_than_65535_members(tmp_path):
    count = 66_000
    plan = plan_torch_file({str(number): TensorSpec(BY_NAME["uint8"], (1,)) for number in range(count)}, "many.pt")
    write(plan, tmp_path / "many.pt", [bytes([number % 251]) for number in range(count)])
    found = read_torch_file(tmp_path / "many.pt")
    assert len(found) == count
    loaded = torch.load(tmp_path / "many.pt", weights_only=True)
    assert all(int(loaded[str(number)]) == number % 251 for number in range(0, count, 1000))
