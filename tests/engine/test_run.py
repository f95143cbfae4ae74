"""What a conversion leaves and what it does not touch: plans, publishing, executors, receipts."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.api import digests, plan_conversion
from ckpt_core.architecture import from_json
from ckpt_core.engine import run
from ckpt_core.engine.executors import executor_for
from ckpt_core.engine.run import Progress
from ckpt_core.errors import CkptError
from ckpt_core.receipt.places import RECEIPT
from ckpt_tests import tiny
from ckpt_tests.folders import assert_same_bits, contents
from ckpt_tests.models import weights
from ckpt_tests.program import ckpt

WAYS = {
    "hf": {"to": "hf"},
    "hf in shards": {"to": "hf", "options": {"max_shard_size": "40KB"}},
    "hf as .bin": {"to": "hf", "options": {"container": "bin"}},
    "nanotron": {"to": "nanotron", "tp": 4, "pp": 3},
    "nanotron, interleaved": {"to": "nanotron", "tp": 2, "options": {"rope_interleaved": "true"}},
    "nanotron in bf16": {"to": "nanotron", "tp": 2, "dtype": "bf16"},
    "ir": {"to": "ir"},
    "ir in shards": {"to": "ir", "options": {"max_shard_size": "40KB"}},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    tiny.build(folder, "llama")
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    return folder


def without_receipt(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in contents(folder).items() if name != RECEIPT}


# --- the plan ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", WAYS.values(), ids=WAYS)
def test_a_plan_touches_nothing_and_foretells_every_byte(model: Path, arguments: dict, tmp_path: Path) -> None:
    before = contents(model)
    plan = plan_conversion(model, tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())
    assert contents(model) == before
    convert(model, tmp_path / "out", **arguments)
    sizes = {name: (tmp_path / "out" / name).stat().st_size for name in without_receipt(tmp_path / "out")}
    foretold = {file.path: file.size for file in plan.target.files}
    foretold |= {path: len(data) for path, data in plan.target.documents.items()}
    foretold |= {path: sidecar.size for path, sidecar in plan.target.sidecars.items()}
    assert sizes == foretold
    assert plan.bytes_written == sum(sizes.values())
    assert plan.bytes_read == sum(tensor.nbytes for tensor in weights(model).values())


def test_a_dry_run_prints_the_plan_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    code, text = ckpt(
        "convert", model, tmp_path / "out", "--to", "nanotron", "--tp", "2", "--dtype", "bf16", "--dry-run", "--json"
    )
    assert code == 0
    assert not list(tmp_path.iterdir())
    said = json.loads(text)
    plan = plan_conversion(model, tmp_path / "out", to="nanotron", tp=2, dtype="bf16")
    assert {file["path"]: file["bytes"] for file in said["files"]} == {
        file.path: file.size for file in plan.target.files
    }
    assert (said["bytes_read"], said["bytes_written"], said["peak_memory"]) == (
        plan.bytes_read,
        plan.bytes_written,
        plan.peak_memory,
    )
    settings, rounded = said["losses"]
    assert settings["subject"] == "settings of the run: config.json: 4 keys"
    assert rounded == {"kind": "rounded", "subject": "30 tensors", "reason": "fp32 values stored as bf16"}


def test_a_plan_hash_sees_what_is_asked_and_what_is_read(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "hf"
    shutil.copytree(model, copy)
    asked = [{"to": "nanotron"}, {"to": "nanotron", "tp": 2}, {"to": "nanotron", "dtype": "bf16"}, {"to": "hf"}]
    hashes = [plan_conversion(copy, tmp_path / "out", **arguments).hash for arguments in asked]
    assert hashes[0] == plan_conversion(copy, tmp_path / "out", to="nanotron").hash
    os.utime(copy / "model.safetensors", ns=(1, 1))
    hashes.append(plan_conversion(copy, tmp_path / "out", to="nanotron").hash)
    assert len(set(hashes)) == len(hashes)


# --- the result -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", WAYS.values(), ids=WAYS)
def test_the_same_conversion_gives_the_same_bytes(model: Path, arguments: dict, tmp_path: Path) -> None:
    found = []
    for workers in (1, 3):
        convert(model, tmp_path / "out", **arguments, workers=workers)
        found.append(contents(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out")
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "arguments", [{"to": "nanotron", "tp": 2}, {"to": "hf"}, {"to": "ir"}], ids=["nanotron", "hf", "ir"]
)
def test_small_pieces_give_the_same_bytes(
    model: Path, arguments: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of a few elements: boxes then begin and end inside rows, heads and rotary pairs. One by one, where there are few."""
    convert(model, tmp_path / "whole", **arguments)
    plan = plan_conversion(model, tmp_path / "pieces", **arguments)
    plan.tensors = [
        replace(transfer, chunk=1 if math.prod(transfer.assembly.parameter.shape) < 500 else chunk)
        for transfer, chunk in zip(plan.tensors, [1021, 7, 501, 96, 37] * 99, strict=False)
    ]
    run.run_plan(plan, str(tmp_path / "pieces"))
    volatile = {RECEIPT, "0/config.yaml"}  # these name the destination or the plan
    whole, pieces = (
        {name: held for name, held in contents(tmp_path / side).items() if name not in volatile}
        for side in ("whole", "pieces")
    )
    assert pieces == whole


def test_a_link_out_of_the_checkpoint_is_not_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("not a part of any model")
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model/tokenizer.json").unlink()
    (tmp_path / "model/tokenizer.json").symlink_to(tmp_path / "private")
    with pytest.raises(CkptError, match=r"tokenizer\.json is a link that leads out of the checkpoint"):
        convert(tmp_path / "model", tmp_path / "out", to="nanotron")
    assert not (tmp_path / "out").exists()


def test_the_links_of_the_hubs_cache_are(model: Path, tmp_path: Path) -> None:
    (tmp_path / "repository/blobs").mkdir(parents=True)
    (tmp_path / "repository/snapshots").mkdir()
    (tmp_path / "repository/blobs/0123").write_text("{}")
    snapshot = shutil.copytree(model, tmp_path / "repository/snapshots/abcdef")
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to("../../blobs/0123")
    convert(snapshot, tmp_path / "out", to="hf")
    assert (tmp_path / "out/tokenizer.json").read_text() == "{}"


def test_sidecars_travel_through_every_format(model: Path, tmp_path: Path) -> None:
    names = ["tokenizer.json", "generation_config.json", "additional_chat_templates/tools.jinja"]
    convert(model, tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "run", to="nanotron", dtype="fp32")
    convert(tmp_path / "run", tmp_path / "hf", to="hf")
    for name in names:
        assert (tmp_path / "hf" / name).read_bytes() == (model / name).read_bytes()
    assert_same_bits(weights(tmp_path / "hf"), weights(model))


@pytest.mark.parametrize("arguments", WAYS.values(), ids=WAYS)
def test_a_receipt_says_what_happened(model: Path, arguments: dict, tmp_path: Path) -> None:
    returned = convert(model, tmp_path / "out", **arguments)
    receipt = json.loads((tmp_path / "out" / RECEIPT).read_text())
    assert receipt == json.loads(returned.text())
    assert receipt["fingerprint"] == fingerprint(tmp_path / "out")
    if "dtype" not in arguments:
        assert receipt["fingerprint"] == fingerprint(model)
    assert receipt["plan"] == plan_conversion(model, tmp_path / "out", **arguments).hash
    documents = receipt["target"]["documents"]
    assert documents.keys() | receipt["target"]["files"].keys() == without_receipt(tmp_path / "out").keys()
    for name, digest in documents.items():
        assert blake3((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    for file in receipt["source"]["files"]:
        assert blake3(Path(file["path"]).read_bytes()).hexdigest() == file["blake3"]
    with open_checkpoint(tmp_path / "out") as found:
        assert from_json(receipt["architecture"]) == found.architecture
        shapes = {
            name: list(assembly.parameter.true_shape) for name, assembly in found.checkpoint.tensors.items()
        }  # without padding
    assert {name: entry["shape"] for name, entry in receipt["tensors"].items()} == shapes


def test_progress_counts_up_to_the_bytes_of_the_files(model: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    plan = plan_conversion(model, tmp_path / "out", to="nanotron", tp=2)
    convert(model, tmp_path / "out", to="nanotron", tp=2, listener=seen.append)
    data = sum(placed.dtype.size * _elements(placed.native.shape) for placed in plan.target.placements)
    assert [event.done for event in seen] == sorted(event.done for event in seen)
    assert seen[-1].done == data
    assert {event.total for event in seen} == {sum(file.size for file in plan.target.files)}
    assert {event.subject for event in seen} == {transfer.name for transfer in plan.transfers}


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


# --- publishing -------------------------------------------------------------------------------------------------------------


def test_overwrite_replaces_all_of_the_old(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out", to="nanotron", tp=4)
    convert(model, tmp_path / "out", to="nanotron", tp=2, overwrite=True)
    assert not list((tmp_path / "out").rglob("*-of-4.safetensors"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert fingerprint(tmp_path / "out") == fingerprint(model)


def test_overwrite_that_is_refused_keeps_the_old(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out", to="hf")
    before = contents(tmp_path)
    bad = tmp_path.parent / f"{tmp_path.name}-bad"
    shutil.copytree(model, bad)
    held = load_file(bad / "model.safetensors")
    held["model.norm.weight"][0] = 1e6
    save_file(held, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CkptError, match="does not fit fp16"):
        convert(bad, tmp_path / "out", to="hf", dtype="fp16", overwrite=True)
    assert contents(tmp_path) == before


def test_overwrite_of_a_link_leaves_its_target_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    (tmp_path / "out").symlink_to(tmp_path / "precious")
    convert(model, tmp_path / "out", to="hf", overwrite=True)
    assert (tmp_path / "precious" / "file").read_text() == "mine"
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_nothing_goes_into_another_checkpoint(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out", to="hf", sync=False)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "out/more").mkdir()
    for place in ("out/new", "out/more/new", "link/new"):
        with pytest.raises(CkptError, match="the destination is inside another checkpoint") as error:
            convert(model, tmp_path / place, to="ir")
        assert str(tmp_path / "out" / RECEIPT) in str(error.value)
        assert not (tmp_path / place).exists()


def test_two_runs_at_once_are_one_clear_error(model: Path, tmp_path: Path) -> None:
    """The second is refused at once, and the first is none the worse for it."""
    started, refused, errors = threading.Event(), threading.Event(), []

    def pause(event: Progress) -> None:
        started.set()
        refused.wait(20)

    first = threading.Thread(target=lambda: convert(model, tmp_path / "out", to="hf", listener=pause))
    first.start()
    assert started.wait(20)
    try:
        convert(model, tmp_path / "out", to="hf")
    except CkptError as error:
        errors.append(error)
    refused.set()
    first.join()
    assert [error.problem for error in errors] == ["another conversion is writing to this destination"]
    assert errors[0].file == str(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_lock_is_free_again_afterwards(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out", to="hf")
    convert(model, tmp_path / "out", to="hf", overwrite=True)
    assert fingerprint(tmp_path / "out") == fingerprint(model)


# --- executors --------------------------------------------------------------------------------------------------------------


class Eager(Executor):
    """The smallest executor there is: everything happens at once, in the caller."""

    def submit(self, function, /, *arguments, **named):
        future: Future = Future()
        try:
            future.set_result(function(*arguments, **named))
        except BaseException as error:
            future.set_exception(error)
        return future


def executors() -> dict[str, Executor]:
    return {
        "eager": Eager(),
        "threads": ThreadPoolExecutor(3),
        "processes": ProcessPoolExecutor(2, get_context("spawn")),
    }


@pytest.mark.parametrize("name", ["eager", "threads", "processes"])
def test_any_executor_gives_the_same_bytes(model: Path, name: str, tmp_path: Path) -> None:
    convert(model, tmp_path / "out", to="nanotron", tp=2, workers=2)
    expected = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    with executors()[name] as executor:
        convert(model, tmp_path / "out", to="nanotron", tp=2, workers=2, executor=executor)
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("engine", ["local", "processes"])
def test_an_error_in_a_transfer_reaches_the_caller_whole(model: Path, engine: str, tmp_path: Path) -> None:
    bad = tmp_path / "hf"
    shutil.copytree(model, bad)
    held = load_file(bad / "model.safetensors")
    held["model.norm.weight"][0] = 1e6
    save_file(held, bad / "model.safetensors", metadata={"format": "pt"})
    with executor_for(engine, 2) as executor, pytest.raises(CkptError) as caught:
        convert(bad, tmp_path / "out", to="hf", dtype="fp16", executor=executor)
    assert caught.value.problem == "final_norm.weight does not fit fp16"
    assert caught.value.fix == "use --dtype bf16 or fp32"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


# --- dtypes on the way ------------------------------------------------------------------------------------------------------

TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("dtype", TORCH)
def test_a_dtype_that_is_asked_for_is_torchs_cast(model: Path, dtype: str, tmp_path: Path) -> None:
    receipt = convert(model, tmp_path / "out", to="hf", dtype=dtype)
    expected = {name: tensor.to(TORCH[dtype]) for name, tensor in weights(model).items()}
    assert_same_bits(weights(tmp_path / "out"), expected)
    rounded = [loss["subject"] for loss in receipt.body["losses"] if loss["kind"] == "rounded"]
    assert rounded == ([] if dtype == "fp32" else [f"{len(expected)} tensors"])
    assert receipt.fingerprint == fingerprint(tmp_path / "out")
    changed = [name for name, entry in receipt.body["tensors"].items() if "source_digest" in entry]
    assert len(changed) == (0 if dtype == "fp32" else len(expected))


@pytest.mark.parametrize("target", TORCH)
@pytest.mark.parametrize("source", TORCH)
def test_a_receipt_has_the_digests_of_both_sides(model: Path, source: str, target: str, tmp_path: Path) -> None:
    convert(model, tmp_path / "source", to="hf", dtype=source)
    entries = convert(tmp_path / "source", tmp_path / "out", to="hf", dtype=target).body["tensors"]
    for folder, digest in {"out": "digest", "source": "source_digest"}.items():
        held = {name: result.digest for name, result in digests(open_checkpoint(tmp_path / folder).checkpoint).items()}
        assert {name: entry.get(digest, entry["digest"]) for name, entry in entries.items()} == held


# --- the disk ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["hf in shards", "nanotron"])
def test_all_of_the_output_is_on_the_disk_unless_that_is_not_wanted(
    model: Path, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, synced = os.fsync, []

    def noting(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    convert(model, tmp_path / "out", **WAYS[way])
    staged = tmp_path / "out.ckpt-partial" / "out"
    everything = [staged / path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*")]
    assert sorted(synced) == sorted([*everything, staged, tmp_path])
    expected = contents(tmp_path / "out")
    del synced[:]
    convert(model, tmp_path / "out", **WAYS[way], overwrite=True, sync=False)
    assert not synced
    assert contents(tmp_path / "out") == expected
