"""Our safetensors files are those of the safetensors library, byte for byte."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ckpt_core.errors import FormatError
from ckpt_core.storage.dtypes import BY_NAME, DType
from ckpt_core.storage.safetensors import plan_file, read_header

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
tensors = st.dictionaries(names, st.tuples(st.sampled_from(list(BY_NAME.values())), shapes), min_size=1, max_size=8)
metadata = st.none() | st.dictionaries(names, st.text(st.characters(codec="utf-8"), max_size=8), max_size=1)


def values(dtype: DType, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    if not all(shape):
        return torch.empty(shape, dtype=getattr(torch, dtype.torch))
    count = int(np.prod(shape)) * dtype.size
    raw = np.random.default_rng(seed).integers(
        0, 2, count, dtype=np.uint8
    )  # 0 and 1 are legal bytes of every type, bool too
    return torch.from_numpy(raw).view(getattr(torch, dtype.torch)).reshape(shape)


def ours(held: dict[str, torch.Tensor], dtypes: dict[str, DType], said: dict[str, str] | None) -> bytes:
    plan = plan_file({name: (dtypes[name], tuple(tensor.shape)) for name, tensor in held.items()}, said)
    data = bytearray(plan.size)
    data[: len(plan.header)] = plan.header
    for name, tensor in held.items():
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        data[plan.offsets[name] : plan.offsets[name] + len(raw)] = raw
    return bytes(data)


@settings(max_examples=200)
@given(tensors, metadata)
def test_the_file_is_the_librarys(specs: dict[str, tuple[DType, tuple[int, ...]]], said: dict[str, str] | None) -> None:
    held = {name: values(dtype, shape, seed) for seed, (name, (dtype, shape)) in enumerate(specs.items())}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.safetensors"
        save_file(held, path, metadata=said)
        written = ours(held, {name: dtype for name, (dtype, _) in specs.items()}, said)
        assert written == path.read_bytes()
        header = read_header(path)
        assert header.metadata == (said or {})
        assert {name: (tensor.dtype, tensor.shape) for name, tensor in header.tensors.items()} == specs
        for name, tensor in header.tensors.items():
            raw = held[name].reshape(-1).view(torch.uint8).numpy().tobytes() if held[name].numel() else b""
            assert written[tensor.offset : tensor.offset + len(raw)] == raw


def header_of(text: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


ONE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'

# fmt: off
MALICE = {
    "nothing":                  (b"", "too short"),
    "a few bytes":              (b"\1\2\3", "too short"),
    "no header":                (header_of(b""), "does not fit the file"),
    "a header beyond the file": (header_of(ONE, b"", 1 << 62), "does not fit the file"),
    "a header of 4 GB":         (header_of(ONE, bytes(8), 1 << 32), "does not fit the file"),
    "no JSON":                  (header_of(b"{]"), "not valid JSON"),
    "a list":                   (header_of(b"[1,2]"), "not an object"),
    "no UTF-8":                 (header_of(b'{"\xff":1}'), "not valid JSON"),
    "a name twice":             (header_of(ONE[:-1] + b"," + ONE[1:], bytes(8)), "occurs twice"),
    "nested absurdly":          (header_of(b'{"a":' * 2000 + b"1" + b"}" * 2000), "nested too deeply|not valid|lacks"),
    "a tensor without shape":   (header_of(b'{"a":{"dtype":"F32","data_offsets":[0,8]}}', bytes(8)), "'a' lacks"),
    "a tensor that is a list":  (header_of(b'{"a":[1]}'), "'a' lacks"),
    "three offsets":            (header_of(ONE.replace(b"[0,8]", b"[0,8,9]"), bytes(8)), "'a' lacks"),
    "an unknown dtype":         (header_of(ONE.replace(b"F32", b"F31"), bytes(8)), "unknown dtype"),
    "a negative size":          (header_of(ONE.replace(b"[2]", b"[-2]"), bytes(8)), "impossible shape"),
    "a size that overflows":    (header_of(ONE.replace(b"[2]", b"[4611686018427387904,4]"), bytes(8)), "impossible shape"),
    "a fraction of a size":     (header_of(ONE.replace(b"[2]", b"[2.0]"), bytes(8)), "impossible shape"),
    "true as a size":           (header_of(ONE.replace(b"[2]", b"[true]"), bytes(8)), "impossible shape"),
    "a hundred dimensions":     (header_of(ONE.replace(b"[2]", b"[2" + b",1" * 99 + b"]"), bytes(8)), "impossible shape"),
    "more than its bytes":      (header_of(ONE.replace(b"[2]", b"[3]"), bytes(12)), "does not fit its bytes"),
    "beyond the end":           (header_of(ONE, bytes(4)), "does not fit its bytes"),
    "a gap":                    (header_of(ONE.replace(b"[0,8]", b"[4,12]"), bytes(12)), "gap or overlaps"),
    "bytes left over":          (header_of(ONE, bytes(9)), "wrong length"),
    "metadata of numbers":      (header_of(b'{"__metadata__":{"a":1}}'), "strings to strings"),
    "metadata that is a list":  (header_of(b'{"__metadata__":[]}'), "strings to strings"),
    "two in one place":         (header_of(ONE[:-1] + b"," + ONE[1:].replace(b'"a"', b'"b"'), bytes(8)), "gap or overlaps"),
}
# fmt: on


@pytest.mark.parametrize(("data", "says"), MALICE.values(), ids=MALICE)
def test_a_file_that_lies_is_refused_by_name(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=says) as caught:
        read_header(path)
    assert caught.value.file == str(path)


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(header_of(ONE, bytes(8)))
    assert list(read_header(path).tensors) == ["a"]
