"""Distributed checkpoints of torch whose tensors lie in safetensors: those of its FileSystemWriter, and of its HuggingFaceStorageWriter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.filesystem import SerializationFormat

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.testing import example, write_ir


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_ir(str(folder / "ir"), example("llama", layers=2), dtype="bf16")
    convert(folder / "ir", folder / "hf", to="hf")
    return folder / "hf"


def tensors_of(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def same_bits(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(tensor.view(torch.int16), two[name].view(torch.int16)) for name, tensor in one.items()
    )


def with_config(folder: Path, model: Path) -> Path:
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    return folder


def shards(model: Path, folder: Path, ranks: int = 3) -> Path:
    """As each rank writes its rows with save_distributed: torch 2.13 was seen to write these names and this metadata, and reads them."""
    folder.mkdir()
    for rank in range(ranks):
        parts, origins = {}, {}
        for name, tensor in tensors_of(model).items():
            rows = -(-tensor.shape[0] // ranks)
            part = tensor[rank * rows : (rank + 1) * rows]
            parts[name] = part.contiguous()
            origins[name] = {"saved_offsets": [rank * rows if len(part) else tensor.shape[0], *[0] * (tensor.ndim - 1)]}
        metadata = {"DCP_SHARDING_INFO": json.dumps(origins), "DCP_VERSION": "1.0", "format": "pt"}
        save_file(parts, folder / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors", metadata)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("nested", [False, True])
def test_containers_that_the_metadata_points_to(nested: bool, model: Path, tmp_path: Path) -> None:
    """torch 2.13 writes them, and fails to read them. An object before them is a torch file, as ever."""
    held = tensors_of(model)
    saved = {"model": held, "epoch": 3} if nested else held
    dcp.save(saved, storage_writer=dcp.FileSystemWriter(tmp_path, serialization_format=SerializationFormat.SAFETENSORS))
    assert fingerprint(with_config(tmp_path, model)) == fingerprint(model)


@pytest.mark.filterwarnings("ignore")
def test_the_shards_of_all_ranks(model: Path, tmp_path: Path) -> None:
    folder = shards(model, tmp_path / "run")
    expected = tensors_of(model)
    found = {name: torch.empty_like(tensor) for name, tensor in expected.items()}
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
    assert same_bits(found, expected)  # torch reads them so, too
    with open_checkpoint(with_config(folder, model)) as source:
        assert source.checkpoint.format == "fsdp"
    assert fingerprint(folder) == fingerprint(model)
    convert(folder, tmp_path / "hf", to="hf")
    assert same_bits(tensors_of(tmp_path / "hf"), expected)


@pytest.mark.filterwarnings("ignore")
def test_what_torch_writes_itself_with_save_distributed(model: Path, tmp_path: Path) -> None:
    mapping = {name: 1 + number % 2 for number, name in enumerate(tensors_of(model))}
    for folder, asked in ((tmp_path / "one", None), (tmp_path / "two", mapping)):
        writer = dcp.HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=asked, save_distributed=True)
        dcp.save(tensors_of(model), storage_writer=writer)
        assert fingerprint(with_config(folder, model)) == fingerprint(model)


@pytest.mark.filterwarnings("ignore")
def test_a_rank_that_had_nothing_to_save_wrote_no_file(model: Path, tmp_path: Path) -> None:
    """Two stages of a pipeline with two replicas each, and DefaultSavePlanner(dedup_save_to_lowest_rank=True): torch 2.13 leaves no file of ranks 2 and 4."""
    held = sorted(tensors_of(model).items())
    for number, part in ((1, held[::2]), (3, held[1::2])):
        origins = {name: {"saved_offsets": [0] * tensor.ndim} for name, tensor in part}
        metadata = {"DCP_SHARDING_INFO": json.dumps(origins), "DCP_VERSION": "1.0", "format": "pt"}
        save_file(dict(part), tmp_path / f"shard-{number:05d}-model-00001-of-00001.safetensors", metadata)
    assert fingerprint(with_config(tmp_path, model)) == fingerprint(model)
    (tmp_path / "shard-00001-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(CkptError, match="the files of rank 1 are missing"):
        fingerprint(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_what_is_not_whole_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    def remove(number: int):
        return lambda folder: (folder / f"shard-{number:05d}-model-00001-of-00001.safetensors").unlink()

    def say(origins: object):
        def change(folder: Path) -> None:
            file = folder / "shard-00002-model-00001-of-00001.safetensors"
            said = json.dumps({name: {"saved_offsets": origins} for name in load_file(file)})
            save_file(load_file(file), file, {"DCP_SHARDING_INFO": said})

        return change

    def turn(folder: Path) -> None:
        file = folder / "shard-00002-model-00001-of-00001.safetensors"
        held = {name: tensor.reshape(*tensor.shape, 1) for name, tensor in load_file(file).items()}
        said = json.dumps({name: {"saved_offsets": [0] * tensor.ndim} for name, tensor in held.items()})
        save_file(held, file, {"DCP_SHARDING_INFO": said})

    for number, (change, message) in enumerate(
        (
            (turn, "have different numbers of axes"),
            (remove(1), "the files of rank 1 are missing"),
            (remove(2), "the files of rank 2 are missing"),
            (
                remove(3),
                "embed_tokens|does not have the shape",
            ),  # nothing in the folder speaks of it, but the model does
            (say(None), "does not say which part of"),
            (say([-1, 0]), "does not say which part of"),
            (say([0, 0]), "does not say which part of|do not tile it"),
        )
    ):
        folder = with_config(shards(model, tmp_path / str(number)), model)
        change(folder)
        with pytest.raises(CkptError, match=message):
            convert(folder, tmp_path / "no", to="ir")


@pytest.mark.filterwarnings("ignore")
def test_a_container_that_is_not_what_the_metadata_says(model: Path, tmp_path: Path) -> None:
    held = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(5.0)}
    dcp.save(held, storage_writer=dcp.FileSystemWriter(tmp_path, serialization_format=SerializationFormat.SAFETENSORS))
    file = tmp_path / "__0_0.distcp"
    data = file.read_bytes()
    for bad, message in (
        (data.replace(b'"shape":[2,3]', b'"shape":[3,2]'), "is not what the checkpoint's metadata says"),
        (data.replace(b'\\"saved_offsets\\": [0, 0]', b'\\"saved_offsets\\": [1, 0]'), "is not what the checkpoint's metadata says"),
        (data.replace(b'"b":{', b'"c":{'), "is not what the checkpoint's metadata says"),
        (b"\xff" * 8 + data[8:], "safetensors header does not fit"),
        (data[:-4], "outside the file|does not fit its bytes"),
    ):  # fmt: skip
        assert bad != data
        file.write_bytes(bad)
        with pytest.raises(CkptError, match=message):
            convert(with_config(tmp_path, model), tmp_path / "no", to="ir")
