"""One thing wrong in a nanotron checkpoint: refused by name, with nothing written. Every golden, every way."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_tests import nanotron
from ckpt_tests.goldens import Golden, each
from ckpt_tests.program import assert_refused, ckpt

Mutation = Callable[[Path], list[str]]
"""Changes the step folder in place and returns what the error must name."""


def files(step: Path, sharded: bool | None = None) -> list[Path]:
    found = sorted((step / "model").rglob("*.safetensors"))
    return [path for path in found if sharded is None or ("_tp-rank-" in path.name) == sharded]


def matrix(step: Path) -> Path:
    """A weight of two dimensions inside a layer."""
    return next(path for path in files(step) if "decoder" in str(path) and nanotron.data_of(path).dim() == 2)


def name_of(path: Path, step: Path) -> str:
    """The full name of the parameter in a file."""
    return nanotron.parameter_of(nanotron.usual_name(str(path.relative_to(step / "model"))))


def save(path: Path, data: torch.Tensor, metadata: dict[str, str] | None = None) -> None:
    save_file({"data": data}, path, metadata=nanotron.metadata_of(path) if metadata is None else metadata)


# --- tensors -------------------------------------------------------------------------------------------------------------


def drop_a_tensor(step: Path) -> list[str]:
    path = files(step, sharded=False)[0]
    path.unlink()
    return [name_of(path, step), "missing"]


def drop_a_folder(step: Path) -> list[str]:
    folder = matrix(step).parent
    name = ".".join(folder.relative_to(step / "model").parts)
    shutil.rmtree(folder)
    return [name, "missing"]


def drop_a_layer(step: Path) -> list[str]:
    shutil.rmtree(step / "model" / "model" / "decoder" / "1")
    return ["model.decoder.1.pp_block", "missing"]


def drop_all_tensors(step: Path) -> list[str]:
    for path in files(step):
        path.unlink()
    return ["there are no parameters here"]


def rename_a_tensor(step: Path) -> list[str]:
    folder = files(step, sharded=False)[0].parent
    folder.rename(folder.with_name("input_layer_norm"))
    return ["missing", "input_layer_norm", "not part of this architecture", "did you mean"]


def rename_a_file(step: Path) -> list[str]:
    path = files(step)[0]
    path.rename(path.with_name("weight.safetensors"))
    return [str(path.with_name("weight.safetensors")), "a file that no nanotron release writes"]


def add_a_tensor(step: Path) -> list[str]:
    path = step / "model" / "model" / "decoder" / "0" / "pp_block" / "extra" / "model_weight.safetensors"
    path.parent.mkdir()
    save_file({"data": torch.ones(3)}, path)
    return ["model.decoder.0.pp_block.extra.weight", "not part of this architecture"]


def add_a_layer(step: Path) -> list[str]:
    layers = step / "model" / "model" / "decoder"
    shutil.copytree(layers / "0", layers / "9")
    return ["model.decoder.9.pp_block", "not part of this architecture"]


def add_a_stray_file(step: Path) -> list[str]:
    (step / "model" / "model" / "notes.txt").write_text("hello")
    return ["notes.txt"]


def store_whole_and_in_shards(step: Path) -> list[str]:
    path = files(step, sharded=True)[0]
    save_file({"data": nanotron.data_of(path)}, path.with_name("model_weight.safetensors"))
    return [name_of(path, step), "stored whole and in shards"]


def give_a_norm_a_second_file(step: Path) -> list[str]:
    path = files(step, sharded=False)[0]
    shutil.copy(path, path.with_name(path.name.replace("model_", "model_model_", 1)))
    return [name_of(path, step), "stored whole and in shards"]


def two_tensors_in_a_file(step: Path) -> list[str]:
    path = files(step)[0]
    save_file({"data": nanotron.data_of(path), "data2": torch.ones(2)}, path, metadata=nanotron.metadata_of(path))
    return [str(path), "one tensor called data"]


def another_key_in_a_file(step: Path) -> list[str]:
    path = files(step)[0]
    save_file({"weight": nanotron.data_of(path)}, path, metadata=nanotron.metadata_of(path))
    return [str(path), "one tensor called data", "weight"]


# --- shapes and bytes ------------------------------------------------------------------------------------------------------


def transpose(step: Path) -> list[str]:
    path = next((path for path in files(step, sharded=False) if nanotron.data_of(path).dim() == 1), None)
    data = nanotron.data_of(path)
    save(path, data.reshape(1, -1))
    return [name_of(path, step), "shape"]


def reshape_a_shard(step: Path) -> list[str]:
    path = matrix(step)
    data = nanotron.data_of(path)
    save(
        path,
        data.reshape(data.shape[1], data.shape[0]).contiguous()
        if data.shape[0] != data.shape[1]
        else data.reshape(1, *data.shape),
    )
    return [path.name if "_tp-" in path.name else name_of(path, step)]


def one_row_less(step: Path) -> list[str]:
    path = matrix(step)
    save(path, nanotron.data_of(path)[:-1].contiguous())
    return [path.name if "_tp-" in path.name else name_of(path, step)]


def one_element_more_in_a_norm(step: Path) -> list[str]:
    path = files(step, sharded=False)[0]
    save(path, torch.cat([nanotron.data_of(path), torch.ones(1)]))
    return [name_of(path, step), "shape"]


def as_integers(step: Path) -> list[str]:
    path = files(step, sharded=False)[0]
    save(path, nanotron.data_of(path).to(torch.int32))
    return [str(path), "int32"]


def truncate(step: Path) -> list[str]:
    path = matrix(step)
    path.write_bytes(path.read_bytes()[:-3])
    return [str(path)]


def empty(step: Path) -> list[str]:
    path = matrix(step)
    path.write_bytes(b"")
    return [str(path), "too short"]


def garbage_at_the_end(step: Path) -> list[str]:
    path = matrix(step)
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")
    return [str(path), "wrong length"]


def corrupt_header(step: Path) -> list[str]:
    path = matrix(step)
    data = bytearray(path.read_bytes())
    data[9] = ord("?")
    path.write_bytes(data)
    return [str(path), "not valid JSON"]


def header_that_lies_about_its_length(step: Path) -> list[str]:
    path = matrix(step)
    data = path.read_bytes()
    path.write_bytes((1 << 40).to_bytes(8, "little") + data[8:])
    return [str(path), "header does not fit"]


def header_with_another_dtype(step: Path) -> list[str]:
    path = matrix(step)
    data = path.read_bytes()
    path.write_bytes(
        re.sub(
            rb'"(F32|BF16)"',
            lambda match: b'"F64"' if match[1] == b"F32" else b'"F128"'[: len(match[0])],
            data,
            count=1,
        )
    )
    return [str(path)]


# --- shards ------------------------------------------------------------------------------------------------------------------


def remove_a_shard(step: Path) -> list[str]:
    path = files(step, sharded=True)[-1]
    path.unlink()
    return [
        nanotron.parameter_of(nanotron.usual_name(str(path.relative_to(step / "model")))),
        "missing" if "-of-1." in path.name else "rank",
    ]


def a_stale_shard_of_another_layout(step: Path) -> list[str]:
    path = files(step, sharded=True)[0]
    other = re.sub(r"tp-rank-\d+-of-\d+", "tp-rank-0-of-3", path.name)
    shutil.copy(path, path.with_name(other))
    return [name_of(path, step), "not one per tensor parallel rank", other]


def one_parameter_of_another_layout(step: Path) -> list[str]:
    path = files(step, sharded=True)[0]
    for shard in path.parent.glob("*_pp-rank-*"):
        shard.rename(shard.with_name(re.sub(r"pp-rank-(\d+)-of-\d+", r"pp-rank-\1-of-7", shard.name)))
    return ["several parallel layouts", "pp=7"]


def two_pipeline_stages_hold_one_parameter(step: Path) -> list[str]:
    path = files(step, sharded=True)[0]
    other = re.sub(r"pp-rank-\d+-of-\d+", "pp-rank-5-of-6", path.name)
    shutil.copy(path, path.with_name(other))
    return [name_of(path, step), other]


def expert_parallel_shards(step: Path) -> list[str]:
    path = files(step, sharded=True)[0]
    other = path.with_name(re.sub(r"(-of-\d+)\.safetensors$", r"\1_exp-rank-0-of-2.safetensors", path.name))
    path.rename(other)
    return [str(other), "expert parallel"]


# --- metadata ------------------------------------------------------------------------------------------------------------------


def metadata(change: Callable[[dict[str, str]], None], *names: str) -> Mutation:
    """Change the metadata of one shard."""

    def mutate(step: Path) -> list[str]:
        path = next(path for path in files(step, sharded=True) if "decoder" in str(path))
        held = nanotron.metadata_of(path)
        change(held)
        save(path, nanotron.data_of(path), held)
        said = {"PATH": str(path), "FOLDER": path.parent.name}
        return [said.get(name, name) for name in names]

    return mutate


GLOBAL = r"#((?:None,None,None\|)?)(\d+),(\d+),"  # the first global slice that has numbers


def shifted(held: dict[str, str]) -> None:
    """The last global slice one place further on, as long as it was."""
    head, _, last = held["local_global_slices_pairs"].rpartition("#")
    held["local_global_slices_pairs"] = (
        head + "#" + re.sub(r"(\d+),(\d+),", lambda m: f"{int(m[1]) + 1},{int(m[2]) + 1},", last, count=1)
    )


def moved(held: dict[str, str]) -> None:
    """The first global slice one place further on, onto the next chunk or another shard's."""
    pairs = held["local_global_slices_pairs"]
    held["local_global_slices_pairs"] = re.sub(
        GLOBAL, lambda m: f"#{m[1]}{int(m[2]) + 1},{int(m[3]) + 1},", pairs, count=1
    )


def shorter(held: dict[str, str]) -> None:
    held["local_global_slices_pairs"] = re.sub(
        GLOBAL, lambda m: f"#{m[1]}{m[2]},{int(m[3]) - 1},", held["local_global_slices_pairs"], count=1
    )


def without_slices(held: dict[str, str]) -> None:
    del held["local_global_slices_pairs"]


def without_shape(held: dict[str, str]) -> None:
    del held["unsharded_shape"]


def with_step(held: dict[str, str]) -> None:
    held["local_global_slices_pairs"] = re.sub(
        r"(\d+),(\d+),None", r"\1,\2,2", held["local_global_slices_pairs"], count=1
    )


def negative(held: dict[str, str]) -> None:
    held["local_global_slices_pairs"] = re.sub(
        r"#((?:None,None,None\|)?)(\d+),", r"#\1-\2,", held["local_global_slices_pairs"], count=1
    )


def another_shape(held: dict[str, str]) -> None:
    held["unsharded_shape"] = "(" + ", ".join(str(size * 2) for size in nanotron.shape_in(held)) + ",)"


def code_as_shape(held: dict[str, str]) -> None:
    held["unsharded_shape"] = "(__import__('os').getpid(), 3)"


# --- config --------------------------------------------------------------------------------------------------------------------


def config(change: Callable[[dict], None], *names: str) -> Mutation:
    """Change model_config.json, and let no config.yaml object first."""

    def mutate(step: Path) -> list[str]:
        path = step / "model_config.json"
        (step / "config.yaml").unlink()
        held = json.loads(path.read_text())
        change(held)
        path.write_text(json.dumps(held))
        return list(names)

    return mutate


def text_of_config(text: str, *names: str) -> Mutation:
    def mutate(step: Path) -> list[str]:
        path = step / "model_config.json"
        path.write_text(text.replace("CONFIG", path.read_text().strip()[1:-1]))
        return ["model_config.json", *names]

    return mutate


def config_that_its_twin_contradicts(step: Path) -> list[str]:
    path = step / "model_config.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"num_hidden_layers": held["num_hidden_layers"] + 1}))
    return ["num_hidden_layers", "model_config.json", "config.yaml"]


def wider(held: dict) -> None:
    held = held["moe_config"] if held.get("moe_config") else held
    key = "moe_intermediate_size" if "moe_intermediate_size" in held else "intermediate_size"
    held[key] += 2


def not_a_multiple(held: dict) -> None:
    held["num_attention_heads"] += 1


def without_marker(held: dict) -> None:
    for marker in ("is_llama_config", "is_qwen2_config", "is_starcoder2_config"):
        held.pop(marker, None)


def two_markers(held: dict) -> None:
    held |= {"is_llama_config": True, "is_qwen2_config": True}


MUTATIONS: dict[str, Mutation] = {
    **{
        function.__name__: function
        for function in (
            drop_a_tensor, drop_a_folder, drop_a_layer, drop_all_tensors, rename_a_tensor, rename_a_file, add_a_tensor, add_a_layer, add_a_stray_file,
            store_whole_and_in_shards, give_a_norm_a_second_file, two_tensors_in_a_file, another_key_in_a_file, transpose, reshape_a_shard,
            one_row_less, one_element_more_in_a_norm, as_integers, truncate, empty, garbage_at_the_end, corrupt_header,
            header_that_lies_about_its_length, header_with_another_dtype, remove_a_shard, a_stale_shard_of_another_layout,
            one_parameter_of_another_layout, two_pipeline_stages_hold_one_parameter, expert_parallel_shards,
        )
    },
    "the last slice shifted": metadata(shifted, "FOLDER"),
    "the first slice shifted": metadata(moved, "FOLDER"),
    "a slice too short": metadata(shorter, "PATH", "differ in size"),
    "no slices": metadata(without_slices, "PATH", "local_global_slices_pairs"),
    "no whole shape": metadata(without_shape, "PATH", "unsharded_shape"),
    "a slice with a step": metadata(with_step, "PATH", "start,stop,step"),
    "a negative slice": metadata(negative, "PATH", "start,stop,step"),
    "another whole shape": metadata(another_shape, "FOLDER"),
    "code as a shape": metadata(code_as_shape, "PATH", "unsharded_shape is not a shape"),
    "unknown key": config(lambda held: held.update(rope_tetha=1.0), "unknown config key 'rope_tetha'", "model_config.json"),
    "missing key": config(lambda held: held.pop("hidden_size"), "'hidden_size' is missing", "model_config.json"),
    "missing layers": config(lambda held: held.pop("num_hidden_layers"), "num_hidden_layers", "model_config.json"),
    "missing vocabulary": config(lambda held: held.pop("vocab_size"), "'vocab_size' is missing", "model_config.json"),
    "a word for a number": config(lambda held: held.update(hidden_size="wide"), "hidden_size", "model_config.json"),
    "a list for a number": config(lambda held: held.update(num_attention_heads=[4]), "num_attention_heads", "model_config.json"),
    "a fraction of a layer": config(lambda held: held.update(num_hidden_layers=1.5), "not a number of layers", "model_config.json"),
    "no layers": config(lambda held: held.update(num_hidden_layers=0), "not a number of layers", "model_config.json"),
    "a layer more": config(lambda held: held.update(num_hidden_layers=held["num_hidden_layers"] + 1), "is missing"),
    "another width": config(wider, "pp_block", "shape"),
    "its twin says otherwise": config_that_its_twin_contradicts,
    "another vocabulary": config(lambda held: held.update(vocab_size=held["vocab_size"] + 2), "token_embedding.weight", "shape"),
    "heads that do not divide": config(not_a_multiple, "att"),
    "no marker": config(without_marker, "which nanotron model", "model_config.json"),
    "two markers": config(two_markers, "which nanotron model", "model_config.json"),
    "config is not JSON": text_of_config("{CONFIG,,}", "not valid JSON"),
    "config is a list": text_of_config("[1, 2]", "not an object"),
    "config with a key twice": text_of_config('{CONFIG, "vocab_size": 3}', "'vocab_size' occurs twice"),
    "config with a NaN": text_of_config('{"rope_theta": NaN, CONFIG}'),
}  # fmt: skip


def copied(golden: Golden, folder: Path) -> Path:
    """A copy of a golden to spoil: the step folder."""
    shutil.copytree(golden.checkpoint, folder / "run")
    return nanotron.step_of(folder / "run")


@each("nanotron")
@pytest.mark.parametrize("mutate", MUTATIONS.values(), ids=MUTATIONS)
def test_one_thing_wrong_is_refused(golden: Golden, mutate: Mutation, tmp_path: Path) -> None:
    step = copied(golden, tmp_path)
    assert_refused(step.parent, *mutate(step), to="hf")


@each("nanotron")
def test_nothing_wrong_is_not_refused(golden: Golden, tmp_path: Path) -> None:
    step = copied(golden, tmp_path)
    code, text = ckpt("convert", step.parent, tmp_path / "hf", "--to", "hf")
    assert code == 0, text


@each("nanotron")
def test_everything_wrong_is_reported_at_once(golden: Golden, tmp_path: Path) -> None:
    step = copied(golden, tmp_path)
    one, two = files(step, sharded=False)[:2]
    names = [name_of(one, step), name_of(two, step)]
    for path in (one, two):
        path.unlink()
    assert_refused(step.parent, *names, *add_a_tensor(step), to="hf")


def latest(text: str) -> Callable[[Path], None]:
    return lambda run: (run / "latest.txt").write_text(text) and None


RUNS = {
    "latest.txt names no step": (latest("99"), "99"),
    "latest.txt is not a number": (latest("../0"), "latest.txt"),
}


@each("nanotron", lambda golden: golden.case["tp"] == 2)
@pytest.mark.parametrize(("change", "name"), RUNS.values(), ids=RUNS)
def test_a_run_folder_that_points_nowhere_is_refused(
    golden: Golden, change: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    run = copied(golden, tmp_path).parent
    change(run)
    assert_refused(run, name, to="hf", arguments=("--from", "nanotron"))
