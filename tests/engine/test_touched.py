"""Sources that change and keep their size and modification time: a copy that restores times, a writer that sets them back.

Nothing of two checkpoints is ever mixed; and what only looks like a change (a hard link, other permissions, the same bytes again) disturbs nobody.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_core import convert, fingerprint
from ckpt_core.api import plan_conversion
from ckpt_core.cli import progress
from ckpt_core.engine import run
from ckpt_core.engine import touched as engine_touched
from ckpt_core.errors import CkptError, FormatError, TouchedSource
from ckpt_core.storage.bytes import watch
from ckpt_core.storage.bytes.files import FileState, open_regular
from ckpt_tests import victim
from ckpt_tests.folders import contents, staging_of
from ckpt_tests.program import ckpt

ARGUMENTS = {"to": "nanotron", "tp": 2}
TENSORS = 12  # of a Llama of one layer


def in_folder(model: Path, place: Path) -> Path:
    place.mkdir(exist_ok=True)
    shutil.copytree(model, place / "hf")
    return place / "hf" / "model.safetensors"


def in_tar(model: Path, place: Path) -> Path:
    place.mkdir(exist_ok=True)
    convert(model, place / "model.nemo", to="nemo")
    return place / "model.nemo"


def in_gzip(model: Path, place: Path) -> Path:
    archive = in_tar(model, place)
    archive.write_bytes(gzip.compress(archive.read_bytes(), 0))  # so that other weights have the same size
    return archive


def source_of(file: Path) -> Path:
    return file if file.suffix == ".nemo" else file.parent


@pytest.fixture(scope="module")
def sibling(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model a few steps later: a bit of every weight tensor is another one."""
    folder = tmp_path_factory.mktemp("sibling") / "hf"
    shutil.copytree(model, folder)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    for at in range(8 + int.from_bytes(data[:8], "little"), len(data), 16):
        data[at] ^= 1
    file.write_bytes(data)
    return folder


def rename_over(file: Path, data: bytes) -> None:
    was, other = file.stat(), file.parent.with_name(f"{file.name}.new")
    other.write_bytes(data)
    os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
    other.rename(file)


def write_in_place(file: Path, data: bytes) -> None:
    was = file.stat()
    with file.open("r+b") as stream:
        stream.write(data)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))


class At:
    """Strikes once, when so many transfers are done."""

    def __init__(self, moment: int, blow: Callable[[], None]) -> None:
        self.moment, self.left, self.blow, self.remarks = moment, moment, blow, []

    def __call__(self, event: run.Progress) -> None:
        if event.remark:
            self.remarks.append(event.remark)
            return
        self.left -= 1
        if self.left == 0:
            self.blow()


# --- another file of the same size and time ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [rename_over, write_in_place])
@pytest.mark.parametrize(
    ("kind", "moment"),
    [(in_folder, 1), (in_folder, TENSORS // 2), (in_folder, TENSORS), (in_tar, 3), (in_gzip, 3)],
)
def test_another_file_of_the_same_size_and_time(
    model: Path, sibling: Path, tmp_path: Path, kind: Callable, moment: int, way: Callable
) -> None:
    """After the first tensor, in the middle, and after the last."""
    file, destination = kind(model, tmp_path / "a"), tmp_path / "run"
    other, before = kind(sibling, tmp_path / "b").read_bytes(), file.stat()
    assert len(other) == before.st_size
    strike = At(moment, lambda: way(file, other))
    with pytest.raises(FormatError, match="the file changed while it was being read") as caught:
        convert(source_of(file), destination, **ARGUMENTS, workers=1, listener=strike)
    assert caught.value.file == str(file) and "same size and modification time" in str(caught.value.found)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert not destination.exists() and not staging_of(destination).exists()
    convert(source_of(file), destination, **ARGUMENTS)
    assert fingerprint(destination) == fingerprint(sibling)


@pytest.mark.parametrize("way", [rename_over, write_in_place])
def test_another_file_between_the_plan_and_the_first_byte(
    model: Path, sibling: Path, tmp_path: Path, way: Callable
) -> None:
    """All that is read is of the new one, and a plan of it is the same: the output is of one checkpoint."""
    file, destination = in_folder(model, tmp_path), tmp_path / "run"
    planned = functools.partial(plan_conversion, file.parent, destination, **ARGUMENTS)
    plan = planned()
    way(file, (sibling / file.name).read_bytes())
    run.run_plan(plan, str(destination), again=planned)
    assert fingerprint(destination) == fingerprint(sibling)


def test_a_config_and_a_tokenizer_of_the_same_size_and_time(model: Path, tmp_path: Path) -> None:
    """What the plan was made of, and what is copied at the end."""
    source, destination = in_folder(model, tmp_path).parent, tmp_path / "out"
    changes = {
        "config.json": lambda data: data.replace(b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-05'),
        "tokenizer.json": lambda data: data.replace(b'"a"', b'"b"'),
    }
    whole = run._finish
    for name, change in changes.items():
        file = source / name
        old = file.read_bytes()
        new = change(old)
        assert new != old and len(new) == len(old)
        # Before documents are written, and after. A tokenizer that is copied when it is the new one already is one of this source.
        for moment in (TENSORS, 0) if name == "config.json" else (0,):
            strike = At(moment, functools.partial(rename_over, file, new))

            def finished(*given: object, strike: At = strike) -> object:
                receipt = whole(*given)
                if not strike.moment:
                    strike.blow()
                return receipt

            with pytest.MonkeyPatch.context() as patch, pytest.raises(FormatError) as caught:
                patch.setattr(run, "_finish", finished)
                convert(source, destination, to="ir", listener=strike)
            rename_over(file, old)
            assert caught.value.file == str(file)
            assert "changed while it was being read" in caught.value.problem
            assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize("engine", ["local", "processes"])
def test_a_folder_that_is_another_one_for_a_while(
    model: Path, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link like `latest` that is set anew, and back: at the end all is as it was, but some files were opened in between."""
    a, b, latest = tmp_path / "a", tmp_path / "b", tmp_path / "latest"
    convert(model, a, **ARGUMENTS)
    shutil.copytree(a, b)
    for file in b.rglob("*.safetensors"):
        was = (a / file.relative_to(b)).stat()
        data = bytearray(file.read_bytes())
        data[-2] ^= 1
        file.write_bytes(data)
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))

    def point(to: Path) -> None:
        (tmp_path / "new").symlink_to(to)
        (tmp_path / "new").rename(latest)

    point(a)
    counts = []

    def swap(event: run.Progress) -> None:
        if not event.remark:
            counts.append(event)
            if len(counts) in (1, TENSORS):
                point(b if len(counts) == 1 else a)

    with pytest.raises(CkptError) as caught:
        if engine == "local":
            convert(latest, tmp_path / "out", to="hf", workers=1, listener=swap)
        else:
            from ckpt_core.engine.executors import executor_for

            with executor_for("processes", 1) as executor:
                convert(latest, tmp_path / "out", to="hf", workers=1, listener=swap, executor=executor)
    assert len(counts) >= TENSORS and "changed while it was being read" in caught.value.problem
    assert not (tmp_path / "out").exists() and not staging_of(tmp_path / "out").exists()


# --- what only looks like one -----------------------------------------------------------------------------------------------


HARMLESS: dict[str, Callable[[Path], object]] = {
    "a hard link": lambda file: os.link(file, file.parent.with_name("second")),
    "other permissions": lambda file: file.chmod(0o640),
    "the same bytes again": lambda file: rename_over(file, file.read_bytes()),
    "read by a backup": lambda file: file.read_bytes(),
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("kind", [in_folder, in_tar])
def test_what_is_the_same_disturbs_nobody(
    model: Path, tmp_path: Path, work: list[str], kind: Callable, name: str
) -> None:
    file, destination = kind(model, tmp_path), tmp_path / "run"
    convert(source_of(file), destination, **ARGUMENTS)
    expected = contents(destination)
    shutil.rmtree(destination)
    del work[:]
    strike = At(4, lambda: HARMLESS[name](file))
    convert(source_of(file), destination, **ARGUMENTS, workers=1, listener=strike)
    assert contents(destination) == expected
    assert len(work) == TENSORS, "nothing is written twice"
    said = [remark for remark in strike.remarks if str(file) in remark and "read again" in remark]
    assert bool(said) == (name != "read by a backup")


def test_touched_again_and_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can't be told whether it is the same: what is done is kept."""
    file, destination = in_folder(model, tmp_path), tmp_path / "run"
    modes, compare = iter([0o600, 0o640] * 3), engine_touched._differing

    def touched(*given: object) -> object:
        file.chmod(next(modes))
        return compare(*given)

    monkeypatch.setattr(engine_touched, "_differing", touched)
    with pytest.raises(TouchedSource, match="touched while it was being read"):
        convert(file.parent, destination, **ARGUMENTS, workers=1, listener=At(1, lambda: file.chmod(0o666)))
    monkeypatch.undo()
    assert staging_of(destination).is_dir() and not destination.exists()
    convert(file.parent, destination, **ARGUMENTS, listener=At(1, lambda: pytest.fail("all of it was there already")))


def test_without_a_way_to_plan_again_it_is_an_error(model: Path, tmp_path: Path) -> None:
    file, destination = in_folder(model, tmp_path), tmp_path / "run"
    plan = plan_conversion(file.parent, destination, **ARGUMENTS)
    file.chmod(0o600)
    with pytest.raises(TouchedSource):
        run.run_plan(plan, str(destination))


# --- between a run that was killed and the next one -------------------------------------------------------------------------


def killed(source: Path, destination: Path, **arguments: object) -> None:
    process = victim.started(source, destination, "after finishing", 4, **{**ARGUMENTS, **arguments})
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("name", HARMLESS)
def test_a_killed_run_continues_with_what_is_the_same(model: Path, tmp_path: Path, work: list[str], name: str) -> None:
    file, destination = in_folder(model, tmp_path), tmp_path / "run"
    convert(file.parent, destination, **ARGUMENTS)
    expected = contents(destination)
    shutil.rmtree(destination)
    killed(file.parent, destination)
    HARMLESS[name](file)
    del work[:]
    convert(file.parent, destination, **ARGUMENTS)
    assert contents(destination) == expected and len(work) == TENSORS - 4


def test_a_journal_that_says_nothing_of_touches_is_continued(model: Path, tmp_path: Path, work: list[str]) -> None:
    """One of a ckpt before decision 64: what it has is read again, and compared."""
    file, destination = in_folder(model, tmp_path), tmp_path / "run"
    killed(file.parent, destination)
    journal = staging_of(destination) / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert sum(line.pop("seen", None) is not None for line in lines) == 4
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    strike = At(0, lambda: None)
    convert(file.parent, destination, **ARGUMENTS, listener=strike)
    assert len(work) == TENSORS - 4 and "4 pieces" in strike.remarks[0]
    assert fingerprint(destination) == fingerprint(model)


@pytest.mark.parametrize("way", [rename_over, write_in_place])
def test_a_killed_run_does_not_continue_with_other_values(
    model: Path, sibling: Path, tmp_path: Path, way: Callable
) -> None:
    file, destination = in_folder(model, tmp_path), tmp_path / "run"
    killed(file.parent, destination)
    old = file.read_bytes()
    way(file, (sibling / file.name).read_bytes())
    before = contents(tmp_path)
    for _ in range(2):
        with pytest.raises(CkptError, match="an unfinished conversion of something else is in the way") as caught:
            convert(file.parent, destination, **ARGUMENTS)
        assert "other values of" in str(caught.value.expected) and caught.value.file == str(staging_of(destination))
        assert contents(tmp_path) == before, "both stay as they are"
    way(file, old)
    convert(file.parent, destination, **ARGUMENTS)


def test_what_was_touched_after_the_output_was_made_is_said(model: Path, sibling: Path, tmp_path: Path) -> None:
    """A repeated command finds what it did by size and time of its source: it does not read all of it again to find out more."""
    file, destination = in_folder(model, tmp_path), tmp_path / "run"
    asked = ("convert", file.parent, destination, "--to", "nanotron")
    assert ckpt(*asked)[0] == 0
    assert "was touched" not in ckpt(*asked)[1]
    rename_over(file, (sibling / file.name).read_bytes())
    code, text = ckpt(*asked)
    assert code == 0 and "done before" in text and f"{file} was touched after this output was made: ckpt verify" in text
    assert ckpt("verify", file.parent, destination)[0] == 3


# --- while headers are read, and where nothing is written -------------------------------------------------------------------


def test_a_file_that_is_replaced_between_two_looks(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one" * 999)
    looks = []

    @watch.steadily
    def looked(change: Callable[[], object], times: int) -> FileState:
        os.close(open_regular(file))
        looks.append(file)
        if len(looks) <= times:
            change()
        return FileState.of(file)

    assert looked(lambda: rename_over(file, b"two" * 999), 1) == FileState.of(file) and len(looks) == 2
    del looks[:]
    with pytest.raises(TouchedSource):
        looked(lambda: file.chmod(0o600 + len(looks)), 9)
    assert len(looks) == 3
    del looks[:]
    with pytest.raises(FormatError, match="the file changed"):
        looked(lambda: file.write_bytes(b"other"), 9)
    assert len(looks) == 1


def test_a_plan_of_a_file_that_is_replaced_meanwhile(
    model: Path, sibling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its header is read, and then it is another one: the plan is made of that."""
    file = in_folder(model, tmp_path)
    other, seen, done = (sibling / file.name).read_bytes(), watch.seen, []

    def struck(path: object, look: Callable, at: object) -> os.stat_result:
        status = seen(path, look, at)
        if os.fspath(path) == str(file) and not done:
            done.append(rename_over(file, other))
        return status

    monkeypatch.setattr(watch, "seen", struck)
    convert(file.parent, tmp_path / "run", **ARGUMENTS)
    assert done and fingerprint(tmp_path / "run") == fingerprint(sibling)


def test_a_fingerprint_is_that_of_one_file(model: Path, sibling: Path, tmp_path: Path) -> None:
    file = in_folder(model, tmp_path)
    other = (sibling / file.name).read_bytes()
    whole = fingerprint(file.parent, listener=At(TENSORS // 2, lambda: rename_over(file, other)))
    assert whole == fingerprint(sibling)
    assert whole == fingerprint(file.parent, listener=At(TENSORS // 2, lambda: file.chmod(0o600)))


@pytest.mark.parametrize("command", ["verify", "diff", "fingerprint"])
def test_commands_read_again_what_was_touched(
    model: Path, sibling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """They say so, and their answer is about the file that is there at the end."""
    file, destination = in_folder(model, tmp_path), tmp_path / "run"
    convert(model, destination, **ARGUMENTS)
    strike = At(TENSORS // 2, lambda: rename_over(file, (sibling / file.name).read_bytes()))
    heard = progress.PlainListener.__call__

    def struck(self: progress.PlainListener, event: run.Progress) -> None:
        strike(event)
        heard(self, event)

    monkeypatch.setattr(progress.PlainListener, "__call__", struck)
    others = [] if command == "fingerprint" else [destination]
    code, text = ckpt(command, file.parent, *others)
    assert "touched while it was read: all is read again" in text
    assert code == (0 if command == "fingerprint" else 3)
    assert fingerprint(sibling) in text or command != "fingerprint"


def test_state_of_nothing_known_is_untouched(tmp_path: Path) -> None:
    """That of another machine, which has size and modification time alone."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 2000)
    status = file.stat()
    assert FileState(str(file), status.st_size, status.st_mtime_ns).is_untouched(status)
