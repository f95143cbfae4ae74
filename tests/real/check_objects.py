"""Checkpoints in buckets, against a whole S3 server on this machine (moto) and the real client (obstore).

`nox -s objects`. The server keeps bytes, ETags and conditions as S3 does; what a store gets wrong is in tests/remote, where a server
of our own can be told to.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import FormatError, StoreError
from ckpt_core.storage.bytes.remote import ranges
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
    server = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
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
