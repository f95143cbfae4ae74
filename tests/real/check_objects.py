"""Checkpoints in buckets, against a whole S3 server on this machine (moto) and the real clients (obstore to read, boto3 to write).

`nox -s objects`. The server keeps bytes, ETags and conditions as S3 does; what a store gets wrong is in tests/remote, where a server
of our own can be told to.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import obstore
import pytest
from killed_upload import PART, killed
from obstore.store import S3Store

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.engine import claim, parts
from ckpt_core.engine.uploads import SENDERS
from ckpt_core.errors import CkptError, FormatError, StoreError
from ckpt_core.receipt.places import RECEIPT
from ckpt_core.storage.bytes.remote import ranges, writable
from ckpt_core.storage.bytes.remote.objects import Hiccup
from ckpt_core.storage.bytes.remote.s3 import S3
from ckpt_core.storage.bytes.remote.writing import Body, Gone, Taken
from ckpt_tests.folders import contents
from ckpt_tests.goldens import SHIPPED
from ckpt_tests.program import ckpt

CASES = sorted(f"{one.parent.parent.name}/{one.parent.name}" for one in SHIPPED.rglob("case.json"))
BUCKET = "checkpoints"


@pytest.fixture(scope="session")
def store() -> Iterator[S3Store]:
    """An empty bucket; the environment of this process leads to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = os.environ.get("MOTO_SERVER", Path(sys.executable).parent / "moto_server")
    small = {**os.environ, "S3_UPLOAD_PART_MIN_SIZE": "1"}  # parts of a small model
    server = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL, env=small)
    url = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
    }
    for _ in range(300):
        try:
            urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT")).close()
            break
        except OSError:
            time.sleep(0.1)
    try:
        yield S3Store(BUCKET, endpoint=url, client_options={"allow_http": True})
    finally:
        server.terminate()
        server.wait()


def put(store: S3Store, folder: Path, prefix: str) -> str:
    """Every file of a folder (or a file) in the bucket; returns the address."""
    files = sorted(one for one in folder.rglob("*") if one.is_file()) if folder.is_dir() else [folder]
    for file in files:
        inside = file.relative_to(folder if folder.is_dir() else folder.parent).as_posix()
        obstore.put(store, f"{prefix}/{inside}", file.read_bytes())
    return f"s3://{BUCKET}/{prefix}" if folder.is_dir() else f"s3://{BUCKET}/{prefix}/{folder.name}"


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
def test_every_golden_opens(store: S3Store, case: str) -> None:
    folder = SHIPPED / case / "checkpoint"
    inside = [one for one in folder.iterdir() if one.suffix == ".nemo"]
    given = next((one for name in ("config", "source_hf") if (one := SHIPPED / case / name).is_dir()), None)
    put(store, SHIPPED / case, case)
    address = f"s3://{BUCKET}/{case}/checkpoint" + (f"/{inside[0].name}" if inside else "")
    config = None if given is None else f"s3://{BUCKET}/{case}/{given.name}"
    try:
        expected = fingerprint(inside[0] if inside else folder, config=given)
    except Exception as error:  # a case that needs an option: both say so in the same words
        with pytest.raises(type(error), match=str(error).split("\n")[0][:40].replace("(", ".").replace(")", ".")):
            fingerprint(address, config=config)
    else:
        assert fingerprint(address, config=config) == expected


def test_every_command_reads_a_bucket(store: S3Store, model: Path, tmp_path: Path) -> None:
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


def test_a_change_in_between_is_noticed(store: S3Store, model: Path) -> None:
    source = put(store, model, "changing")
    with open_checkpoint(source) as checkpoint:
        ranges._STEPS.__init__()  # type: ignore[misc]
        data = bytearray((model / "model.safetensors").read_bytes())
        data[-1] ^= 1
        obstore.put(store, "changing/model.safetensors", bytes(data))
        with pytest.raises(FormatError, match="the source changed while it was being read"):
            checkpoint[list(checkpoint)[-1]].numpy()
        obstore.delete(store, "changing/model.safetensors")
        with pytest.raises(FormatError, match="the source changed while it was being read"):
            checkpoint[list(checkpoint)[-1]].numpy()


def test_what_is_not_there_is_one_error(store: S3Store) -> None:
    code, text = ckpt("inspect", f"s3://{BUCKET}/nothing")
    assert code == 1 and "there is no such file or folder" in text, text
    code, text = ckpt("inspect", "s3://another-bucket/x")
    assert code == 1 and "NoSuchBucket" in text and "Traceback" not in text, text


def test_a_cache_serves_every_later_command(store: S3Store, model: Path, tmp_path: Path) -> None:
    source = put(store, model, "cached")
    outputs = [ckpt("fingerprint", source, "--cache", tmp_path / "cache") for _ in range(2)]
    assert outputs[0] == outputs[1] and outputs[0][0] == 0
    assert list((tmp_path / "cache").glob("*.data"))


def test_a_store_that_goes_away_keeps_what_is_done(
    store: S3Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


class Seen:
    """What a client of its own sees in the bucket below an address."""

    def __init__(self, address: str) -> None:
        self.client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
        self.prefix = address.removeprefix(f"s3://{BUCKET}/")

    def objects(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self.prefix):
            for one in page.get("Contents", ()):
                body = self.client.get_object(Bucket=BUCKET, Key=one["Key"])["Body"]
                found[one["Key"].removeprefix(self.prefix)] = body.read()
        return found

    def uploads(self) -> list[tuple[str, str]]:
        found = self.client.list_multipart_uploads(Bucket=BUCKET, Prefix=self.prefix).get("Uploads", ())
        return [(one["Key"], one["UploadId"]) for one in found]

    def parts(self) -> int:
        found = 0
        for key, name in self.uploads():
            with contextlib.suppress(
                self.client.exceptions.NoSuchUpload
            ):  # a completion that was on its way arrived now
                found += len(self.client.list_parts(Bucket=BUCKET, Key=key, UploadId=name).get("Parts", ()))
        return found

    def clear(self) -> None:
        for name in self.objects():
            self.client.delete_object(Bucket=BUCKET, Key=self.prefix + name)
        for key, name in self.uploads():
            self.client.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=name)


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the parts that this process sends."""
    sent: list[int] = []
    plain = S3.send

    def noted(self: S3, address: str, upload: str, number: int, body: Any) -> str:
        sent.append(number)
        return plain(self, address, upload, number, body)

    monkeypatch.setattr(S3, "send", noted)
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
    store: S3Store, model: Path, small_parts: None, tmp_path: Path, case: str
) -> None:
    address, asked = f"s3://{BUCKET}/chain/{case}", CASES_WRITTEN[case]
    source = put(store, model, f"chain-source/{case}")
    written = convert(source, address, spool=tmp_path / "spool", **asked)  # type: ignore[arg-type]
    assert written.fingerprint == fingerprint(model) == fingerprint(address)
    seen = Seen(address)
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
    assert Seen(f"{address}-back/model.safetensors").objects()[""] == contents_of(model, tmp_path, "model.safetensors")


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
    store: S3Store,
    model: Path,
    small_parts: None,
    sends: list[int],
    tmp_path: Path,
    case: str,
    moments: list[tuple[str, int, bool]],
) -> None:
    asked = CASES_WRITTEN[case]
    address = f"s3://{BUCKET}/killed/{case}-{moments[0][0]}-{moments[0][1]}"
    seen = Seen(address)
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


def test_what_a_real_store_refuses_is_said_and_keeps_the_work(
    store: S3Store, model: Path, small_parts: None, sends: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = ckpt("convert", model, "s3://no-such-bucket/x", "--to", "hf", "--spool", tmp_path / "spool")
    assert code == 1 and "there is no such bucket" in text and "Traceback" not in text, text
    address = f"s3://{BUCKET}/refused"
    put(store, model / "config.json", "refused")
    code, text = ckpt("convert", model, address, "--to", "hf", "--spool", tmp_path / "spool")
    assert code == 1 and "the destination exists" in text and f"{address}/config.json" in text, text
    code, text = ckpt("convert", model, address, "--to", "hf", "--overwrite", "--spool", tmp_path / "spool")
    assert code == 2 and "--overwrite replaces nothing in a store" in text, text
    address = f"s3://{BUCKET}/kept"
    assert killed(model, address, "send", 9, True, tmp_path / "spool", to="hf") == -signal.SIGKILL
    there = Seen(address).parts()
    code, text = ckpt("inspect", address)
    assert code == 1 and "a conversion to this address is not finished" in text, text
    with pytest.raises(CkptError, match="an unfinished conversion of something else is in the way"):
        convert(model, address, to="hf", dtype="bf16", spool=tmp_path / "other")
    with monkeypatch.context() as gone:
        gone.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        writable._s3.cache_clear()
        ranges.store_of.__globals__["_store"].cache_clear()
        code, text = ckpt("convert", model, address, "--to", "hf", "--spool", tmp_path / "spool")
        assert code == 1 and "does not answer" in text and "Traceback" not in text, text
    with monkeypatch.context() as gone:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            gone.delenv(name)
        gone.setenv("AWS_EC2_METADATA_DISABLED", "true")
        gone.setenv("HOME", str(tmp_path))
        writable._s3.cache_clear()
        with pytest.raises(StoreError, match="there are no credentials to write there"):
            writable.writable(address).begin(address, "")  # type: ignore[union-attr]
    writable._s3.cache_clear()
    ranges.store_of.__globals__["_store"].cache_clear()
    assert Seen(address).parts() == there
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
