"""Killed at any moment, a conversion continues: byte-identical files and the same receipt, never half of anything."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import zipfile
from pathlib import Path

import pytest

from ckpt_core import convert
from ckpt_core.errors import CkptError
from ckpt_core.receipt.places import RECEIPT
from ckpt_tests import tiny, victim
from ckpt_tests.folders import contents, staging_of

ARGUMENTS = {"to": "nanotron", "tp": 2}
TENSORS = 12  # of a Llama of one layer: embedding, head, final norm, and nine in the layer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    tiny.build(folder, "llama", num_hidden_layers=1)
    return folder


@pytest.fixture(scope="module")
def place(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A destination, and what an undisturbed conversion puts there (configs name the destination, so it is always the same)."""
    destination = tmp_path_factory.mktemp("place") / "run"
    convert(model, destination, **ARGUMENTS)
    expected = contents(destination)
    shutil.rmtree(destination)
    return destination, expected


def kill(source: Path, destination: Path, moment: str, number: int, **arguments: object) -> None:
    process = victim.started(source, destination, moment, number, **{**ARGUMENTS, **arguments})
    process.join(60)
    assert process.exitcode == (143 if "by" in arguments else -signal.SIGKILL)


def journal(destination: Path) -> list[str]:
    return (staging_of(destination) / "journal.jsonl").read_text().splitlines(keepends=True)


MOMENTS = [
    ("while files are made", 1, 0),
    *(("before finishing", number, number - 1) for number in (1, 2, 7, TENSORS)),
    *(("after finishing", number, number) for number in (1, 6, TENSORS)),
    *(("in a line", number, max(0, number - 2)) for number in (1, 2, 7, TENSORS + 1)),
    *(("before a document", number, TENSORS) for number in (1, 3, 5)),
    ("after a document", 5, TENSORS),
    ("before publishing", 1, TENSORS),
    ("before a rename", 1, TENSORS),
]


@pytest.mark.parametrize(
    ("moment", "number", "done"), MOMENTS, ids=[f"{moment} {number}" for moment, number, _ in MOMENTS]
)
def test_a_killed_run_continues(
    model: Path, place: tuple, work: list[str], moment: str, number: int, done: int
) -> None:
    destination, expected = place
    kill(model, destination, moment, number)
    assert not destination.exists()
    assert staging_of(destination).is_dir()
    try:
        convert(model, destination, **ARGUMENTS)
        assert contents(destination) == expected
        assert not staging_of(destination).exists()
        assert len(work) == TENSORS - done, "finished tensors are not moved again, unfinished ones are"
    finally:
        shutil.rmtree(destination, ignore_errors=True)
        shutil.rmtree(staging_of(destination), ignore_errors=True)


@pytest.mark.parametrize("again", [True, False], ids=["with sync", "without"])
@pytest.mark.parametrize(
    ("moment", "number", "done"),
    [("after finishing", 5, 5), ("before publishing", 1, TENSORS), ("before a rename", 1, TENSORS)],
)
def test_a_killed_run_without_sync_continues(
    model: Path, place: tuple, work: list[str], moment: str, number: int, done: int, again: bool
) -> None:
    """A kill takes nothing from the page cache, whoever waits for the disk."""
    destination, expected = place
    kill(model, destination, moment, number, sync=False)
    assert not destination.exists()
    try:
        convert(model, destination, **ARGUMENTS, sync=again)
        assert contents(destination) == expected
        assert len(work) == TENSORS - done
    finally:
        shutil.rmtree(destination, ignore_errors=True)
        shutil.rmtree(staging_of(destination), ignore_errors=True)


@pytest.mark.parametrize(
    ("moment", "number", "done"),
    [("after finishing", 5, 5), ("before a document", 2, TENSORS), ("before a rename", 1, TENSORS)],
)
def test_a_terminated_run_continues(
    model: Path, place: tuple, work: list[str], moment: str, number: int, done: int
) -> None:
    destination, expected = place
    kill(model, destination, moment, number, by="SIGTERM")
    assert not destination.exists()
    convert(model, destination, **ARGUMENTS)
    assert contents(destination) == expected
    assert not staging_of(destination).exists()
    assert len(work) == TENSORS - done
    shutil.rmtree(destination)


@pytest.mark.parametrize("number", [0, 1, 4, 7, TENSORS])
def test_a_continued_run_knows_the_checksums_of_what_the_killed_one_wrote(
    model: Path, tmp_path: Path, number: int
) -> None:
    """Megatron's q, k and v are three tensors under one checksum; it is put together from what each of them wrote."""
    destination = tmp_path / "run"
    arguments = {"to": "megatron", "options": {"container": "torch"}}
    if number:
        kill(model, destination, "after finishing", number, **arguments)
    convert(model, destination, **ARGUMENTS | arguments)
    files = sorted(destination.rglob("*.pt"))
    assert len(files) == ARGUMENTS["tp"]
    for file in files:
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
            checksums = {info.CRC for info in archive.infolist() if info.filename.split("/")[1] == "data"}
            assert 0 not in checksums, "0 stands for none"


# What is removed first is an old `out`; then, after publishing, `out`, two that were replaced, and the journal.
AFTER_PUBLISHING = [("after a rename", 1), ("while cleaning up", 2), ("while cleaning up", 5), ("at the very end", 1)]


@pytest.mark.parametrize(("moment", "number"), AFTER_PUBLISHING)
@pytest.mark.parametrize(("then", "moved"), [("repeated", 0), ("--overwrite", TENSORS), ("deleted", TENSORS)])
def test_a_run_killed_after_its_last_rename_is_whole_and_can_be_repeated(
    model: Path, place: tuple, work: list[str], moment: str, number: int, then: str, moved: int
) -> None:
    """A plain repetition only tidies up. Else, what the journal calls done has left the staging folder: it must not be believed."""
    destination, expected = place
    kill(model, destination, moment, number)
    try:
        assert contents(destination) == expected
        if then == "deleted":
            shutil.rmtree(destination)
        receipt = convert(model, destination, **ARGUMENTS, overwrite=then == "--overwrite")
        assert receipt.text() == (destination / RECEIPT).read_text()
        assert contents(destination) == expected
        assert not staging_of(destination).exists()
        assert len(work) == moved
    finally:
        shutil.rmtree(destination, ignore_errors=True)
        shutil.rmtree(staging_of(destination), ignore_errors=True)


@pytest.mark.parametrize("moment", ["before a rename", "after a rename"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_run_killed_while_it_replaces_loses_neither_old_nor_new(
    model: Path, place: tuple, moment: str, number: int
) -> None:
    destination, expected = place
    shutil.copytree(model, destination)
    (destination / "old.txt").write_text("old")
    kill(model, destination, moment, number, overwrite=True)
    try:
        everything = contents(destination.parent)
        old = [path for path in everything if path.endswith("old.txt")]
        assert old, "the old output is gone"
        convert(model, destination, **ARGUMENTS, overwrite=True)
        assert contents(destination) == expected
        assert not staging_of(destination).exists()
    finally:
        shutil.rmtree(destination, ignore_errors=True)
        shutil.rmtree(staging_of(destination), ignore_errors=True)


def test_a_repetition_that_is_refused_puts_the_old_output_back(model: Path, tmp_path: Path) -> None:
    """Killed between the two renames of a replacement, then repeated with a source that turns out to be bad."""
    source, destination = tmp_path / "hf", tmp_path / "run"
    shutil.copytree(model, source)
    shutil.copytree(model, destination)
    (destination / "old.txt").write_text("old")
    kill(source, destination, "after a rename", 1, overwrite=True)
    assert not destination.exists()
    state = (source / "model.safetensors").stat()
    with open(source / "model.safetensors", "r+b") as file:
        file.truncate(state.st_size - 8)
    with pytest.raises(CkptError, match=r"model\.safetensors"):
        convert(source, destination, **ARGUMENTS, overwrite=True)
    assert "old.txt" in str(contents(tmp_path)), "the old output is gone"


def test_an_unfinished_replacement_is_not_taken_for_a_finished_one(model: Path, place: tuple) -> None:
    """Killed while it rewrites what the same plan wrote before; without --overwrite both are left as they are."""
    destination, expected = place
    convert(model, destination, **ARGUMENTS)
    kill(model, destination, "after finishing", 3, overwrite=True)
    with pytest.raises(CkptError, match="the destination exists") as caught:
        convert(model, destination, **ARGUMENTS)
    assert str(staging_of(destination)) in str(caught.value)
    assert len(journal(destination)) == 1 + 3
    convert(model, destination, **ARGUMENTS, overwrite=True)
    assert contents(destination) == expected
    shutil.rmtree(destination)


FOR_NEMO = {"to": "nemo", "tp": 1}


@pytest.mark.parametrize(
    ("moment", "number"),
    [("before a rename", 1), ("after a rename", 1), ("after a rename", 2), ("while cleaning up", 2)],
)
def test_a_single_file_and_its_receipt_are_named_as_one(model: Path, tmp_path: Path, moment: str, number: int) -> None:
    """The receipt gets its name first: what has a final name is whole, and has its receipt."""
    destination, receipt = tmp_path / "model.nemo", tmp_path / f"model.nemo.{RECEIPT}"
    convert(model, destination, **FOR_NEMO)
    expected = contents(tmp_path)
    destination.unlink(), receipt.unlink()
    kill(model, destination, moment, number, **FOR_NEMO)
    assert (receipt.exists(), destination.exists()) == {1: (moment[0] == "a", False), 2: (True, True)}[number]
    convert(model, destination, **FOR_NEMO)
    assert contents(tmp_path) == expected
    assert not staging_of(destination).exists()


def test_a_file_missing_from_the_staging_folder_is_written_again(model: Path, place: tuple) -> None:
    """A staging folder that was tidied by hand, or half removed, is no output."""
    destination, expected = place
    kill(model, destination, "after finishing", TENSORS)
    victims = sorted((staging_of(destination) / "out").rglob("*.safetensors"))
    victims[3].unlink()
    os.truncate(victims[5], 10)
    convert(model, destination, **ARGUMENTS)
    assert contents(destination) == expected
    shutil.rmtree(destination)


def test_a_journal_of_another_boot_is_not_trusted(model: Path, place: tuple, work: list[str]) -> None:
    """Pages that were never synced may be lost by a crash of the machine."""
    destination, expected = place
    kill(model, destination, "after finishing", 5)
    lines = journal(destination)
    head = json.loads(lines[0]) | {"boot": "another"}
    (staging_of(destination) / "journal.jsonl").write_text(json.dumps(head) + "\n" + "".join(lines[1:]))
    convert(model, destination, **ARGUMENTS)
    assert contents(destination) == expected
    assert len(work) == TENSORS
    shutil.rmtree(destination)


CHANGES = {
    "another layout": ({"tp": 4}, "--tp 2", "--tp 4"),
    "another dtype": ({"dtype": "bf16"}, "--dtype keep", "--dtype bf16"),
    "another option": (
        {"options": {"rope_interleaved": "true"}}, "-o rope_interleaved not given", "-o rope_interleaved true"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "was", "wanted"), CHANGES.values(), ids=CHANGES)
def test_another_plan_does_not_continue(model: Path, change: dict, was: str, wanted: str, tmp_path: Path) -> None:
    destination = tmp_path / "run"
    kill(model, destination, "after finishing", 4)
    before = contents(tmp_path)
    with pytest.raises(CkptError, match="an unfinished conversion of something else is in the way") as caught:
        convert(model, destination, **{**ARGUMENTS, **change})
    assert caught.value.file == str(staging_of(destination))
    assert (caught.value.found, caught.value.expected) == (f"one with {was}", f"one with {wanted}")
    assert contents(tmp_path) == before
    convert(model, destination, **ARGUMENTS)  # the lock of the refused call is gone, though its error is still at hand


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_source_that_changed_does_not_continue(model: Path, name: str, tmp_path: Path) -> None:
    source, destination = tmp_path / "hf", tmp_path / "run"
    shutil.copytree(model, source)
    kill(source, destination, "after finishing", 4)
    os.utime(source / name, ns=(1, 1))
    before = contents(tmp_path)
    with pytest.raises(CkptError, match="an unfinished conversion of something else is in the way") as caught:
        convert(source, destination, **ARGUMENTS)
    assert "source" in str(caught.value.found) and "it changed" in str(caught.value.expected)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", [b'{"name": ', b"[]\n", b'{"name": "x", "digest": 1}\n', b"\xff\n"])
def test_a_damaged_line_ends_the_journal(model: Path, place: tuple, work: list[str], damage: bytes) -> None:
    destination, expected = place
    kill(model, destination, "after finishing", 6)
    lines = [line.encode() for line in journal(destination)]
    (staging_of(destination) / "journal.jsonl").write_bytes(b"".join([*lines[:4], damage, *lines[5:]]))
    convert(model, destination, **ARGUMENTS)
    assert contents(destination) == expected
    assert len(work) == TENSORS - 3, "the three lines before it count, and none behind it"
    shutil.rmtree(destination)


def test_two_processes_on_one_destination(model: Path, place: tuple) -> None:
    """The second is refused while the first lives, even if it stands still; the first is none the worse for it."""
    destination, expected = place
    first = victim.started(model, destination, "after finishing", 3, by="SIGSTOP", **ARGUMENTS)
    while "T (stopped)" not in Path(f"/proc/{first.pid}/status").read_text():
        time.sleep(0.01)
    try:
        with pytest.raises(CkptError, match="another conversion is writing to this destination"):
            convert(model, destination, **ARGUMENTS)
        assert len(journal(destination)) == 1 + 3
    finally:
        os.kill(first.pid, signal.SIGCONT)
    first.join(60)
    assert first.exitcode == 0
    assert contents(destination) == expected
    assert not staging_of(destination).exists()
    shutil.rmtree(destination)
