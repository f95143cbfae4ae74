"""Zarr arrays of distributed checkpoints: the values of any grid, and every departure from it by name."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_core.errors import CkptError, FormatError
from ckpt_core.storage.archive.tree import open_tree
from ckpt_core.storage.bytes import read_range
from ckpt_core.storage.chunks.zarr import read_zarr
from ckpt_core.tensors.strided import read_box

ARRAY = "model.decoder.layers.mlp.linear_fc1.weight"
KEYS = {
    "chunks": [],
    "compressor": None,
    "dtype": "<f4",
    "fill_value": None,
    "filters": None,
    "order": "C",
    "shape": [],
    "zarr_format": 2,
}


def save(
    folder: Path, values: np.ndarray, chunks: tuple[int, ...], separator: str | None = None, dtype: str | None = None
) -> None:
    """An array as tensorstore writes it: edge chunks are whole, filled up with anything."""
    folder.mkdir(parents=True)
    described = KEYS | {"chunks": list(chunks), "shape": list(values.shape), "dtype": dtype or values.dtype.str}
    if separator:
        described["dimension_separator"] = separator
    (folder / ".zarray").write_text(json.dumps(described, indent=4))
    for position in itertools.product(
        *(range(-(-length // size)) for length, size in zip(values.shape, chunks, strict=True))
    ):
        chunk = np.full(chunks, 77, values.dtype)
        part = values[
            tuple(slice(index * size, (index + 1) * size) for index, size in zip(position, chunks, strict=True))
        ]
        chunk[tuple(slice(0, length) for length in part.shape)] = part
        file = folder / ((separator or ".").join(map(str, position)) or "0")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(chunk.tobytes())


def loaded(tensor) -> np.ndarray:
    """All values of a chunked tensor, read chunk by chunk."""
    values = np.empty(tensor.shape, tensor.dtype.numpy)
    for origin, stored in tensor.stored():
        part = np.empty(stored.shape, tensor.dtype.numpy)
        read_box(
            lambda view, at, file=stored.file: view.__setitem__(slice(None), read_range(file, at, len(view))),
            stored.offset,
            stored.strides,
            part,
        )
        values[tuple(slice(start, start + size) for start, size in zip(origin, stored.shape, strict=True))] = part
    return values


@pytest.mark.parametrize(
    ("shape", "chunks", "separator"),
    [
        ((), (), None),
        ((7,), (3,), None),
        ((5, 4), (2, 3), "."),
        ((3, 10, 4), (1, 5, 4), None),
        ((2, 3), (4, 4), "/"),
        ((0, 3), (1, 3), None),
        ((2, 5, 3), (1, 2, 2), "/"),
    ],
    ids=str,
)
def test_any_grid_gives_the_values(tmp_path: Path, shape: tuple, chunks: tuple, separator: str | None) -> None:
    values = np.arange(np.prod(shape, dtype=int), dtype="<f4").reshape(shape)
    save(tmp_path / ARRAY, values, chunks, separator)
    found = read_zarr(tmp_path)
    assert found.tensors.keys() == {ARRAY}
    assert found.tensors[ARRAY].shape == shape and found.tensors[ARRAY].dtype.name == "fp32"
    np.testing.assert_array_equal(loaded(found.tensors[ARRAY]), values)


def test_bfloat16_as_tensorstore_calls_it(tmp_path: Path) -> None:
    values = torch.randn(3, 4).bfloat16()
    save(tmp_path / ARRAY, values.view(torch.int16).numpy(), (2, 4), dtype="bfloat16")
    found = read_zarr(tmp_path).tensors[ARRAY]
    assert found.dtype.name == "bf16"
    np.testing.assert_array_equal(loaded(found).view(np.int16), values.view(torch.int16).numpy())


def test_arrays_and_objects_inside_an_archive(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    save(tmp_path / "w" / "array", values, (1, 3))
    (tmp_path / "w" / "x._extra_state").mkdir()
    torch.save({"a": 1}, tmp_path / "w" / "x._extra_state" / "shard_0_1.pt")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(tmp_path / "w", "./model_weights")
    archive = tmp_path / "x.nemo"
    archive.write_bytes(out.getvalue())
    found = read_zarr(open_tree(archive).below("model_weights"))
    assert found.files == [str(archive)]
    np.testing.assert_array_equal(loaded(found.tensors["array"]), values)
    assert found.objects["x._extra_state/shard_0_1"].read() == {"a": 1}


REFUSED = {
    "compressed": ({"compressor": {"id": "blosc"}}, "compressor"),
    "filtered": ({"filters": [{"id": "delta"}]}, "filters"),
    "in Fortran order": ({"order": "F"}, "order"),
    "of zarr 3": ({"zarr_format": 3}, "zarr_format"),
    "true for a number": ({"zarr_format": True}, "zarr_format"),
    "big-endian": ({"dtype": ">f4"}, ">f4"),
    "an object dtype": ({"dtype": "|O"}, "|O"),
    "a structured dtype": ({"dtype": [["a", "<f4"]]}, "dtype"),
    "an unknown key": ({"shards": [1]}, "shards"),
    "a negative size": ({"shape": [-5, 4]}, "shape"),
    "a size that is not an integer": ({"shape": [5.0, 4]}, "shape"),
    "an endless size": ({"shape": [1 << 59, 4]}, "3.0"),
    "another size": ({"shape": [5, 7]}, "0.2"),
    "a smaller size": ({"shape": [3, 4]}, "2.0"),
    "a chunk of nothing": ({"chunks": [0, 3]}, "chunks"),
    "other chunks": ({"chunks": [2, 2]}, "0.0"),
    "too few chunk sizes": ({"chunks": [2]}, "chunk sizes"),
    "no shape": ({"shape": None}, "shape"),
}


@pytest.mark.parametrize(("change", "named"), REFUSED.values(), ids=REFUSED)
def test_a_description_that_departs_is_refused_by_name(tmp_path: Path, change: dict, named: str) -> None:
    folder = tmp_path / ARRAY
    save(folder, np.zeros((5, 4), "<f4"), (2, 3))
    described = json.loads((folder / ".zarray").read_text()) | change
    (folder / ".zarray").write_text(json.dumps(described))
    with pytest.raises(FormatError) as caught:
        read_zarr(tmp_path)
    assert named in str(caught.value) and ARRAY in str(caught.value)


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    save(tmp_path / "a", np.zeros((5, 4), "<f4"), (2, 3))
    save(tmp_path / "b", np.zeros(4, "<f4"), (2,))
    (tmp_path / "a" / "1.1").unlink()
    (tmp_path / "b" / "1").write_bytes(bytes(7))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("")
    with pytest.raises(CkptError) as caught:
        read_zarr(tmp_path)
    assert all(name in str(caught.value) for name in ("a/1.1", "b/1", "7 bytes", "c/notes.txt"))


def test_a_chunk_beyond_the_grid_is_not_overlooked(tmp_path: Path) -> None:
    save(tmp_path / "a", np.zeros(4, "<f4"), (2,))
    (tmp_path / "a" / "2").write_bytes(bytes(8))
    with pytest.raises(FormatError, match="none of them") as caught:
        read_zarr(tmp_path)
    assert caught.value.file == str(tmp_path / "a" / "2")
