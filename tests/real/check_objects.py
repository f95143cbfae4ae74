"""Checkpoints in buckets, against whole servers on this machine, moto for S3 and Azurite for Azure, and the real clients: obstore to read,
boto3 and azure-storage-blob to write.

`nox -s objects`. The servers keep bytes, ETags and conditions as the stores do; what a store gets wrong is in tests/remote, where a server
of our own can be told to.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from killed_upload import PART, killed
from object_servers import BUCKET, Azurite, Moto, Server
from troubled_store import SLOW, TROUBLES, WRONG, Troubled

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.engine import claim, parts
from ckpt_core.engine.uploads import SENDERS
from ckpt_core.errors import CkptError, FormatError, StoreError
from ckpt_core.receipt.places import RECEIPT
from ckpt_core.storage.bytes.remote import az, buckets, ranges, s3, writable
from ckpt_core.storage.bytes.remote.objects import Hiccup
from ckpt_core.storage.bytes.remote.s3 import S3
from ckpt_core.storage.bytes.remote.writing import Body, Gone, Taken
from ckpt_tests import tiny
from ckpt_tests.folders import contents
from ckpt_tests.goldens import SHIPPED
from ckpt_tests.program import ckpt

CASES = sorted(f"{one.parent.parent.name}/{one.parent.name}" for one in SHIPPED.rglob("case.json"))


@pytest.fixture(scope="session", params=["s3", "az"])
def store(request: pytest.FixtureRequest) -> Iterator[Server]:
    """An empty bucket; the environment of this process leads to it."""
    if request.param == "az" and Azurite.program() is None:
        pytest.skip("az:// is NOT judged: there is no azurite-blob (npm install azurite, then set AZURITE)")
    server = Moto() if request.param == "s3" else Azurite()
    yield server
    server.stop()


def put(store: Server, folder: Path, prefix: str) -> str:
    """Every file of a folder (or a file) in the bucket; returns the address."""
    files = sorted(one for one in folder.rglob("*") if one.is_file()) if folder.is_dir() else [folder]
    for file in files:
        inside = file.relative_to(folder if folder.is_dir() else folder.parent).as_posix()
        obstore.put(store.store, f"{prefix}/{inside}", file.read_bytes())
    return store.address(prefix if folder.is_dir() else f"{prefix}/{folder.name}")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objects") / "llama"
    convert(SHIPPED / "nanotron/main_llama_tied_tp2_pp2/checkpoint", folder, to="hf", sync=False)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    return folder


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(ranges, "_STEPS", ranges._Steps())
    monkeypatch.setattr(claim, "SILENCE", 0.1)  # the runs that are killed here are dead


@pytest.mark.parametrize("case", CASES)
def test_every_golden_opens(store: Server, case: str) -> None:
    if store.scheme == "az" and CASES.index(case) % 4:
        pytest.skip("every fourth is read from az://: the formats are the same, and the reader's library is")
    folder = SHIPPED / case / "checkpoint"
    inside = [one for one in folder.iterdir() if one.suffix == ".nemo"]
    given = next((one for name in ("config", "source_hf") if (one := SHIPPED / case / name).is_dir()), None)
    put(store, SHIPPED / case, case)
    address = store.address(f"{case}/checkpoint") + (f"/{inside[0].name}" if inside else "")
    config = None if given is None else store.address(f"{case}/{given.name}")
    try:
        expected = fingerprint(inside[0] if inside else folder, config=given)
    except Exception as error:  # a case that needs an option: both say so in the same words
        with pytest.raises(type(error), match=str(error).split("\n")[0][:40].replace("(", ".").replace(")", ".")):
            fingerprint(address, config=config)
    else:
        assert fingerprint(address, config=config) == expected


def test_every_command_reads_a_bucket(store: Server, model: Path, tmp_path: Path) -> None:
    source = put(store, model, "run/llama")
    code, text = ckpt("inspect", source)
    assert code == 0 and source in text, text
    code, text = ckpt("convert", source, tmp_path / "out", "--to", "nanotron", "--tp", "2", "--dry-run")
    assert code == 0 and not (tmp_path / "out").exists(), text
    code, text = ckpt(
        "convert", source, tmp_path / "out", "--to", "nanotron", "--tp", "2", "--engine", "processes", "--no-sync"
    )
    assert code == 0, text
    receipt = json.loads((tmp_path / "out/ckpt-receipt.json").read_text())
    assert receipt["source"]["path"] == source
    code, text = ckpt("convert", source, tmp_path / "out", "--to", "nanotron", "--tp", "2", "--no-sync")
    assert code == 0 and "done before" in text, "the plan is the same one in another process"
    target = put(store, tmp_path / "out", "run/nanotron")
    for command in (["verify", source, target], ["diff", source, target]):
        code, text = ckpt(*command)
        assert code == 0, text
    code, text = ckpt("fingerprint", target)
    assert text.split()[0] == fingerprint(model)
    convert(target, tmp_path / "back", to="hf", sync=False)
    assert contents(tmp_path / "back")["model.safetensors"] == contents(model)["model.safetensors"]


def test_a_change_in_between_is_noticed(store: Server, model: Path) -> None:
    source = put(store, model, "changing")
    with open_checkpoint(source) as checkpoint:
        ranges._STEPS.__init__()  # type: ignore[misc]
        data = bytearray((model / "model.safetensors").read_bytes())
        data[-1] ^= 1
        obstore.put(store.store, "changing/model.safetensors", bytes(data))
        with pytest.raises(FormatError, match="the source changed while it was being read"):
            checkpoint[list(checkpoint)[-1]].numpy()
        obstore.delete(store.store, "changing/model.safetensors")
        with pytest.raises(FormatError, match="the source changed while it was being read"):
            checkpoint[list(checkpoint)[-1]].numpy()


def test_what_is_not_there_is_one_error(store: Server) -> None:
    code, text = ckpt("inspect", store.address("nothing"))
    assert code == 1 and "there is no such file or folder" in text, text
    code, text = ckpt("inspect", store.address("x").replace(BUCKET, "another-bucket"))
    assert code == 1 and "there is no such bucket" in text and "Traceback" not in text, text


def test_a_name_that_no_file_can_have_is_named(store: Server, model: Path) -> None:
    """A stranger's, beside the checkpoint: the reader's library gives no list with it."""
    if store.scheme == "az":
        pytest.skip("Azure has no such names")
    source = put(store, model, "strange/llama")
    store.seen(source).client.put_object(Bucket=BUCKET, Key="strange//x")
    code, text = ckpt("inspect", source)
    assert code == 1 and "has a name that no file can have" in text and 'Path "strange//"' in text, text
    store.seen(source).client.delete_object(Bucket=BUCKET, Key="strange//x")
    assert ckpt("inspect", source)[0] == 0


def test_a_cache_serves_every_later_command(store: Server, model: Path, tmp_path: Path) -> None:
    source = put(store, model, "cached")
    outputs = [ckpt("fingerprint", source, "--cache", tmp_path / "cache") for _ in range(2)]
    assert outputs[0] == outputs[1] and outputs[0][0] == 0
    assert list((tmp_path / "cache").glob("*.data"))


def test_a_store_that_goes_away_keeps_what_is_done(store: Server, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = put(store, model, "going")
    with open_checkpoint(source) as checkpoint:
        ranges._STEPS.__init__()  # type: ignore[misc]

        def gone(*_: object, **__: object) -> None:
            raise obstore.exceptions.GenericError("connection reset")

        monkeypatch.setattr(obstore, "get", gone)
        with pytest.raises(StoreError, match="does not answer"):
            checkpoint[list(checkpoint)[-1]].numpy()


# --- written


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART", PART)


@pytest.fixture
def sends(store: Server, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the parts that this process sends."""
    sent: list[int] = []
    plain = store.sink.send  # type: ignore[attr-defined]

    def noted(self: object, address: str, upload: str, number: int, body: Any) -> str:
        sent.append(number)
        return plain(self, address, upload, number, body)

    monkeypatch.setattr(store.sink, "send", noted)
    return sent


CASES_WRITTEN = {
    "hf": {"to": "hf"},
    "torch": {"to": "megatron", "tp": 2, "options": {"container": "torch"}},
    "torch_dist": {"to": "megatron", "tp": 2, "options": {"container": "torch_dist"}},
    "nemo": {"to": "nemo", "tp": 2},
    "nxdt": {"to": "nxdt", "tp": 2},
    "nanotron": {"to": "nanotron", "tp": 2},
    "fsdp": {"to": "fsdp"},
    "gguf": {"to": "gguf", "options": {"tokenizer": "none"}},
    "ir": {"to": "ir"},
}


@pytest.mark.parametrize("case", CASES_WRITTEN)
def test_every_container_is_written_and_chained(
    store: Server, model: Path, small_parts: None, tmp_path: Path, case: str
) -> None:
    address, asked = store.address(f"chain/{case}"), CASES_WRITTEN[case]
    source = put(store, model, f"chain-source/{case}")
    written = convert(source, address, spool=tmp_path / "spool", **asked)  # type: ignore[arg-type]
    assert written.fingerprint == fingerprint(model) == fingerprint(address)
    seen = store.seen(address)
    assert not seen.uploads() and not list((tmp_path / "spool").iterdir())
    for command in (
        ["verify", source, address],
        ["verify", model, address],
        ["diff", source, address],
        ["inspect", address],
    ):
        code, text = ckpt(*command)
        assert code == 0, text
    convert(address, f"{address}-back", to="hf", spool=tmp_path / "spool")
    assert store.seen(f"{address}-back/model.safetensors").objects()[""] == contents_of(
        model, tmp_path, "model.safetensors"
    )


def contents_of(model: Path, tmp_path: Path, name: str) -> bytes:
    if not (tmp_path / "hf").exists():
        convert(model, tmp_path / "hf", to="hf", sync=False)
    return (tmp_path / "hf" / name).read_bytes()


BOTH = (False, True)  # before a request is sent, and after its answer
KILLED: dict[str, list[tuple[str, int, bool]]] = {
    "hf": [
        *(("send", number, after) for number in range(1, 39) for after in BOTH),
        *(
            ("put", number, after)
            for number, after in ((1, False), (1, True), (3, False), (3, True), (4, True), (5, True))
        ),
        *(("remove", 1, after) for after in BOTH),
    ],
    "nemo": [("send", number, after) for number in range(1, 60, 3) for after in BOTH],
    "torch": [("send", number, after) for number in range(1, 38, 3) for after in BOTH],
    "nanotron": [
        *(("begin", number, True) for number in (1, 20, 38)),
        *(("complete", number, after) for number in (1, 20, 38) for after in BOTH),
    ],
}
"""The requests at which conversions are killed: every part of a file, of others every third, and one of each other kind."""
ROWS = [(case, moments[n : n + 8]) for case, moments in KILLED.items() for n in range(0, len(moments), 8)]


@pytest.mark.parametrize(
    ("case", "moments"), ROWS, ids=[f"{case} {request} {n} {after}" for case, ((request, n, after), *_) in ROWS]
)
def test_killed_at_every_part(
    store: Server,
    model: Path,
    small_parts: None,
    sends: list[int],
    tmp_path: Path,
    case: str,
    moments: list[tuple[str, int, bool]],
) -> None:
    asked = CASES_WRITTEN[case]
    address = store.address(f"killed/{case}-{moments[0][0]}-{moments[0][1]}")
    seen = store.seen(address)
    convert(model, address, spool=tmp_path / "spool", **asked)  # type: ignore[arg-type]
    expected, total = seen.objects(), len(sends)
    for request, number, after in moments:
        seen.clear()
        code = killed(model, address, request, number, after, tmp_path / "spool", **asked)
        assert code == -signal.SIGKILL, (request, number, after, code)
        there, visible = seen.parts(), seen.objects()
        if request in ("send", "begin"):
            assert visible.keys() <= {".ckpt-partial"}
        assert not any(name.endswith(RECEIPT) for name in visible) or request in ("put", "remove")
        if request == "send" and number % 2:  # every other time the work goes on from another machine
            subprocess.run(["rm", "-r", tmp_path / "spool"], check=True)
        sends.clear()
        convert(model, address, spool=tmp_path / "spool", **asked)  # type: ignore[arg-type]
        assert seen.objects() == expected, (request, number, after)
        if request == "send":
            # What was on its way when the process died may still have arrived, after we looked.
            assert total - there - SENDERS < len(sends) <= total - there, (request, number, after)
        elif request == "complete" or visible.keys() - {".ckpt-partial"}:
            assert not sends
        if request not in ("begin", "put"):  # before the claim nobody knows the uploads
            assert not seen.uploads()
        assert not list((tmp_path / "spool").iterdir())


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside another upload"])
def test_an_error_of_the_input_drops_what_was_sent(
    store: Server, model: Path, small_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    """The blocks of another upload to the same blob are not dropped with ours, in Azure, nor ours with them then."""
    source, address = shutil.copytree(model, tmp_path / "source"), store.address(f"input/{others}")
    plain, foreign = store.sink.send, Body(str(model / "config.json"), 0, 10)  # type: ignore[attr-defined]

    def changes(self: Any, where: str, upload: str, number: int, body: Any) -> str:
        os.utime(source / "model.safetensors", (1e9, 1e9 + number))
        if others and number == 3:
            plain(self, where, self.begin(where, ""), 1, foreign)
        return str(plain(self, where, upload, number, body))

    monkeypatch.setattr(store.sink, "send", changes)
    with pytest.raises(FormatError, match="changed while it was being read"):
        convert(source, address, to="hf", spool=tmp_path / "spool")
    foreign.close()
    seen = store.seen(address)
    assert not seen.objects() and not list((tmp_path / "spool").iterdir())
    kept = seen.parts()
    assert kept == 0 if not others else kept == 1 if store.scheme == "s3" else kept > 1
    seen.clear()


def test_the_mark_of_a_folder_is_no_file(store: Server, model: Path, small_parts: None, tmp_path: Path) -> None:
    """An account of Azure with a hierarchical namespace lists folders as empty blobs with a mark."""
    if store.scheme != "az":
        pytest.skip("of Azure alone")
    address = store.address("marked/out")
    container = store.sink("az://" + BUCKET)._client  # type: ignore[call-arg]
    for folder in ("marked", "marked/out", "marked/out/0"):
        container.get_blob_client(folder).upload_blob(b"", metadata={"hdi_isfolder": "true"})
    convert(model, address, to="nanotron", tp=2, spool=tmp_path / "spool")
    code, text = ckpt("verify", model, address)
    assert code == 0, text


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 90 MB, which has parts of the size that they really have, in two files."""
    folder = tmp_path_factory.mktemp("large") / "llama"
    tiny.build(folder, "llama", num_hidden_layers=1, vocab_size=40_000, hidden_size=256, num_attention_heads=4)
    return folder


@pytest.fixture
def troubled(store: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Troubled]:
    """The server of these checks behind one that makes trouble."""
    server = Troubled(store.port)
    for name, value in store.environment(server.url).items():
        monkeypatch.setenv(name, value)
    forget_clients()
    yield server
    server.shutdown()
    forget_clients()


def forget_clients() -> None:
    writable._store.cache_clear()
    ranges.store_of.__globals__["_store"].cache_clear()


class Command:
    """`ckpt convert` of a model to an address, a process of its own that may be killed."""

    def __init__(self, model: Path, address: str, spool: Path, *more: str) -> None:
        words = ["convert", model, address, "--to", "hf", "--max-shard-size", "50MB", "--spool", spool, *more]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ckpt_core", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ended(self) -> tuple[int, str]:
        out = self.process.communicate(timeout=300)[0]
        return self.process.returncode, out.decode()


def killed_at(server: Troubled, kind: str, number: int, after: bool, start: Callable[[], Command]) -> None:
    """Have a command be killed when its `number`-th request of a kind arrives, or when that has had its effect."""
    begun: list[Command] = []

    def kill(seen: str, count: int) -> str | None:
        if (seen, count) != (kind, number):
            return None
        begun[0].kill()
        return "lost answer" if after else "lost request"

    def drop(seen: str, count: int) -> str | None:
        """No later request of the kind arrives: else what was on its way with it may be all that there is."""
        return "lost request" if seen == kind and count > number else None

    server.calm()
    if after:
        server.before, server.after = drop, kill
    else:
        server.before = lambda seen, count: kill(seen, count) or drop(seen, count)
    begun.append(start())
    code, text = begun[0].ended()
    server.calm()
    assert code == -signal.SIGKILL, (kind, number, after, code, text)


CHAIN = [
    ("put", 1, True),  # the claim
    ("send", 1, False),
    ("send", 2, True),
    ("parts", 1, True),
    ("send", 1, True),
    ("complete", 1, False),
    ("complete", 1, True),
    ("put", 1, True),  # a document
    ("put", 2, False),
    ("remove", 1, False),
]
"""Where the command is killed, each time further on."""


def test_the_command_is_killed_again_and_again(store: Server, troubled: Troubled, large: Path, tmp_path: Path) -> None:
    address, spool = store.address("command/chosen"), tmp_path / "spool"
    seen = store.seen(address)
    for kind, number, after in CHAIN:
        killed_at(troubled, kind, number, after, lambda: Command(large, address, spool))
        assert not any(name.endswith(RECEIPT) for name in seen.objects()) or kind == "remove", (kind, number)
    code, text = Command(large, address, spool).ended()
    assert code == 0 and "done before" in text, text
    whole_and_alone(store, large, address, spool, tmp_path)


def whole_and_alone(store: Server, model: Path, address: str, spool: Path, tmp_path: Path) -> None:
    """All of an output is at the address, nothing else, nothing in the spool, and no upload."""
    convert(model, tmp_path / "local", to="hf", sync=False, options={"max_shard_size": "50MB"})
    there, local = store.seen(address).objects(), tmp_path / "local"
    assert there.keys() == {f"/{one.name}" for one in local.iterdir()}
    assert all(there[f"/{one.name}"] == one.read_bytes() for one in local.iterdir() if one.name != RECEIPT)
    assert not store.seen(address).uploads() and not list(spool.iterdir())
    assert ckpt("verify", model, address)[0] == 0


def test_the_command_is_killed_at_any_time(store: Server, large: Path, tmp_path: Path) -> None:
    address, spool, chance = store.address("command/random"), tmp_path / "spool", random.Random(7)
    begun = time.monotonic()
    assert Command(large, address, spool).ended()[0] == 0
    whole = time.monotonic() - begun
    seen, killed = store.seen(address), 0
    seen.clear()
    for _ in range(12):
        command = Command(large, address, spool)
        time.sleep(chance.uniform(0.2, 1.0) * whole)
        ended = command.process.poll() is not None
        killed += not ended
        whole *= 0.7 if ended else 1  # the machine was busier when it was measured
        command.kill()
        if RECEIPT in "".join(there := seen.objects()):
            assert not seen.uploads()
            if ".ckpt-partial" not in there and killed < 10:
                seen.clear()
    assert killed > 3
    code, text = Command(large, address, spool).ended()
    assert code == 0, text
    assert not seen.parts()
    seen.clear_uploads()  # of a run that was killed between its uploads and its claim
    whole_and_alone(store, large, address, spool, tmp_path)


def test_the_command_goes_on_elsewhere_once_the_other_machine_is_silent(
    store: Server, troubled: Troubled, large: Path, tmp_path: Path
) -> None:
    address = store.address("command/elsewhere")
    killed_at(troubled, "send", 4, True, lambda: Command(large, address, tmp_path / "a"))
    there = store.seen(address).parts()
    first = Command(large, address, tmp_path / "b")
    time.sleep(5)
    code, text = ckpt("inspect", address)
    assert code == 1 and "a conversion to this address is not finished" in text, text
    code, text = first.ended()
    assert code == 0 and "waiting up to 60 s" in text, text
    assert there and troubled.seen["send"] < 7
    whole_and_alone(store, large, address, tmp_path / "b", tmp_path)


def test_the_command_leaves_one_that_lives_alone(
    store: Server, troubled: Troubled, large: Path, tmp_path: Path
) -> None:
    """The first one is slow; the second one looks, names it, and ends; a third one of something else is refused, too."""
    address = store.address("command/both")
    slow = threading.Event()

    def wait(kind: str, number: int) -> None:
        if kind == "send" and number > 2:  # each attempt of it
            slow.wait(250)

    troubled.before = wait
    first = Command(large, address, tmp_path / "a")
    while troubled.seen["send"] < 3:
        time.sleep(0.1)
    code, text = Command(large, address, tmp_path / "b").ended()
    assert code == 1 and "another run is at the same conversion" in text and str(first.process.pid) in text, text
    code, text = Command(large, address, tmp_path / "c", "--dtype", "bf16").ended()
    assert code == 1 and "an unfinished conversion of something else is in the way" in text, text
    assert str(first.process.pid) in text, text
    slow.set()
    assert first.ended()[0] == 0
    whole_and_alone(store, large, address, tmp_path / "a", tmp_path)


def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every client wait two seconds for a byte, not sixty."""
    for module in (az, buckets, s3):
        monkeypatch.setattr(module, "_TIMEOUT", 2)
    forget_clients()


READING = {"list", "head", "get", "range", "parts"}


@pytest.mark.parametrize("trouble", [*TROUBLES, *SLOW])
def test_each_trouble_of_a_store_passes(
    store: Server,
    troubled: Troubled,
    model: Path,
    small_parts: None,
    tmp_path: Path,
    trouble: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Requests 1, 4, 9, 16, ... of each kind have the trouble, each twentieth if that takes its time; from bucket to bucket, verified there.

    The gaps grow. With equal gaps, threads that take turns can let one request have all of the trouble.
    """
    if trouble in SLOW:
        limit(monkeypatch)
    source, address = put(store, model, f"trouble/{trouble}/from"), store.address(f"trouble/{trouble}/to")
    lock, struck = threading.Lock(), Counter[str]()

    def strikes(kind: str, number: int) -> str | None:
        with lock:
            has = number % 20 == 1 if trouble in SLOW else math.isqrt(number) ** 2 == number
            if not has or (trouble == "error in 200" and kind != "complete"):
                return None  # S3 begins a long answer before it knows the end of the work
            if trouble in ("short answer", "stalled answer") and kind not in READING:
                return None
            struck[kind] += 1
            return trouble

    if trouble in ("lost answer", "short answer", "stalled answer"):
        troubled.after = strikes
    else:
        troubled.before = strikes
    written = convert(source, address, to="nanotron", tp=2, spool=tmp_path / "spool")
    verdict = ckpt("verify", source, address)
    troubled.calm()
    assert verdict[0] == 0, verdict
    assert written.fingerprint == fingerprint(model) == fingerprint(address)
    assert not list((tmp_path / "spool").iterdir())
    seen = store.seen(address)  # of an upload whose name was lost on the way nobody knows
    assert not seen.parts() and (trouble == "lost answer" or not seen.uploads())
    assert struck["complete"] or trouble in ("short answer", "stalled answer")
    assert struck["range"] + struck["get"] or trouble == "error in 200"


@pytest.mark.parametrize("trouble", [*SLOW, *WRONG])
@pytest.mark.parametrize("side", ["read", "written"])
def test_a_store_that_goes_on_like_that_is_an_error_in_time_or_none(
    store: Server,
    troubled: Troubled,
    model: Path,
    small_parts: None,
    tmp_path: Path,
    side: str,
    trouble: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each request has the trouble, on the side of the source or of the destination. A redirect leads to where all is well."""
    limit(monkeypatch)
    monkeypatch.setattr(ranges, "ATTEMPTS", 2)
    name = f"forever/{side}/{trouble}"
    troubled.before = lambda kind, number: trouble if trouble in ("silence", "redirect") else None
    troubled.after = lambda kind, number: trouble
    begun = time.monotonic()
    if side == "read":
        code, text = ckpt("fingerprint", put(store, model, name))
    else:
        code, text = ckpt("convert", model, store.address(name), "--to", "hf", "--spool", tmp_path / "spool")
    assert time.monotonic() - begun < 90
    assert code in (0, 1) and "Traceback" not in text and "this is a bug" not in text, text
    assert code == 1 or trouble in ("redirect", "long answer"), text
    troubled.calm()
    if side == "written" and code == 0:
        assert ckpt("verify", model, store.address(name))[0] == 0
    elif code == 0:
        assert text.split()[0] == fingerprint(model)


def test_what_a_real_store_refuses_is_said_and_keeps_the_work(
    store: Server, model: Path, small_parts: None, sends: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = ckpt(
        "convert",
        model,
        store.address("x").replace(BUCKET, "no-such-bucket"),
        "--to",
        "hf",
        "--spool",
        tmp_path / "spool",
    )
    assert code == 1 and "there is no such" in text and "Traceback" not in text, text
    address = store.address("refused")
    put(store, model / "config.json", "refused")
    code, text = ckpt("convert", model, address, "--to", "hf", "--spool", tmp_path / "spool")
    assert code == 1 and "the destination exists" in text and f"{address}/config.json" in text, text
    code, text = ckpt("convert", model, address, "--to", "hf", "--overwrite", "--spool", tmp_path / "spool")
    assert code == 2 and "--overwrite replaces nothing in a store" in text, text
    address = store.address("kept")
    assert killed(model, address, "send", 9, True, tmp_path / "spool", to="hf") == -signal.SIGKILL
    there = store.seen(address).parts()
    code, text = ckpt("inspect", address)
    assert code == 1 and "a conversion to this address is not finished" in text, text
    with pytest.raises(CkptError, match="an unfinished conversion of something else is in the way"):
        convert(model, address, to="hf", dtype="bf16", spool=tmp_path / "other")
    with monkeypatch.context() as gone:
        for name, value in store.environment("http://127.0.0.1:9").items():
            gone.setenv(name, value)
        forget_clients()
        code, text = ckpt("convert", model, address, "--to", "hf", "--spool", tmp_path / "spool")
        assert code == 1 and "does not answer" in text and "Traceback" not in text, text
    with monkeypatch.context() as gone:
        for name in store.secrets:
            gone.delenv(name, raising=False)
        gone.setenv("AZURE_STORAGE_ACCOUNT_NAME", "somebody")
        gone.setenv("AWS_EC2_METADATA_DISABLED", "true")
        gone.setenv("HOME", str(tmp_path))
        writable._store.cache_clear()
        with pytest.raises(StoreError, match="there are no credentials to write there"):
            writable.writable(address).begin(address, "")  # type: ignore[union-attr]
    forget_clients()
    assert store.seen(address).parts() == there
    convert(model, address, to="hf", spool=tmp_path / "spool")
    assert len(sends) < 40 - there + 1
    assert ckpt("verify", model, address)[0] == 0


class Answers(http.server.BaseHTTPRequestHandler):
    """A store that gives one answer to everything: `status` and `code`; 0 breaks the connection off."""

    protocol_version = "HTTP/1.1"
    status, code = 200, ""

    def log_message(self, *_: object) -> None:
        pass

    def do_PUT(self) -> None:
        if not Answers.status:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = f"<Error><Code>{Answers.code}</Code><Message>so it is</Message></Error>".encode()
        self.send_response(Answers.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.mark.parametrize(
    ("status", "code", "meaning", "words"),
    [
        (404, "NoSuchUpload", Gone, ""),
        (404, "NoSuchBucket", StoreError, "there is no such bucket"),
        (412, "PreconditionFailed", Taken, ""),
        (409, "ConditionalRequestConflict", Hiccup, ""),
        (503, "SlowDown", Hiccup, ""),
        (500, "InternalError", Hiccup, ""),
        (429, "TooManyRequests", Hiccup, ""),
        (400, "RequestTimeout", Hiccup, ""),
        (400, "BadDigest", Hiccup, ""),
        (0, "", Hiccup, ""),
        (403, "AccessDenied", StoreError, "s3:ListMultipartUploadParts"),
        (403, "InvalidAccessKeyId", StoreError, "the store does not let you do this"),
        (400, "ExpiredToken", StoreError, "credentials"),
        (400, "EntityTooLarge", StoreError, "the store refuses the request"),
        (501, "NotImplemented", StoreError, "the store refuses the request"),
    ],
)
def test_every_answer_of_a_store_has_a_meaning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, code: str, meaning: type[Exception], words: str
) -> None:
    Answers.status, Answers.code = status, code
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    (tmp_path / "part").write_bytes(b"part of a file")
    try:
        with contextlib.closing(Body(str(tmp_path / "part"), 5, 4)) as body, pytest.raises(meaning) as error:
            S3("s3://bucket").send("s3://bucket/key", "upload", 1, body)
    finally:
        server.shutdown()
    assert words in str(error.value)
    assert status == 0 or code in str(error.value)
