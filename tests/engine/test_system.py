"""What a system may do to a conversion: closes that fail, files that can't be opened now, few descriptors, calls that are missing."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_core import convert
from ckpt_core.api import plan_conversion
from ckpt_core.engine import destination as destinations
from ckpt_core.errors import CkptError
from ckpt_core.storage.bytes import files, pagecache
from ckpt_tests import tiny
from ckpt_tests.folders import contents
from ckpt_tests.program import ckpt

TO = {"to": "nanotron", "tp": 2}


def staged(descriptor: int) -> bool:
    return ".ckpt-partial/out/" in os.readlink(f"/proc/self/fd/{descriptor}")


@pytest.mark.parametrize("number", [1, 14, 30, 60])
def test_a_close_that_fails_is_believed(
    model: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file made, written, completed or copied: its last write is lost, and the system says so once."""
    destination = tmp_path / "run"
    convert(model, destination, **TO)
    expected = contents(destination)
    shutil.rmtree(destination)
    real, write, last, seen = os.close, os.pwrite, {}, []

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        last[descriptor] = (offset, len(data))
        return write(descriptor, data, offset)

    def close(descriptor: int) -> None:
        lost = last.pop(descriptor, None)
        if staged(descriptor):
            seen.append(descriptor)
            if len(seen) == number:
                if lost is not None:
                    write(descriptor, bytes(lost[1]), lost[0])
                real(descriptor)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Input/output error") as caught:
        patched.setattr(os, "pwrite", pwrite)
        patched.setattr(os, "close", close)
        convert(model, destination, **TO, workers=1)
    assert ".ckpt-partial/out/" in str(caught.value.filename)
    assert not os.path.exists(caught.value.filename)
    convert(model, destination, **TO)
    assert contents(destination) == expected


def test_no_descriptor_is_closed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all closes fail, each is still made once: the number may be another thread's file a moment later."""
    pool = files.OpenFiles(files.Folder(str(tmp_path)))
    for name in "abc":
        (tmp_path / name).write_bytes(b"")
        with pool.descriptor(str(tmp_path / name)):
            pass
    real, closed = os.close, []

    def close(descriptor: int) -> None:
        closed.append(descriptor)
        real(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", close)
        with pytest.raises(OSError, match="Input/output error") as caught:
            pool.close()
        pool.close()
        pool.__del__()
    assert len(closed) == 3 == len(set(closed))
    assert caught.value.filename == str(tmp_path / "a") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("reason", ["ESTALE", "EIO", "EMFILE", "ENFILE", "EACCES"])
def test_a_source_that_the_system_does_not_open(
    model: Path, tmp_path: Path, work: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination, real, number = tmp_path / "run", os.open, getattr(errno, reason)
    source = shutil.copytree(model, tmp_path / "hf")

    def opened(path: str, *arguments: object, **named: object) -> int:
        if str(path) == str(source / "tokenizer.json") and work:
            raise OSError(number, os.strerror(number), path)
        return real(path, *arguments, **named)

    with monkeypatch.context() as patched, pytest.raises(OSError, match=os.strerror(number)) as caught:
        patched.setattr(os, "open", opened)
        convert(source, destination, **TO)
    assert caught.value.filename == str(source / "tokenizer.json")
    done = len(work)
    convert(source, destination, **TO)
    assert len(work) == done, "what was done counts"


def test_256_descriptors_are_enough(tmp_path: Path) -> None:
    """Far fewer, here, with more files on both sides: the pools take half of what a process may have, whatever that is."""
    tiny.build(tmp_path / "whole", "llama", num_hidden_layers=4)
    convert(tmp_path / "whole", tmp_path / "hf", to="hf", options={"max_shard_size": "1KB"})
    code = (
        "import resource, sys; from ckpt_core.cli.main import main; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)); sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["convert", str(tmp_path / "hf"), str(tmp_path / "run"), "--to", "nanotron", "--tp", "2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    for side in ("hf", "run"):
        assert len(list((tmp_path / side).rglob("*.safetensors"))) > 32
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, allowed[1]))
    try:
        assert files._usual_limit() == 64
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)


def lacking(number: int) -> Callable:
    def call(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("reason", ["ENOSYS", "EOPNOTSUPP", "EINVAL", "ENOLCK"])
def test_calls_that_a_file_system_lacks(
    model: Path, tmp_path: Path, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, fsync = getattr(errno, reason), os.fsync

    def of_files_only(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            lacking(number)()
        fsync(descriptor)

    monkeypatch.setattr(fcntl, "flock", lacking(number))
    monkeypatch.setattr(os, "posix_fadvise", lacking(number))
    if reason != "ENOLCK":
        monkeypatch.setattr(os, "fsync", of_files_only)
    convert(model, tmp_path / "run", **TO)
    if reason != "ENOLCK":
        monkeypatch.setattr(os, "fsync", lacking(number))
        code, text = ckpt("convert", model, tmp_path / "other", "--to", "nanotron")
        assert code == 1 and "--no-sync" in text and "other.ckpt-partial/out" in text
        assert ckpt("convert", model, tmp_path / "other", "--to", "nanotron", "--no-sync")[0] == 0


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("fits", ["both", "output", "nothing"])
def test_pages_leave_the_cache_only_where_they_do_not_fit(
    model: Path, tmp_path: Path, fits: str, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: set[str] = set()

    def advised(descriptor: int, offset: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        dropped.add(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "posix_fadvise", advised)
    plan = plan_conversion(model, tmp_path / "run", **TO)
    room = {"both": plan.bytes_read + plan.bytes_written, "output": plan.bytes_written, "nothing": 1}[fits]
    monkeypatch.setattr(pagecache, "memory", lambda: (1 << 40, room))
    convert(model, tmp_path / "run", **TO, sync=sync)
    written = {path.name for path in (tmp_path / "run").rglob("*.safetensors")}
    source = {"model.safetensors"} if fits != "both" else set()
    assert dropped == source | (written if sync and fits == "nothing" else set())


def test_room_is_checked_before_the_first_byte(model: Path, tmp_path: Path) -> None:
    """A side file of 3 TB that takes no disk at all would be copied with its holes filled."""
    source = shutil.copytree(model, tmp_path / "hf")
    os.truncate(source / "tokenizer.json", 3 << 40)
    for more in ([], ["--dry-run"]):
        code, text = ckpt("convert", source, tmp_path / "run", "--to", "nanotron", *more)
        assert code == 1 and "bytes are missing" in text and "bytes free on" in text
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("short", [0, 1])
def test_what_is_written_already_needs_no_room(
    model: Path, tmp_path: Path, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(BaseException):
        pass

    def stop(_: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        convert(model, tmp_path / "run", **TO, workers=1, listener=stop)
    out = tmp_path / "run.ckpt-partial" / "out"
    plan = plan_conversion(model, tmp_path / "run", **TO)
    held = [path.stat() for path in out.rglob("*") if path.is_file()]
    taken = sum(min(status.st_size, 512 * status.st_blocks) for status in held)
    assert 0 < taken < plan.bytes_written
    free = plan.bytes_written - taken - short
    monkeypatch.setattr(destinations, "free_space", lambda _: (free, "/"))
    if not short:
        convert(model, tmp_path / "run", **TO)
        return
    with pytest.raises(CkptError, match="1 bytes are missing"):
        convert(model, tmp_path / "run", **TO)
    assert out.is_dir()
