"""Outputs in a bucket: the bytes of a local one, nothing seen before all is there, and a run that ends anywhere goes on from the parts."""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ckpt_core import convert, fingerprint, launch_of, open_checkpoint
from ckpt_core.api import plan_conversion
from ckpt_core.engine import claim, parts, threads, uploads
from ckpt_core.engine.destination import room_for, staging_at
from ckpt_core.engine.dispatch import Workers
from ckpt_core.engine.parts import Parts, part_size
from ckpt_core.engine.pieces import Transfer
from ckpt_core.engine.results import Result
from ckpt_core.engine.run import run_plan
from ckpt_core.engine.staging import Staging
from ckpt_core.engine.worker import Run
from ckpt_core.errors import BeingWritten, CkptError, FormatError, StoreError, UsageError
from ckpt_core.receipt.places import RECEIPT
from ckpt_core.sizes import size_text
from ckpt_core.storage.bytes.remote import ranges, stores, writable
from ckpt_core.storage.bytes.remote.az import Azure
from ckpt_core.storage.bytes.remote.objects import Hiccup
from ckpt_core.storage.bytes.remote.s3 import S3
from ckpt_core.storage.bytes.remote.writing import Body
from ckpt_core.storage.bytes.space import drops_space
from ckpt_core.tensors import SourceFiles, digest, pieces
from ckpt_core.testing import example, write_ir
from ckpt_tests import tiny
from ckpt_tests.bucket import Bucket
from ckpt_tests.program import ckpt
from ckpt_tests.vision import made

ADDRESS = "s3://bucket/run/out"
CLAIM = ADDRESS + ".ckpt-partial"
PART = 4096


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "llama"
    tiny.build(folder, "llama", num_hidden_layers=1)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    return folder


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = Bucket()
    monkeypatch.setattr(stores, "_store", lambda name: bucket)
    monkeypatch.setattr(writable, "_store", lambda root: bucket)
    monkeypatch.setattr(ranges, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(ranges, "_STEPS", ranges._Steps())
    monkeypatch.setattr(parts, "PART", PART)
    monkeypatch.setattr(claim, "SILENCE", 0.05)
    return bucket


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches/ckpt"


def folder_of(path: Path) -> dict[str, bytes]:
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in path.rglob("*") if one.is_file()}


def assert_clean(bucket: Bucket, spool: Path) -> None:
    """No upload, no claim, nothing in the spool."""
    assert not bucket.uploads
    assert not [name for name in bucket.objects if name.endswith(".ckpt-partial")]
    assert not spool.exists() or not list(spool.iterdir())


class Killed(BaseException):
    """The process is no more: nothing that it does from now on has an effect."""


def dies(bucket: Bucket, name: str, number: int, after: bool) -> None:
    """Have the run die before or after its operation of that number and name; what it does later has no effect."""
    seen, dead = 0, False

    def fault(called: str, _: int, late: bool) -> None:
        nonlocal seen, dead
        if not late:
            seen += called == name
        if dead or (called == name and seen == number and late == after):
            dead = True
            raise Killed

    bucket.fault = fault


def revive(bucket: Bucket) -> None:
    bucket.fault = lambda *_: None


FORMATS = [
    ("hf", {}),
    ("ir", {}),
    ("nanotron", {"tp": 2}),
    ("megatron", {"tp": 2, "options": {"container": "torch"}}),
    ("megatron", {"tp": 2, "pp": 1, "options": {"container": "torch_dist"}}),
    ("nxdt", {"tp": 2, "options": {"make_vocab_size_divisible_by": 1}}),
    ("fsdp", {}),
    ("gguf", {"options": {"tokenizer": "none"}}),
]


@pytest.mark.parametrize(("to", "asked"), FORMATS, ids=[f"{to} {asked}" for to, asked in FORMATS])
def test_every_container_has_the_bytes_of_a_local_one(
    model: Path, bucket: Bucket, spool: Path, tmp_path: Path, to: str, asked: dict
) -> None:
    receipt = convert(model, tmp_path / "out", to=to, sync=False, **asked)
    there = convert(model, ADDRESS, to=to, **asked)
    local, found = folder_of(tmp_path / "out"), bucket.folder(ADDRESS)
    assert found.keys() == local.keys()
    told = {
        name for name, data in local.items() if str(tmp_path).encode() in data
    }  # Megatron's arguments have the path
    assert {name: found[name] for name in receipt.files.keys() - told} == {
        name: local[name] for name in receipt.files.keys() - told
    }
    assert there.fingerprint == receipt.fingerprint == fingerprint(ADDRESS)
    assert any(len(found[name]) > PART for name in receipt.files)
    assert_clean(bucket, spool)
    code, text = ckpt("verify", model, ADDRESS)
    assert code == 0 and f"{ADDRESS}/{RECEIPT}" in text, text


def test_a_single_file_has_its_receipt_beside(model: Path, bucket: Bucket, spool: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out", to="nemo", tp=2, sync=False)
    convert(model, ADDRESS, to="nemo", tp=2)
    assert bucket.objects.keys() == {ADDRESS, f"{ADDRESS}.{RECEIPT}"}
    data = bucket.objects[ADDRESS].data
    assert data == (tmp_path / "out").read_bytes()
    assert_clean(bucket, spool)
    assert ckpt("verify", model, ADDRESS)[0] == 0
    bucket.keep(ADDRESS, data[:-1] + bytes([data[-1] ^ 1]))
    assert ckpt("verify", model, ADDRESS)[0] == 3


def test_a_single_file_that_is_in_the_way_is_named_for_removal(model: Path, bucket: Bucket) -> None:
    convert(model, ADDRESS, to="nemo")
    with pytest.raises(CkptError, match="the destination exists") as error:
        convert(model, ADDRESS, to="nemo", tp=2)
    assert f"(remove {ADDRESS} && remove {ADDRESS}.{RECEIPT})" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "single", "command"),
    [
        (S3, False, "aws s3 rm --recursive 's3://models/my llama*'"),
        (S3, True, "aws s3 rm 's3://models/my llama*'"),
        (Azure, False, "az storage blob delete-batch --source models --pattern 'my llama[*]/*'"),
        (Azure, True, "az storage blob delete --container-name models --name 'my llama*'"),
    ],
)
def test_a_command_for_a_shell_removes_that_address_alone(kind: type, single: bool, command: str) -> None:
    """`s3://models/my` is another one, and `my llama-2` matches `my llama*`."""
    scheme = "s3" if kind is S3 else "az"
    store = object.__new__(kind)  # without its library
    store._root, store._container = f"{scheme}://models", "models"
    assert store.removal(f"{scheme}://models/my llama*", single) == command


def test_a_name_that_azure_changes_is_refused() -> None:
    with pytest.raises(UsageError, match="a slash of each backslash"):
        writable.writable("az://models/a\\b")


def test_the_receipt_is_the_last_thing_that_is_put(model: Path, bucket: Bucket) -> None:
    seen: list[tuple[str, frozenset[str]]] = []
    bucket.fault = lambda name, number, after: seen.append((name, frozenset(bucket.folder(ADDRESS))))
    convert(model, ADDRESS, to="hf")
    states = [state for _, state in seen]
    assert not any(state for name, state in seen if name in ("begin", "send"))
    first = next(state for state in states if RECEIPT in state)
    assert first == states[-1] == frozenset(bucket.folder(ADDRESS))


def test_it_is_found_by_a_repetition(model: Path, bucket: Bucket) -> None:
    convert(model, ADDRESS, to="hf")
    before = dict(bucket.objects)
    bucket.calls.clear()
    receipt = convert(model, ADDRESS, to="hf")
    assert receipt.found and bucket.objects == before and not bucket.calls
    del bucket.objects[f"{ADDRESS}/config.json"]
    with pytest.raises(CkptError, match="the destination exists"):
        convert(model, ADDRESS, to="hf")


MOMENTS = [
    *(("begin", 1, after) for after in (False, True)),
    *(
        ("put", number, after)
        for number, after in ((1, False), (1, True), (2, False), (3, False), (3, True), (6, True))
    ),
    *(("send", number, after) for number in (1, 2, 12, 24) for after in (False, True)),
    *(("complete", 1, after) for after in (False, True)),
    *(("remove", 1, after) for after in (False, True)),
]
"""What a conversion to hf asks of a store. The first two puts are the claim, and the look whether a name is given once."""


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "on another machine"])
@pytest.mark.parametrize(("name", "number", "after"), MOMENTS)
def test_a_run_that_dies_anywhere_goes_on_from_the_parts(
    model: Path, bucket: Bucket, spool: Path, name: str, number: int, after: bool, elsewhere: bool
) -> None:
    dies(bucket, name, number, after)
    with pytest.raises(Killed):
        convert(model, ADDRESS, to="hf")
    revive(bucket)
    claimed = CLAIM in bucket.objects
    there = sum(len(one.parts) for one in bucket.uploads.values())
    completed = "model.safetensors" in bucket.folder(ADDRESS)
    assert RECEIPT not in bucket.folder(ADDRESS) or not there
    bucket.calls.clear()
    if elsewhere:
        shutil.rmtree(spool, ignore_errors=True)
    convert(model, ADDRESS, to="hf")
    again, result = bucket.calls.count("send"), bucket.folder(ADDRESS)
    if not claimed and not completed:  # only a run that dies before its claim leaves an upload that nobody knows
        bucket.uploads = {name: one for name, one in bucket.uploads.items() if one.parts}
    assert_clean(bucket, spool)
    bucket.objects.clear()
    bucket.calls.clear()
    convert(model, ADDRESS, to="hf")
    assert result == bucket.folder(ADDRESS)
    assert again == (0 if completed else bucket.calls.count("send") - there)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "on another machine"])
def test_no_tag_need_be_an_md5(model: Path, bucket: Bucket, spool: Path, elsewhere: bool) -> None:
    """A store that encrypts has others. Here the tags are those that we got; elsewhere nothing is known by them, and all is sent again."""
    bucket.key = b"a key"
    dies(bucket, "send", 12, True)
    with pytest.raises(Killed):
        convert(model, ADDRESS, to="hf")
    revive(bucket)
    (upload,) = bucket.uploads.values()
    there = len(upload.parts)
    bucket.calls.clear()
    if elsewhere:
        shutil.rmtree(spool)
    convert(model, ADDRESS, to="hf")
    total, sent = sum(1 for _ in Parts(plan_of(model).target.files, 1).all()), bucket.calls.count("send")
    assert sent == total if elsewhere else sent - uploads.SENDERS < total - there <= sent
    assert ckpt("verify", model, ADDRESS)[0] == 0
    assert_clean(bucket, spool)


def test_parts_that_the_store_lost_are_made_again(model: Path, bucket: Bucket, spool: Path) -> None:
    dies(bucket, "complete", 1, False)
    with pytest.raises(Killed):
        convert(model, ADDRESS, to="hf")
    revive(bucket)
    (upload,) = bucket.uploads.values()
    count = len(upload.parts)
    del upload.parts[3]
    upload.parts[7] = upload.parts[7][:-1] + b"!"
    bucket.calls.clear()
    convert(model, ADDRESS, to="hf")
    assert bucket.calls.count("send") == 2
    result = bucket.folder(ADDRESS)
    bucket.objects.clear()
    dies(bucket, "complete", 1, False)
    with pytest.raises(Killed):
        convert(model, ADDRESS, to="hf")
    revive(bucket)
    bucket.uploads.clear()  # as a rule of a bucket does with those that stay incomplete for days
    bucket.calls.clear()
    convert(model, ADDRESS, to="hf")
    assert bucket.calls.count("send") == count
    assert bucket.folder(ADDRESS) == result
    assert_clean(bucket, spool)


def swapped(model: Path, folder: Path, seed: int) -> Path:
    """The model with other values, put in its place with the sizes and the times of before."""
    if not folder.exists():
        shutil.copytree(model, folder)
    tiny.build(folder.with_name("other"), "llama", num_hidden_layers=1, seed=seed)
    for name, data in (
        ("model.safetensors", (folder.with_name("other") / "model.safetensors").read_bytes()),
        ("tokenizer.json", b'{"model": %d }' % seed),
    ):
        file, times = folder / name, os.stat(folder / name)
        (folder / "new").write_bytes(data)
        os.utime(folder / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
        os.replace(folder / "new", file)
    return folder


@pytest.mark.parametrize("lost", ["the machine was restarted", "journal", "journal and log", "spool"])
@pytest.mark.parametrize(("name", "number"), [("send", 12), ("complete", 1), ("put", 4)])
def test_no_part_of_a_source_that_was_replaced_is_kept(
    model: Path, bucket: Bucket, spool: Path, tmp_path: Path, name: str, number: int, lost: str
) -> None:
    """What a killed run read is not known any more, and the source has the sizes and the times of before."""
    source = swapped(model, tmp_path / "source", 5)
    dies(bucket, name, number, True)
    with pytest.raises(Killed):
        convert(source, ADDRESS, to="hf")
    revive(bucket)
    swapped(model, source, 6)
    (folder,) = spool.iterdir()
    head, *_ = (folder / "journal.jsonl").read_text().splitlines()
    if lost == "spool":
        shutil.rmtree(folder)
    elif lost == "the machine was restarted":
        (folder / "journal.jsonl").write_text(json.dumps({**json.loads(head), "boot": "before"}) + "\n")
    else:
        (folder / "journal.jsonl").write_text(head + "\n")
        if lost == "journal and log":
            (folder / "parts.jsonl").unlink()
    if name != "send":
        with pytest.raises(FormatError, match="an earlier run completed files of the source as it was then"):
            convert(source, ADDRESS, to="hf")
        assert not bucket.objects, "all of it is removed"
    convert(source, ADDRESS, to="hf")
    convert(source, tmp_path / "out", to="hf", sync=False)
    local, found = folder_of(tmp_path / "out"), bucket.folder(ADDRESS)
    del local[RECEIPT], found[RECEIPT]
    assert local == found
    assert_clean(bucket, spool)


@pytest.mark.parametrize(("name", "number"), [("send", 60), ("put", 3)])
def test_no_part_that_was_copied_of_a_file_that_was_replaced_is_kept(
    bucket: Bucket, spool: Path, tmp_path: Path, name: str, number: int
) -> None:
    """The tower of a model that sees is copied as it is: it has no pieces in the journal, which counts here."""
    whole, language = tmp_path / "whole", tmp_path / "language"
    made("qwen2_vl", "Qwen2VLForConditionalGeneration").save_pretrained(whole)
    convert(whole, language, to="hf", options={"part": "language"}, sync=False)
    dies(bucket, name, number, True)
    with pytest.raises(Killed):
        convert(language, ADDRESS, to="hf", options={"into": str(whole)})
    revive(bucket)
    file = whole / "model.safetensors"
    data, times = bytearray(file.read_bytes()), os.stat(file)
    header = 8 + int.from_bytes(data[:8], "little")
    data[header:] = bytes(number % 50 for number in range(len(data) - header))
    (whole / "new").write_bytes(data)
    os.utime(whole / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(whole / "new", file)
    if name == "put":
        with pytest.raises(FormatError, match="an earlier run completed files of the source as it was then"):
            convert(language, ADDRESS, to="hf", options={"into": str(whole)})
    convert(language, ADDRESS, to="hf", options={"into": str(whole)})
    convert(language, tmp_path / "out", to="hf", options={"into": str(whole)}, sync=False)
    local, found = folder_of(tmp_path / "out"), bucket.folder(ADDRESS)
    assert local["model.safetensors"] == found["model.safetensors"]
    assert_clean(bucket, spool)


def test_an_unfinished_conversion_from_a_store_names_its_address(model: Path, bucket: Bucket, tmp_path: Path) -> None:
    """And not the folder of stand-ins, which is another one in each process."""
    for file in model.iterdir():
        bucket.keep(f"s3://bucket/source/{file.name}", file.read_bytes())

    def killed(_: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        convert("s3://bucket/source", tmp_path / "out", to="nanotron", listener=killed, sync=False)
    head = (tmp_path / "out.ckpt-partial/journal.jsonl").read_text().splitlines()[0]
    assert json.loads(head)["source"] == "s3://bucket/source"
    with pytest.raises(CkptError, match="an unfinished conversion of something else is in the way") as error:
        convert("s3://bucket/source", tmp_path / "out", to="nanotron", tp=2, sync=False)
    assert (error.value.found, error.value.expected) == ("one with --tp not given", "one with --tp 2")


@pytest.mark.parametrize("cut", [0, 100])
def test_a_log_that_was_lost_costs_no_data(model: Path, bucket: Bucket, spool: Path, tmp_path: Path, cut: int) -> None:
    dies(bucket, "send", 20, True)
    with pytest.raises(Killed):
        convert(model, ADDRESS, to="hf")
    revive(bucket)
    os.truncate(next(spool.glob("*/parts.jsonl")), cut)
    convert(model, ADDRESS, to="hf")
    convert(model, tmp_path / "out", to="hf", sync=False)
    assert bucket.folder(ADDRESS)["model.safetensors"] == (tmp_path / "out/model.safetensors").read_bytes()
    assert_clean(bucket, spool)


def test_no_tag_of_an_older_source_is_believed_after_two_kills(
    model: Path, bucket: Bucket, spool: Path, tmp_path: Path
) -> None:
    """The second run made the pieces of parts that the first one had sent, of the source as it is now, and died before it sent them."""
    source = swapped(model, tmp_path / "source", 5)
    dies(bucket, "send", 20, True)
    with pytest.raises(Killed):
        convert(source, ADDRESS, to="hf")
    revive(bucket)
    swapped(model, source, 6)
    journal = next(spool.glob("*/journal.jsonl"))
    head, *_ = journal.read_text().splitlines()
    journal.write_text(json.dumps({**json.loads(head), "boot": "before"}) + "\n")
    dies(bucket, "send", 1, False)
    with pytest.raises(Killed):
        convert(source, ADDRESS, to="hf")
    revive(bucket)
    assert len(journal.read_text().splitlines()) > 1
    convert(source, ADDRESS, to="hf")
    convert(source, tmp_path / "out", to="hf", sync=False)
    assert bucket.folder(ADDRESS)["model.safetensors"] == (tmp_path / "out/model.safetensors").read_bytes()
    assert_clean(bucket, spool)


@pytest.mark.parametrize("to", ["hf", "megatron", "nemo"])
@pytest.mark.parametrize("cut", [0, 100])
def test_what_neither_the_log_nor_the_store_has_is_made_again(
    model: Path, bucket: Bucket, spool: Path, tmp_path: Path, to: str, cut: int
) -> None:
    """It was sent and dropped here, and the journal says that it is done."""
    dies(bucket, "complete", 1, False)
    with pytest.raises(Killed):
        convert(model, ADDRESS, to=to)
    revive(bucket)
    os.truncate(next(spool.glob("*/parts.jsonl")), cut)
    bucket.uploads.clear()
    del bucket.objects[CLAIM]
    convert(model, ADDRESS, to=to)
    convert(model, tmp_path / "out", to=to, sync=False)
    assert ckpt("diff", tmp_path / "out", ADDRESS)[0] == 0
    assert ckpt("verify", model, ADDRESS)[0] == 0
    assert_clean(bucket, spool)


def test_a_spool_whose_removal_was_cut_off_gives_no_holes(
    model: Path, bucket: Bucket, spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the input drops everything, and the process is killed while it does."""
    source = shutil.copytree(model, tmp_path / "source")
    times = os.stat(source / "model.safetensors")

    def changes(name: str, number: int, after: bool) -> None:
        if name == "send" and bucket.calls.count("send") > 20:
            os.utime(source / "model.safetensors", (1e9, 1e9))

    def killed(path: str) -> None:
        if "send" in bucket.calls:  # and not at the start, when nothing is there
            raise Killed

    bucket.fault = changes
    with monkeypatch.context() as patched:
        patched.setattr("ckpt_core.engine.staging._remove", killed)
        with pytest.raises(Killed):
            convert(source, ADDRESS, to="hf")
    revive(bucket)
    os.utime(source / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not bucket.uploads and not bucket.objects
    assert len(next(spool.glob("*/journal.jsonl")).read_text().splitlines()) > 1
    convert(source, ADDRESS, to="hf")
    convert(source, tmp_path / "out", to="hf", sync=False)
    assert bucket.folder(ADDRESS)["model.safetensors"] == (tmp_path / "out/model.safetensors").read_bytes()
    assert_clean(bucket, spool)


@pytest.mark.parametrize("theirs", [False, True], ids=["an answer is lost", "another one is faster"])
def test_a_claim_is_changed_for_uploads_that_are_gone(model: Path, bucket: Bucket, spool: Path, theirs: bool) -> None:
    dies(bucket, "send", 4, False)
    with pytest.raises(Killed):
        convert(model, ADDRESS, to="hf")
    bucket.uploads.clear()

    def fault(name: str, number: int, after: bool) -> None:
        if name == "replace" and bucket.calls.count("replace") == 1:
            if theirs and not after:
                bucket.keep(CLAIM, b'{"plan": "theirs", "uploads": {}}')
            elif after:
                raise Hiccup("the answer is lost")

    bucket.calls.clear()
    bucket.fault = fault
    if theirs:
        with pytest.raises(StoreError, match="another run took over"):
            convert(model, ADDRESS, to="hf")
        assert b"theirs" in bucket.objects[CLAIM].data and not bucket.uploads
    else:
        convert(model, ADDRESS, to="hf")
        assert_clean(bucket, spool)


@pytest.mark.parametrize(("name", "count"), [("begin", 3), ("put", 1)])
def test_no_upload_is_left_that_no_claim_knows(model: Path, bucket: Bucket, spool: Path, name: str, count: int) -> None:
    def interrupted(called: str, number: int, after: bool) -> None:
        if called == name and not after and bucket.calls.count(name) == count:
            raise KeyboardInterrupt

    bucket.fault = interrupted
    with pytest.raises(KeyboardInterrupt):
        convert(model, ADDRESS, to="hf", options={"max_shard_size": "40000"})
    revive(bucket)
    assert not bucket.uploads
    convert(model, ADDRESS, to="hf", options={"max_shard_size": "40000"})
    assert_clean(bucket, spool)


def test_what_is_there_is_not_touched(model: Path, bucket: Bucket, spool: Path) -> None:
    bucket.keep(f"{ADDRESS}/notes.txt", b"mine")
    for asked, kind in (({}, CkptError), ({"overwrite": True}, UsageError)):
        with pytest.raises(kind, match=r"the destination exists|--overwrite replaces nothing in a store"):
            convert(model, ADDRESS, to="hf", **asked)
    assert not bucket.calls
    bucket.objects.clear()
    bucket.keep(ADDRESS, b"a file")
    with pytest.raises(CkptError, match="the destination exists"):
        convert(model, ADDRESS, to="hf")
    with pytest.raises(CkptError, match="what lies in the place of an unfinished conversion"):
        bucket.keep(CLAIM, b"[]")
        convert(model, ADDRESS, to="hf")
    with pytest.raises(CkptError, match="what lies in the place of an unfinished conversion"):
        bucket.keep(CLAIM, b"[" * 100_000)
        convert(model, ADDRESS, to="hf")
    assert not bucket.calls and not spool.exists()


def test_another_conversion_is_kept_away(model: Path, bucket: Bucket) -> None:
    dies(bucket, "send", 3, False)
    with pytest.raises(Killed):
        convert(model, ADDRESS, to="hf")
    revive(bucket)
    uploads = dict(bucket.uploads)
    with pytest.raises(CkptError, match="an unfinished conversion of something else is in the way") as error:
        convert(model, ADDRESS, to="hf", dtype="bf16")
    assert "--dtype fp32" in str(error.value) or "--dtype keep" in str(error.value), error.value
    assert bucket.uploads == uploads and CLAIM in bucket.objects
    for command in (["inspect", ADDRESS], ["verify", model, ADDRESS]):
        code, text = ckpt(*command)
        assert code == 1 and "a conversion to this address is not finished" in text, text


def test_two_conversions_at_once_have_one_winner(model: Path, bucket: Bucket, spool: Path, tmp_path: Path) -> None:
    def other(name: str, number: int, after: bool) -> None:
        if name == "begin" and not after:  # between our look for a claim and our own
            revive(bucket)
            dies(bucket, "send", 1, False)
            with pytest.raises(Killed):
                convert(model, ADDRESS, to="hf", dtype="bf16", spool=tmp_path / "theirs")
            revive(bucket)

    bucket.fault = other
    with pytest.raises(CkptError, match="another conversion is writing to this destination"):
        convert(model, ADDRESS, to="hf")
    convert(model, ADDRESS, to="hf", dtype="bf16", spool=tmp_path / "theirs")
    assert_clean(bucket, spool)


def beside(
    bucket: Bucket, moment: str, number: int, work: Callable[[], object]
) -> list[object]:  # what came of it, in the end
    """Have `work` be done once, as on another machine, when this run is at its `number`-th operation of a name."""
    found: list[object] = []
    seen = 0

    def fault(name: str, _: int, after: bool) -> None:
        nonlocal seen
        seen += name == moment and not after
        if name == moment and seen == number and not found:
            found.append(None)
            try:
                found[0] = work()
            except CkptError as error:
                found[0] = error

    bucket.fault = fault
    return found


def test_a_run_that_lives_keeps_the_same_one_of_another_machine_away(
    model: Path, bucket: Bucket, spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "BEAT", 0.05)
    monkeypatch.setattr(claim, "SILENCE", 5.0)
    told: list[str] = []

    def other() -> object:
        return run_plan(
            plan_of(model), ADDRESS, spool=str(tmp_path / "b"), listener=lambda one: told.append(one.remark)
        )

    found = beside(bucket, "send", 5, other)
    convert(model, ADDRESS, to="hf")
    (error,) = found
    assert isinstance(error, BeingWritten) and "another run is at the same conversion" in str(error)
    assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in str(error)
    assert len(told) == 1 and "waiting up to 5 s" in told[0]
    assert ckpt("verify", model, ADDRESS)[0] == 0
    assert_clean(bucket, spool)
    assert_clean(bucket, tmp_path / "b")


def test_a_run_that_begins_when_the_same_one_ends_leaves_no_uploads(
    model: Path, bucket: Bucket, spool: Path, tmp_path: Path
) -> None:
    beside(bucket, "begin", 1, lambda: convert(model, ADDRESS, to="hf", spool=tmp_path / "b"))
    convert(model, ADDRESS, to="hf")
    assert ckpt("verify", model, ADDRESS)[0] == 0
    assert_clean(bucket, spool)
    assert_clean(bucket, tmp_path / "b")


def test_a_run_that_drops_its_uploads_lives_until_they_are_gone(
    model: Path, bucket: Bucket, spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropping many takes longer than the silence of a dead one: another run must not go on with what is being dropped."""
    monkeypatch.setattr(claim, "BEAT", 0.02)
    source = shutil.copytree(model, tmp_path / "source")
    seen: list[bytes] = []

    def slow(name: str, number: int, after: bool) -> None:
        if name == "send":
            os.utime(source / "model.safetensors", (1e9, 1e9))
        if name == "abort" and not after:
            seen.append(bucket.objects[CLAIM].data)
            until = time.monotonic() + 10
            while bucket.objects[CLAIM].data == seen[-1] and time.monotonic() < until:
                time.sleep(0.01)
            seen.append(bucket.objects[CLAIM].data)

    bucket.fault = slow
    with pytest.raises(FormatError, match="changed while it was being read"):
        convert(source, ADDRESS, to="hf")
    assert seen and len(set(seen)) > len(seen) // 2
    assert not bucket.objects
    assert_clean(bucket, spool)


def test_a_run_that_was_taken_over_ends_and_drops_nothing(
    model: Path, bucket: Bucket, spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still for longer than a run may, which its beats here always do."""
    source = shutil.copytree(model, tmp_path / "source")
    monkeypatch.setattr(claim, "BEAT", 1000.0)
    monkeypatch.setattr(uploads, "SENDERS", 1)

    def other() -> None:
        plain = bucket.fault
        dies(bucket, "send", 3, True)
        with pytest.raises(Killed):
            convert(source, ADDRESS, to="hf", spool=tmp_path / "b")
        bucket.fault = plain
        times = (source / "model.safetensors").stat()
        os.utime(source / "model.safetensors", (1e9, 1e9))
        restored.append(times)

    restored: list[os.stat_result] = []
    beside(bucket, "send", 5, other)
    with pytest.raises(FormatError, match="changed while it was being read"):
        convert(source, ADDRESS, to="hf")
    revive(bucket)
    (upload,) = bucket.uploads.values()
    assert upload.parts and CLAIM in bucket.objects
    os.utime(source / "model.safetensors", ns=(restored[0].st_atime_ns, restored[0].st_mtime_ns))
    there = len(upload.parts)
    bucket.calls.clear()
    convert(source, ADDRESS, to="hf", spool=tmp_path / "b")
    assert bucket.calls.count("send") == sum(1 for _ in Parts(plan_of(model).target.files, 1).all()) - there
    assert ckpt("verify", source, ADDRESS)[0] == 0
    assert_clean(bucket, tmp_path / "b")


def test_a_run_that_was_taken_over_notices(
    model: Path, bucket: Bucket, spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "BEAT", 0.02)

    def taken(name: str, number: int, after: bool) -> None:
        if name == "send" and not after:
            if CLAIM in bucket.objects and b'"stolen"' not in bucket.objects[CLAIM].data:
                said = {**json.loads(bucket.objects[CLAIM].data), "holder": "stolen", "host": "there"}
                bucket.keep(CLAIM, json.dumps(said).encode())
            time.sleep(0.05)

    bucket.fault = taken
    with pytest.raises(StoreError, match="another run took over this conversion") as error:
        convert(model, ADDRESS, to="hf")
    assert "on there, since" in str(error.value) and bucket.uploads and list(spool.iterdir())
    revive(bucket)
    convert(model, ADDRESS, to="hf")  # nobody beats any more: it goes on here
    assert_clean(bucket, spool)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", RECEIPT])
def test_what_appears_meanwhile_is_kept(model: Path, bucket: Bucket, name: str) -> None:
    def appears(called: str, number: int, after: bool) -> None:
        if called == "complete" and not after and f"{ADDRESS}/{name}" not in bucket.objects:
            bucket.keep(f"{ADDRESS}/{name}", b"theirs")

    bucket.fault = appears
    with pytest.raises(StoreError, match="something else appeared at the destination meanwhile"):
        convert(model, ADDRESS, to="hf")
    assert bucket.folder(ADDRESS)[name] == b"theirs"
    revive(bucket)
    with pytest.raises(CkptError, match="something else appeared"):
        convert(model, ADDRESS, to="hf")
    del bucket.objects[f"{ADDRESS}/{name}"]
    bucket.calls.clear()
    convert(model, ADDRESS, to="hf")
    assert "send" not in bucket.calls
    assert ckpt("verify", model, ADDRESS)[0] == 0


def test_an_error_of_the_input_leaves_nothing(model: Path, bucket: Bucket, spool: Path, tmp_path: Path) -> None:
    source = shutil.copytree(model, tmp_path / "source")

    def changes(name: str, number: int, after: bool) -> None:
        os.utime(source / "model.safetensors", (1e9, 1e9 + number))

    bucket.fault = changes
    with pytest.raises(FormatError, match="changed while it was being read"):
        convert(source, ADDRESS, to="hf")
    assert not bucket.objects
    assert_clean(bucket, spool)


def test_a_store_that_hiccups_is_asked_again_and_one_that_refuses_loses_nothing(
    model: Path, bucket: Bucket, spool: Path
) -> None:
    failed: set[int] = set()

    def hiccups(name: str, number: int, after: bool) -> None:
        if number % 3 == 0 and number not in failed:
            failed.add(number)
            raise Hiccup("the answer is lost" if after else "503")

    bucket.fault = hiccups
    convert(model, ADDRESS, to="hf")
    assert_clean(bucket, spool)
    bucket.objects.clear()

    def refuses(name: str, number: int, after: bool) -> None:
        if name == "send" and bucket.calls.count("send") > 9:
            raise StoreError("the store does not let you do this")

    bucket.calls.clear()
    bucket.fault = refuses
    with pytest.raises(StoreError):
        convert(model, ADDRESS, to="hf")
    revive(bucket)
    bucket.calls.clear()
    convert(model, ADDRESS, to="hf")
    total = sum(1 for _ in Parts(plan_of(model).target.files, 1).all())
    assert bucket.calls.count("send") == total - 9


def test_where_one_upload_is_refused_those_of_the_others_are_dropped(model: Path, bucket: Bucket, spool: Path) -> None:
    def refuses(name: str, number: int, after: bool) -> None:
        if name == "begin" and number == 3 and not after:
            raise StoreError("the store does not let you do this")
        if name == "begin":
            time.sleep(0.01)  # others are on their way when it is refused

    bucket.fault = refuses
    with pytest.raises(StoreError, match="does not let you"):
        convert(model, ADDRESS, to="nanotron", tp=2)
    assert not bucket.uploads and not bucket.objects
    revive(bucket)
    convert(model, ADDRESS, to="nanotron", tp=2)
    assert_clean(bucket, spool)


def test_a_store_that_gives_a_name_twice_is_refused(model: Path, bucket: Bucket) -> None:
    bucket.conditions = False
    with pytest.raises(StoreError, match="does not keep what is there from being replaced"):
        convert(model, ADDRESS, to="hf")
    assert not bucket.uploads and not bucket.objects


def test_a_training_is_followed_into_a_bucket(model: Path, bucket: Bucket, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "run/step-10")
    command = ("follow", tmp_path / "run", ADDRESS, "--to", "ir", "--once", "--quiet", "0")
    assert ckpt(*command)[0] == 0
    assert RECEIPT in bucket.folder(f"{ADDRESS}/step-10")
    bucket.calls.clear()
    assert ckpt(*command) == (0, "") and not bucket.calls
    assert not (tmp_path / "s3:").exists() and not Path("s3:").exists()


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (f"run/out/{RECEIPT}", "inside another checkpoint"),
        (f"run/{RECEIPT}", "inside another checkpoint"),
        ("run.ckpt-partial", "inside another checkpoint"),
        ("run/out", "inside a file"),
    ],
)
def test_nothing_goes_into_another_checkpoint(model: Path, bucket: Bucket, spool: Path, there: str, words: str) -> None:
    bucket.keep(f"s3://bucket/{there}", b"{}")
    with pytest.raises(CkptError, match=words) as error:
        convert(model, f"{ADDRESS}/new", to="hf")
    assert f"s3://bucket/{there}" in str(error.value) and not bucket.calls
    del bucket.objects[f"s3://bucket/{there}"]
    bucket.keep("s3://bucket/run", b"")  # some programs mark folders so
    convert(model, f"{ADDRESS}/new", to="hf")
    with pytest.raises(CkptError, match="the destination exists") as error:  # and none around another one
        convert(model, ADDRESS, to="hf")
    assert f"{ADDRESS}/new/" in str(error.value)


# --- what lies on this machine meanwhile


def plan_of(model: Path, to: str = "hf", **asked: object):
    return plan_conversion(model, ADDRESS, to=to, workers=1, **asked)


def test_the_budget_of_memory_counts_the_library_of_a_store(model: Path, bucket: Bucket, tmp_path: Path) -> None:
    """boto3 alone takes 34 MiB."""
    local = plan_conversion(model, tmp_path / "out", to="hf", workers=1)
    sent = plan_of(model)
    assert sent.footprint > local.footprint + (34 << 20) and sent.hash == local.hash


@pytest.mark.parametrize(("to", "asked"), [("hf", {}), ("nanotron", {"tp": 2}), ("megatron", {"tp": 2})])
def test_the_spool_holds_no_more_than_was_foretold(
    model: Path, bucket: Bucket, spool: Path, monkeypatch: pytest.MonkeyPatch, to: str, asked: dict
) -> None:
    monkeypatch.setattr(uploads, "QUEUE", 2)
    monkeypatch.setattr("ckpt_core.engine.spool.QUEUE", 2)
    monkeypatch.setattr(uploads, "SENDERS", 1)
    plan = plan_of(model, to, **asked)
    expected = room_for(staging_at(ADDRESS, plan, spool=str(spool))).needed
    most = 0

    def look(name: str, number: int, after: bool) -> None:
        nonlocal most
        if name == "send":
            time.sleep(0.001)  # senders that lag behind
        files = [one.stat() for one in spool.rglob("out/**/*") if one.is_file()]
        most = max(most, sum(min(one.st_size, one.st_blocks * 512) for one in files))

    bucket.fault = look
    run_plan(plan, ADDRESS, spool=str(spool))
    assert 0 < most <= expected
    if drops_space(str(spool)):
        assert expected < plan.bytes_written or to == "nanotron"


@pytest.mark.parametrize("where", ["threads", "workers"])
def test_what_waits_for_a_slow_transfer_is_foretold_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The others go no further ahead of it than was counted on."""
    todo = list(plan_conversion(model, tmp_path / "out", to="hf", workers=1).transfers)
    source, begun, counts = SourceFiles(()), list[Transfer](), list[int]()

    def carry_out(transfer: Transfer) -> Result:
        begun.append(transfer)
        if transfer is todo[0]:
            time.sleep(0.2)
            counts.append(len(begun))
        return Result(*transfer.key, [], None, 0, {}, {})

    if where == "threads":
        monkeypatch.setattr(threads, "run_transfer", lambda transfer, *_: carry_out(transfer))
        monkeypatch.setattr(threads, "_FEW", 0)
        finished = [one for one, _ in threads.in_threads(todo, source, None, 2, in_step=True)]
    else:
        run = Run(str(tmp_path / "out"), "token", "boot", False, "states", spooled=True)
        with ThreadPoolExecutor(2) as pool:
            workers = Workers(pool, run, source)

            def hand_over(awaited: Any) -> None:
                awaited.since = time.monotonic()
                awaited.copies[pool.submit(carry_out, awaited.transfer)] = ""

            def settled(awaited: Any, future: Future[Result]) -> Result:
                workers._awaited.remove(awaited)
                return future.result()

            monkeypatch.setattr(workers, "_hand_over", hand_over)
            monkeypatch.setattr(workers, "_settled", settled)
            finished = [one for one, _ in workers.carry_out(todo, 2)]
    assert len(finished) == len(todo) > 4 == counts[0]


@pytest.mark.parametrize(
    ("to", "options", "together"),
    [("megatron", {"container": "torch_dist"}, False), ("megatron", {"container": "torch"}, True)],
    ids=["one file for all ranks", "a file for each"],
)
def test_of_two_orders_the_one_that_holds_less_is_chosen(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, options: dict, together: bool
) -> None:
    monkeypatch.setattr(parts, "PART", 1 << 10)
    monkeypatch.setattr(parts, "BLOCK", 1 << 6)
    monkeypatch.setattr(pieces, "PIECE", 1 << 10)
    monkeypatch.setattr(digest, "LEAF", 1 << 8)
    layers = write_ir(tmp_path / "ir", example("llama", layers=4))
    plan = plan_of(layers, to, tp=2, pp=2, options=options)
    places = Parts(plan.target.files, 1)
    least = places.choose(plan.transfers)
    found = {}
    for places._together in (True, False):
        found[places._together] = places._most_open([places.of(one) for one in places.in_order(plan.transfers)])
    assert least == found[together] < found[not together]


def test_no_room_in_the_spool_is_said_before_anything_is_written(
    model: Path, bucket: Bucket, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckpt_core.engine.destination.free_space", lambda folder: (1000, "/small"))
    with pytest.raises(CkptError, match="there is no room") as error:
        convert(model, ADDRESS, to="hf")
    assert "--spool" in str(error.value) and not bucket.calls and not spool.exists()
    code, text = ckpt("convert", model, ADDRESS, "--to", "hf", "--dry-run")
    assert code == 1 and "--spool" in text, text


def test_a_dry_run_says_what_waits_here_at_most(model: Path, bucket: Bucket, spool: Path) -> None:
    code, text = ckpt("convert", model, ADDRESS, "--to", "hf", "--dry-run")
    room = json.loads(ckpt("convert", model, ADDRESS, "--to", "hf", "--dry-run", "--json")[1])["room"]
    assert code == 0 and f"at most {size_text(room['needed'])} wait in {spool} to be sent" in text, text
    assert "to be sent" not in ckpt("convert", model, "elsewhere", "--to", "hf", "--dry-run")[1]


def test_what_lies_beside_is_proposed(model: Path, bucket: Bucket, spool: Path) -> None:
    convert(model, ADDRESS, to="hf")
    for wrong, meant in ((ADDRESS[:-1], ADDRESS), (f"{ADDRESS}/confg.json", f"{ADDRESS}/config.json")):
        code, text = ckpt("inspect", wrong)
        assert code == 1 and f"did you mean {meant}?" in text, text


@pytest.mark.parametrize("size", [0, 1, 16 << 20, (16 << 20) * 10_000, (16 << 20) * 10_000 + 1, 5 << 40])
def test_no_file_has_more_parts_than_a_store_takes(size: int) -> None:
    assert -(-size // part_size(size)) <= 10_000
    assert part_size(size) % (1 << 20) == 0


def test_transfers_are_done_in_the_order_of_the_files(model: Path, bucket: Bucket) -> None:
    plan = plan_of(model, "nanotron", tp=2)
    ordered = staging_at(ADDRESS, plan).in_order(reversed(plan.transfers))
    assert {one.name for one in ordered} == {one.name for one in plan.transfers}
    places = Parts(plan.target.files, 1)
    order = {file.path: number for number, file in enumerate(plan.target.files)}
    firsts = [min((order[path], number) for path, number in places.of(one)) for one in ordered]
    assert firsts == sorted(firsts)
    assert isinstance(staging_at("out", plan), Staging)


# --- what is refused


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("gs://bucket/x", "gcloud storage cp"),
        ("hf://owner/name", "hf upload"),
        ("https://server/x", "write to a local folder"),
        ("msc://profile/x", "write to a local folder"),
    ],
)
def test_other_schemes_are_refused_by_name(model: Path, address: str, words: str) -> None:
    code, text = ckpt("convert", model, address, "--to", "hf")
    assert code == 2 and f"{address.partition(':')[0]}:// is no destination" in text and words in text, text


def test_a_bucket_alone_is_no_destination(model: Path) -> None:
    for address, kind in (("s3://one", "bucket"), ("s3://one/", "bucket"), ("az://one", "container")):
        code, text = ckpt("convert", model, address, "--to", "hf")
        assert code == 2 and f"names a {kind}, and no folder" in text, text
        assert f"fix: give the output a name: {address.rstrip('/')}/NAME" in text


def test_a_part_has_one_owner(tmp_path: Path) -> None:
    """azure-core copies requests that failed, with their bodies."""
    (tmp_path / "file").write_bytes(b"0123456789")
    body = Body(str(tmp_path / "file"), 2, 6)
    assert copy.deepcopy(body) is body and body.read() == b"234567"
    body.close()
    body.seek(0)
    with pytest.raises(ValueError, match="closed"):
        body.read()


@pytest.mark.parametrize("path", ["/a/../b", "/a//b", "//a", "/./a", "/a\nb", "/a/.."])
def test_an_address_that_names_no_folder_is_refused(model: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    for words in (["convert", model, f"s3://bucket{path}", "--to", "hf"], ["inspect", f"s3://bucket{path}"]):
        code, text = ckpt(*words)
        assert code == 2 and "not that of a folder in a bucket" in text, text
    code, text = ckpt("convert", model, "s3://bucket/" + "x" * 250, "--to", "hf")
    assert code == 2 and "too long" in text, text


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("s3:/bucket/x", "s3://bucket/x as text: pathlib.Path makes one slash of two"),
        ("S3:/bucket/x", "s3://bucket/x as text"),
        ("s3:bucket/x", "s3://bucket/x"),
        ("hf:owner/name", "hf://owner/name"),
        ("https:/server/x", "https://server/x as text"),
    ],
)
def test_what_is_all_but_an_address_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, meant: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["inspect", given], ["convert", model, given, "--to", "hf"], ["convert", given, "out", "--to", "hf"]):
        code, text = ckpt(*words)
        assert code == 2 and "an address has two slashes behind its scheme" in text and meant in text, text
        assert f"./{given}" in text and not list(tmp_path.iterdir())
    (tmp_path / given.split("/")[0]).mkdir()
    code, text = ckpt("inspect", given)
    assert code == 1 and "no such file or folder" in text, text


def test_a_scheme_may_be_written_large(model: Path, bucket: Bucket) -> None:
    receipt = convert(model, "S3://bucket/run/out/", to="hf")
    assert RECEIPT in bucket.folder(ADDRESS)
    assert convert(model, ADDRESS, to="hf").found
    assert fingerprint("S3://bucket/run/out") == receipt.fingerprint


def test_without_boto3_it_is_said_what_to_install(model: Path) -> None:
    code = "import sys; sys.modules['boto3'] = None; from ckpt_core.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "convert", model, "s3://bucket/x", "--to", "hf"], capture_output=True, text=True
    )
    assert done.returncode == 1 and 'pip install "ckpt-convert[s3]"' in done.stderr, done.stderr


def test_what_is_said_of_an_address_names_it(model: Path, bucket: Bucket, spool: Path) -> None:
    """Its stand-in on this machine is nobody's business, also from Python; and an address is no relative path."""
    convert(model, ADDRESS, to="nanotron")
    with open_checkpoint(ADDRESS) as opened:
        assert opened.path == ADDRESS and ADDRESS in repr(opened)
    plan = plan_conversion(ADDRESS, "elsewhere", to="hf")
    assert plan.to_json()["source"]["path"] == ADDRESS and ADDRESS in repr(plan)
    for launch in (launch_of(ADDRESS), launch_of(model, to="nanotron", dst=ADDRESS)):
        assert f"path: {ADDRESS}/0" in launch.document and f"{ADDRESS}/0/config.yaml" in launch.words
        assert any("opens s3://" in note for note in launch.notes)
    moved = launch_of(ADDRESS, dst="/mnt/run")
    assert "/mnt/run/0/config.yaml" in moved.words and not any("s3://" in note for note in moved.notes)
