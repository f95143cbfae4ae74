"""What goes wrong around a conversion: disks, permissions, sources that change under it, and bits that flip afterwards.

`docs/reliability.md` names these tests: each injects the fault itself, and not its echo in our own code.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import pytest

from ckpt_core import convert
from ckpt_core.api import plan_conversion
from ckpt_core.engine import run
from ckpt_core.errors import CkptError
from ckpt_core.receipt.places import RECEIPT
from ckpt_tests.folders import contents, staging_of
from ckpt_tests.program import ckpt

ARGUMENTS = {"to": "nanotron", "tp": 2}
TENSORS = 12  # of a Llama of one layer


# --- no room, no permission -------------------------------------------------------------------------------------------------


@functools.cache
def own_mounts() -> list[str] | None:
    """How a program is run that may mount what only it sees; None where the system forbids it."""
    for way in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        tried = [*way, "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]
        if shutil.which("unshare") and subprocess.run(tried, capture_output=True, check=False).returncode == 0:
            return way
    return None


def cramped(model: Path, folder: Path, fault: str, **asked: object) -> list[dict]:
    """An undisturbed conversion, one with the fault, and its repetition; see cramped.py."""
    request = json.dumps({"source": str(model), "folder": str(folder), "fault": fault, "arguments": ARGUMENTS, **asked})
    before = own_mounts() if fault == "disk" else []
    command = [*before, sys.executable, "-m", "ckpt_tests.cramped", request]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("fault", ["disk", "file size"])
def test_a_full_disk_keeps_what_is_done(model: Path, tmp_path: Path, fault: str) -> None:
    """A real one where mounting is allowed; elsewhere the limit on file sizes stands in for it, which is the kernel's refusal too."""
    full = fault == "disk" and own_mounts() is not None
    undisturbed, failed, repeated = cramped(model, tmp_path, "disk" if full else "file size")
    assert failed["error"]["errno"] == (errno.ENOSPC if full else errno.EFBIG)
    assert failed["error"]["file"].startswith(str(staging_of(tmp_path / "run"))), (
        "the error says which file has no room"
    )
    assert failed["output"] is None and failed["staging"]
    assert repeated["output"] == undisturbed["output"] and not repeated["staging"] and not repeated["error"]
    if full:
        assert 1 < failed["moved"] < TENSORS
        assert TENSORS - failed["moved"] < repeated["moved"] < TENSORS, (
            "those that fit are not moved again, the others are"
        )
    else:
        assert failed["moved"] == 0, "files have their final size from the start"


SHUT = {
    "the folder around it, before": (".", 0),
    "the folder around it, while it runs": (".", 4),
    "the output, while it runs": ("run.ckpt-partial/out", 4),
}


@pytest.mark.parametrize(("shut", "moment"), SHUT.values(), ids=SHUT)
def test_a_destination_that_becomes_read_only(model: Path, tmp_path: Path, shut: str, moment: int) -> None:
    undisturbed, failed, repeated = cramped(model, tmp_path, "folder", shut=shut, moment=moment)
    assert failed["error"]["errno"] == errno.EACCES
    assert failed["error"]["file"].startswith(str(staging_of(tmp_path / "run")))
    assert failed["output"] is None
    assert failed["staging"] == bool(moment), "nothing was made where nothing may be made"
    assert repeated["output"] == undisturbed["output"] and not repeated["staging"] and not repeated["error"]
    assert repeated["moved"] == (0 if moment else TENSORS)


@pytest.mark.parametrize(
    ("suffix", "repeated"),
    [("down_proj/model_weight_pp-rank-0-of-1_tp-rank-1-of-2.safetensors", TENSORS), ("config.yaml", 0)],
    ids=["of tensors", "of a document"],
)
def test_a_sync_that_fails_is_believed(
    model: Path, tmp_path: Path, work: list[str], monkeypatch: pytest.MonkeyPatch, suffix: str, repeated: int
) -> None:
    """The kernel reports a lost page once, and forgets it: what the journal calls written may not be there.

    Documents are not in the journal: a repetition writes them anew, and moves no tensor again.
    """
    destination = tmp_path / "run"
    convert(model, destination, **ARGUMENTS)
    expected = contents(destination)
    shutil.rmtree(destination)
    fsync, failed = os.fsync, []

    def failing(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith(suffix) and not failed:
            failed.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Input/output error") as caught:
        patched.setattr(os, "fsync", failing)
        convert(model, destination, **ARGUMENTS)
    assert caught.value.filename == failed[0] and failed[0].startswith(str(staging_of(destination)))
    assert not os.path.exists(failed[0])
    del work[:]
    convert(model, destination, **ARGUMENTS)
    assert contents(destination) == expected
    assert len(work) == repeated


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_mount_point_is_refused_before_the_work(
    model: Path, tmp_path: Path, work: list[str], overwrite: bool
) -> None:
    """It can't be renamed over: the output would be on another file system than its final name."""
    plan = plan_conversion(model, "/proc", **ARGUMENTS)
    with pytest.raises(CkptError, match="mount point"):
        run.run_plan(plan, "/proc", overwrite=overwrite)
    assert not work and not os.path.exists("/proc.ckpt-partial")


def test_a_link_to_an_empty_folder_is_something_that_exists(model: Path, tmp_path: Path, work: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").symlink_to("empty")
    with pytest.raises(CkptError, match="the destination exists"):
        convert(model, tmp_path / "run", **ARGUMENTS)
    assert not work and sorted(path.name for path in tmp_path.iterdir()) == ["empty", "run"]


def test_what_appears_at_the_destination_meanwhile_is_kept(model: Path, tmp_path: Path, work: list[str]) -> None:
    """Without --overwrite anything; with it what is not a checkpoint."""
    destination = tmp_path / "run"

    def appear(_: object) -> None:
        destination.mkdir(exist_ok=True)
        (destination / "mine").write_text("mine")

    for overwrite, problem in ((False, "the destination exists"), (True, "the destination is not a checkpoint")):
        with pytest.raises(CkptError, match=problem):
            convert(model, destination, **ARGUMENTS, overwrite=overwrite, listener=appear)
        assert contents(destination).keys() == {"mine"} and staging_of(destination).is_dir()
        shutil.rmtree(destination)
        convert(model, destination, **ARGUMENTS)
        assert len(work) == TENSORS, "all of it was there already"
        shutil.rmtree(destination)
        del work[:]
    shutil.copytree(model, destination)
    convert(model, destination, **ARGUMENTS, overwrite=True)
    assert "config.json" not in contents(destination) and not staging_of(destination).exists()
    assert len(work) == TENSORS


def test_a_worker_that_is_killed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does when memory runs out. What was done is kept."""

    @contextlib.contextmanager
    def shooting(_: str, **_named: object):
        yield lambda event: [process.kill() for process in active_children()]

    destination = tmp_path / "run"
    convert(model, destination, **ARGUMENTS)
    expected = contents(destination)
    shutil.rmtree(destination)
    with monkeypatch.context() as patched:
        patched.setattr("ckpt_core.cli.convert.progress", shooting)
        code, text = ckpt(
            "convert", model, destination, "--to", "nanotron", "--tp", 2, "--engine", "processes", "--workers", 1
        )
    assert code == 1 and "a worker died" in text and "repeat the same command" in text
    assert not destination.exists() and staging_of(destination).is_dir()
    convert(model, destination, **ARGUMENTS)
    assert contents(destination) == expected


def test_worker_processes_import_nothing_from_the_current_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python starts them with `-c`, and so would look there first: the folder may be a checkpoint's."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("random", "multiprocessing", "json"):
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()")
    monkeypatch.chdir(here)
    arguments = ("--to", "nanotron", "--engine", "processes", "--workers", 1)
    code, text = ckpt("convert", model, tmp_path / "run", *arguments)
    assert code == 0, text
    assert not (tmp_path / "executed").exists() and "PYTHONSAFEPATH" not in os.environ


# --- a source that does not hold still --------------------------------------------------------------------------------------


def folder_source(model: Path, folder: Path) -> tuple[Path, Path]:
    shutil.copytree(model, folder / "hf")
    return folder / "hf", folder / "hf" / "model.safetensors"


def tar_source(model: Path, folder: Path) -> tuple[Path, Path]:
    convert(model, folder / "model.nemo", to="nemo")
    return folder / "model.nemo", folder / "model.nemo"


def gzip_source(model: Path, folder: Path) -> tuple[Path, Path]:
    archive, _ = tar_source(model, folder)
    archive.write_bytes(gzip.compress(archive.read_bytes(), 1))
    return archive, archive


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 3)


def deleted(file: Path) -> None:
    file.unlink()


def replaced(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(bytes(file.stat().st_size))
    other.rename(file)


def rewritten(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(os.urandom(64))


@pytest.mark.parametrize("fault", [truncated, deleted, replaced, rewritten])
@pytest.mark.parametrize("kind", [folder_source, tar_source, gzip_source])
def test_a_source_that_changes_while_it_is_read(model: Path, tmp_path: Path, kind: Callable, fault: Callable) -> None:
    source, file = kind(model, tmp_path)
    destination = tmp_path / "run"
    convert(source, destination, **ARGUMENTS)
    expected = contents(destination)
    shutil.rmtree(destination)
    saved = tmp_path / "saved"
    shutil.copy2(file, saved)
    struck: list[object] = []

    def strike(event: object) -> None:
        if not struck:
            fault(file)
        struck.append(event)

    with pytest.raises(CkptError) as caught:
        convert(source, destination, **ARGUMENTS, workers=1, listener=strike)
    assert caught.value.file == str(file)
    assert struck and not destination.exists() and not staging_of(destination).exists()
    shutil.copy2(saved, file)
    convert(source, destination, **ARGUMENTS)
    assert contents(destination) == expected


@pytest.mark.parametrize(
    "fault", [truncated, deleted, rewritten, lambda file: file.write_text('{"model": {"vocab": {"a": 0, "b": 1}}}')]
)
def test_a_sidecar_that_changes_before_it_is_copied(model: Path, tmp_path: Path, fault: Callable) -> None:
    source, _ = folder_source(model, tmp_path)
    with pytest.raises(CkptError) as caught:
        convert(
            source,
            tmp_path / "out",
            to="ir",
            listener=lambda _: (source / "tokenizer.json").exists() and fault(source / "tokenizer.json"),
        )
    assert caught.value.file == str(source / "tokenizer.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


# --- bits that flip afterwards ----------------------------------------------------------------------------------------------


def flip(file: Path, at: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


@pytest.fixture(scope="module")
def outputs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    convert(model, folder / "run", **ARGUMENTS)
    convert(model, folder / "model.nemo", to="nemo")
    return folder


def verified(model: Path, output: Path) -> tuple[int, str]:
    return ckpt("verify", model, output)


def test_whole_outputs_pass(model: Path, outputs: Path) -> None:
    assert verified(model, outputs / "run")[0] == verified(model, outputs / "model.nemo")[0] == 0


def test_a_flipped_bit_in_a_weight_is_found(model: Path, outputs: Path, tmp_path: Path) -> None:
    """In a weight of every kind: the file of each holds that tensor alone, and its last byte is a value's."""
    shutil.copytree(outputs / "run", tmp_path / "run")
    for file in sorted((tmp_path / "run").rglob("*tp-rank-0-of-2*.safetensors")):
        flip(file, -1)
        code, text = verified(model, tmp_path / "run")
        assert code == 3 and "values changed since the conversion" in text, file
        flip(file, -1)
    assert verified(model, tmp_path / "run")[0] == 0


def test_a_flipped_bit_in_a_document_is_found(model: Path, outputs: Path, tmp_path: Path) -> None:
    shutil.copytree(outputs / "run", tmp_path / "run")
    for name in json.loads((outputs / "run" / RECEIPT).read_text())["target"]["documents"]:
        file = tmp_path / "run" / name
        flip(file, file.stat().st_size // 2)
        code, text = verified(model, tmp_path / "run")
        named = os.path.basename(name) in text
        assert (code == 3 and named) or (code == 1 and (named or str(tmp_path) in text)), (name, text)
        flip(file, file.stat().st_size // 2)
    assert verified(model, tmp_path / "run")[0] == 0


@pytest.mark.parametrize("name", ["run", "model.nemo"])
def test_a_flipped_bit_in_a_receipt_is_found(model: Path, outputs: Path, tmp_path: Path, name: str) -> None:
    """Anywhere in it; and no reader believes it either."""
    output = tmp_path / name
    receipt = output / RECEIPT if name == "run" else tmp_path / f"{name}.{RECEIPT}"
    (shutil.copytree if name == "run" else shutil.copy2)(outputs / name, output)
    if name != "run":
        shutil.copy2(outputs / receipt.name, receipt)
    for part in range(16):
        at = part * (receipt.stat().st_size - 2) // 15
        flip(receipt, at, 2)
        code, text = verified(model, output)
        assert code == 1 and str(receipt) in text, (at, text)
        flip(receipt, at, 2)
    assert verified(model, output)[0] == 0


def test_a_flipped_bit_in_a_single_file_is_found(model: Path, outputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.nemo"
    for name in ("model.nemo", f"model.nemo.{RECEIPT}"):
        shutil.copy2(outputs / name, tmp_path / name)
    size = output.stat().st_size
    weights = size // 2  # the weights are nearly all of it
    flip(output, weights)
    code, text = verified(model, output)
    assert code == 3 and "values changed since the conversion" in text
    flip(output, weights)
    output.write_bytes(output.read_bytes()[:-512])
    assert verified(model, output)[0] in (1, 3)
