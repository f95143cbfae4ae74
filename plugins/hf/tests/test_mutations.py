"""One thing wrong in an HF folder of several shards: refused by name, with nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_core import convert, fingerprint
from ckpt_tests import tiny
from ckpt_tests.program import assert_refused, ckpt

INDEX = "model.safetensors.index.json"
NAME = "model.layers.1.self_attn.k_proj.weight"
Mutation = Callable[[Path], list[str]]
"""Changes the folder in place and returns what the error must name."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in four or more shards, written by transformers."""
    folder = tmp_path_factory.mktemp("original") / "hf"
    tiny.build(folder, "llama", shard="60KB", attention_bias=True)
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def index_of(folder: Path) -> dict:
    return json.loads((folder / INDEX).read_text())


def shard_of(folder: Path, name: str = NAME) -> Path:
    return folder / index_of(folder)["weight_map"][name]


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    held = load_file(path)
    change(held)
    save_file(held, path, metadata={"format": "pt"})


def reindex(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    index = index_of(folder)
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def drop_from_shard(folder: Path) -> list[str]:
    path = shard_of(folder)
    rewrite(path, lambda held: held.pop(NAME))
    return [NAME, path.name, "missing"]


def drop_from_shard_and_index(folder: Path) -> list[str]:
    rewrite(shard_of(folder), lambda held: held.pop(NAME))
    reindex(folder, lambda names: names.pop(NAME))
    return [NAME, "missing"]


def drop_from_index(folder: Path) -> list[str]:
    path = shard_of(folder)
    reindex(folder, lambda names: names.pop(NAME))
    return [NAME, path.name, "not in the index"]


def rename(folder: Path) -> list[str]:
    wrong = NAME.replace("k_proj", "k_porj")
    rewrite(shard_of(folder), lambda held: held.update({wrong: held.pop(NAME)}))
    reindex(folder, lambda names: names.update({wrong: names.pop(NAME)}))
    return [NAME, wrong, "missing", "not part of this architecture", f"did you mean '{wrong}'"]


def add(folder: Path) -> list[str]:
    rewrite(shard_of(folder), lambda held: held.update({"model.layers.0.extra": torch.ones(2)}))
    reindex(folder, lambda names: names.update({"model.layers.0.extra": shard_of(folder).name}))
    return ["model.layers.0.extra", "not part of this architecture"]


def in_two_shards(folder: Path) -> list[str]:
    path = shard_of(folder)
    other = next(p for p in sorted(folder.glob("*.safetensors")) if p != path)
    held = load_file(path)[NAME]
    rewrite(other, lambda tensors: tensors.update({NAME: held}))
    return [NAME, path.name, other.name, "two files"]


def twice_in_a_header(folder: Path) -> list[str]:
    path = shard_of(folder)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].decode().rstrip()
    entry = json.dumps(json.loads(header)[NAME])
    text = (header[:-1] + f', "{NAME}": {entry}}}').encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return [NAME, path.name, "occurs twice"]


def index_names_another_shard(folder: Path) -> list[str]:
    """The tensor is there, but not where the index says."""
    path = shard_of(folder)
    other = next(p for p in sorted(folder.glob("*.safetensors")) if p != path)
    reindex(folder, lambda names: names.update({NAME: other.name}))
    return [NAME, other.name]


def remove_a_shard(folder: Path) -> list[str]:
    path = shard_of(folder)
    path.unlink()
    return [path.name]


def index_leaves_the_folder(folder: Path) -> list[str]:
    path = shard_of(folder)
    outside = folder.parent / "outside.safetensors"
    shutil.copy(path, outside)
    reindex(folder, lambda names: names.update({NAME: "../outside.safetensors"}))
    return ["../outside.safetensors", INDEX]


def index_is_absolute(folder: Path) -> list[str]:
    path = shard_of(folder)
    reindex(folder, lambda names: names.update({NAME: str(path)}))
    return [str(path), INDEX]


def index_without_map(folder: Path) -> list[str]:
    (folder / INDEX).write_text('{"metadata": {}}')
    return [INDEX, "weight_map"]


def index_with_numbers(folder: Path) -> list[str]:
    reindex(folder, lambda names: names.update({NAME: 3}))
    return [INDEX, "weight_map"]


def index_no_json(folder: Path) -> list[str]:
    (folder / INDEX).write_text("{")
    return [INDEX, "not valid JSON"]


def index_empty(folder: Path) -> list[str]:
    reindex(folder, dict.clear)
    return [INDEX, "outside the files that are read", "model-00001-of-"]


def transpose(folder: Path) -> list[str]:
    rewrite(shard_of(folder), lambda held: held.update({NAME: held[NAME].T.contiguous()}))
    return [NAME, "shape (96, 32)", "shape (32, 96)", "(g d) h"]


def reshape(folder: Path) -> list[str]:
    rewrite(shard_of(folder), lambda held: held.update({NAME: held[NAME].reshape(4, 8, 96)}))
    return [NAME, "shape (4, 8, 96)"]


def one_row_less(folder: Path) -> list[str]:
    rewrite(shard_of(folder), lambda held: held.update({NAME: held[NAME][:-1].contiguous()}))
    return [NAME, "shape (31, 96)"]


def as_integers(folder: Path) -> list[str]:
    rewrite(shard_of(folder), lambda held: held.update({NAME: held[NAME].to(torch.int64)}))
    return ["layers.1.attention.k.weight", "int64", shard_of(folder).name]


def truncate(folder: Path) -> list[str]:
    path = shard_of(folder)
    path.write_bytes(path.read_bytes()[:-1])
    return [path.name]


def truncate_in_the_header(folder: Path) -> list[str]:
    path = shard_of(folder)
    path.write_bytes(path.read_bytes()[:100])
    return [path.name, "header does not fit"]


def overlap(folder: Path) -> list[str]:
    """Two tensors in the same bytes."""
    path = shard_of(folder)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    sizes = {
        name: entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }
    other = next(name for name in sizes if name != NAME and sizes[name] >= sizes[NAME])
    start = header[other]["data_offsets"][0]
    header[NAME]["data_offsets"] = [start, start + sizes[NAME]]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return [path.name, "gap or overlaps"]


def not_a_number(folder: Path) -> list[str]:
    path = shard_of(folder)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"data_offsets":[', b'"data_offsets":[-', 1))
    return [path.name]


def config(change: Callable[[dict], object], *names: str) -> Mutation:
    def mutate(folder: Path) -> list[str]:
        held = json.loads((folder / "config.json").read_text())
        change(held)
        (folder / "config.json").write_text(json.dumps(held))
        return list(names)

    return mutate


def no_config(folder: Path) -> list[str]:
    (folder / "config.json").unlink()
    return ["config.json"]


MUTATIONS: dict[str, Mutation] = {
    **{
        function.__name__: function
        for function in (
            drop_from_shard, drop_from_shard_and_index, drop_from_index, rename, add, in_two_shards, twice_in_a_header, index_names_another_shard,
            remove_a_shard, index_leaves_the_folder, index_is_absolute, index_without_map, index_with_numbers, index_no_json, index_empty,
            transpose, reshape, one_row_less, as_integers, truncate, truncate_in_the_header, overlap, not_a_number,
        )
    },
    "unknown key": config(lambda held: held.update(num_atention_heads=3), "'num_atention_heads'", "did you mean 'num_attention_heads'", "config.json"),
    "missing key": config(lambda held: held.pop("hidden_size"), "'hidden_size' is missing", "config.json"),
    "missing model_type": config(lambda held: held.pop("model_type"), "model_type", "config.json"),
    "another model_type": config(lambda held: held.update(model_type="gpt_neo"), "gpt_neo", "config.json"),
    "a family it is not": config(lambda held: held.update(model_type="mistral"), "'LlamaForCausalLM'", "another model_type than 'mistral'"),
    "fewer biases": config(lambda held: held.update(attention_bias=False), "self_attn.k_proj.bias", "not part of this architecture"),
    "a layer more": config(lambda held: held.update(num_hidden_layers=4), "model.layers.3", "missing"),
    "a layer less": config(lambda held: held.update(num_hidden_layers=2), "model.layers.2", "not part of this architecture"),
    "more heads": config(lambda held: held.update(num_attention_heads=16), "self_attn.q_proj", "shape"),
    "another vocabulary": config(lambda held: held.update(vocab_size=60), "embed_tokens", "lm_head", "shape"),
    "quantised": config(lambda held: held.update(quantization_config={"bits": 4}), "quantization_config"),
}  # fmt: skip


@pytest.mark.parametrize("to", ["nanotron", "ir", "hf"])
@pytest.mark.parametrize("mutate", MUTATIONS.values(), ids=MUTATIONS)
def test_one_thing_wrong_is_refused(original: Path, mutate: Mutation, to: str, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(original, folder)
    assert_refused(folder, *mutate(folder), to=to)


def test_nothing_wrong_is_not_refused(original: Path, tmp_path: Path) -> None:
    code, text = ckpt("convert", original, tmp_path / "ir", "--to", "ir")
    assert code == 0, text


def test_a_folder_without_config_is_not_recognised(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "hf")
    no_config(tmp_path / "hf")
    assert_refused(tmp_path / "hf", "no config that says of which model", to="ir")
    assert_refused(tmp_path / "hf", "no config.json", to="ir", arguments=("--from", "hf"))


def test_weights_alone_are_read_with_a_config_from_elsewhere(original: Path, tmp_path: Path) -> None:
    """As the errors say it: a folder without a config, a file of a name of its own in one, and a state dict by itself."""
    wanted = fingerprint(original)
    shutil.copytree(original, tmp_path / "hf")
    no_config(tmp_path / "hf")
    given = {"format": "hf", "config": original / "config.json"}
    assert fingerprint(tmp_path / "hf", **given) == wanted
    held = {name: tensor for path in original.glob("*.safetensors") for name, tensor in load_file(path).items()}
    (tmp_path / "saved").mkdir()
    torch.save({"model": held, "epoch": 3}, tmp_path / "saved/epoch3.pt")
    (tmp_path / "saved/diary.txt").write_text("not of the model")
    convert(tmp_path / "saved/epoch3.pt", tmp_path / "out", to="hf", **given)
    assert fingerprint(tmp_path / "out") == wanted and not (tmp_path / "out/diary.txt").exists()
    assert_refused(tmp_path / "saved/epoch3.pt", "may be a file of weights", "--from hf --config FILE", to="ir")
    assert_refused(
        tmp_path / "saved", "under the usual names", "-o weight_files=epoch3.pt", to="ir",
        arguments=("--from", "hf", "--config", str(given["config"])),
    )  # fmt: skip
    assert fingerprint(tmp_path / "saved", options={"weight_files": "epoch3.pt"}, **given) == wanted


TIED = [("the same", 0.0, 0), ("another by one bit", 1e-3, 1)]


@pytest.mark.parametrize(("name", "change", "code"), TIED, ids=[name for name, _, _ in TIED])
def test_the_stored_head_of_a_tied_model_must_be_the_embedding(
    name: str, change: float, code: int, tmp_path: Path
) -> None:
    folder = tmp_path / "hf"
    tiny.build(folder, "llama", tie_word_embeddings=True)

    def add_head(held: dict[str, torch.Tensor]) -> None:
        head = held["model.embed_tokens.weight"].clone()
        head[17, 5] += change
        held["lm_head.weight"] = head

    rewrite(folder / "model.safetensors", add_head)
    if code == 0:
        assert ckpt("convert", folder, tmp_path / "out", "--to", "nanotron")[0] == 0
    else:
        assert_refused(
            folder,
            "two copies of embedding.tokens.weight differ",
            "model.safetensors",
            "tied head",
            "the same file",
            to="nanotron",
        )
