"""What is not ckpt's stays as it is: folders in the place of the staging folder, links in it, and what is at the destination."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_core import convert
from ckpt_core.api import plan_conversion
from ckpt_core.engine.staging import boot_id
from ckpt_core.errors import CkptError
from ckpt_core.receipt.places import RECEIPT
from ckpt_tests import tiny
from ckpt_tests.folders import contents

TO = {"to": "hf"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    tiny.build(folder, "llama", num_hidden_layers=1)
    return folder


def head(model: Path, destination: Path) -> str:
    """The first line of the journal of the very conversion that follows: it is no secret."""
    plan = plan_conversion(model, destination, **TO)
    return json.dumps({"ckpt": "0", "plan": plan.hash, "boot": boot_id(), "source": str(model), "options": {}}) + "\n"


def a_folder_of_the_users(staging: Path, elsewhere: Path, line: str) -> None:
    (staging / "out").mkdir(parents=True)
    (staging / "out" / "data.txt").write_text("precious")
    (staging / "notes.txt").write_text("precious")


def files_where_out_is(staging: Path, elsewhere: Path, line: str) -> None:
    (staging / "out").mkdir(parents=True)
    (staging / "out" / "data.txt").write_text("precious")


def a_journal_of_something_else(staging: Path, elsewhere: Path, line: str) -> None:
    staging.mkdir()
    (staging / "journal.jsonl").write_text('{"time": 0}\n')


def a_journal_that_breaks_off_and_files(staging: Path, elsewhere: Path, line: str) -> None:
    files_where_out_is(staging, elsewhere, line)
    (staging / "journal.jsonl").write_text(line[:20])


def a_link_to_a_folder(staging: Path, elsewhere: Path, line: str) -> None:
    (elsewhere / "out").mkdir()
    (elsewhere / "out" / "data.txt").write_text("precious")
    (elsewhere / "journal.jsonl").write_text(line)
    staging.symlink_to(elsewhere)


def a_file(staging: Path, elsewhere: Path, line: str) -> None:
    staging.write_text("precious")


def a_link_for_the_journal(staging: Path, elsewhere: Path, line: str) -> None:
    staging.mkdir()
    (elsewhere / "diary").write_text(line)
    (staging / "journal.jsonl").symlink_to(elsewhere / "diary")


def a_second_name_for_the_journal(staging: Path, elsewhere: Path, line: str) -> None:
    staging.mkdir()
    (elsewhere / "diary").write_text(line)
    os.link(elsewhere / "diary", staging / "journal.jsonl")


def begun(staging: Path, line: str) -> Path:
    (staging / "out").mkdir(parents=True)
    (staging / "journal.jsonl").write_text(line)
    return staging / "out"


def a_link_for_the_weights(staging: Path, elsewhere: Path, line: str) -> None:
    (elsewhere / "victim").write_text("precious")
    (begun(staging, line) / "model.safetensors").symlink_to(elsewhere / "victim")


def a_second_name_for_the_weights(staging: Path, elsewhere: Path, line: str) -> None:
    (elsewhere / "victim").write_text("precious")
    os.link(elsewhere / "victim", begun(staging, line) / "model.safetensors")


def a_link_to_nothing_for_a_document(staging: Path, elsewhere: Path, line: str) -> None:
    (begun(staging, line) / "config.json").symlink_to(elsewhere / "made")


def a_link_for_out(staging: Path, elsewhere: Path, line: str) -> None:
    begun(staging, line).rmdir()
    (elsewhere / "data.txt").write_text("precious")
    (staging / "out").symlink_to(elsewhere)


def a_pipe(staging: Path, elsewhere: Path, line: str) -> None:
    os.mkfifo(begun(staging, line) / "model.safetensors")


def a_file_of_no_plan(staging: Path, elsewhere: Path, line: str) -> None:
    (begun(staging, line) / "adapter_config.json").write_text("{}")


PLANTED = [
    a_folder_of_the_users, files_where_out_is, a_journal_of_something_else, a_journal_that_breaks_off_and_files,
    a_link_to_a_folder, a_file, a_link_for_the_journal, a_second_name_for_the_journal, a_link_for_the_weights,
    a_second_name_for_the_weights, a_link_to_nothing_for_a_document, a_link_for_out, a_pipe, a_file_of_no_plan,
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED)
def test_a_staging_folder_that_ckpt_did_not_make_is_refused_and_stays(
    model: Path, tmp_path: Path, plant: Callable
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    plant(tmp_path / "run.ckpt-partial", elsewhere, head(model, tmp_path / "run"))
    before = contents(tmp_path)
    with pytest.raises(CkptError, match="not made by this conversion"):
        convert(model, tmp_path / "run", **TO)
    assert contents(tmp_path) == before


def test_a_folder_of_somebody_else_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path / "run.ckpt-partial", head(model, tmp_path / "run"))
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr("ckpt_core.engine.staging._owner_of_new_files", lambda _: 4711)
    with pytest.raises(CkptError, match="not made by this conversion"):
        convert(model, tmp_path / "run", **TO)


@pytest.mark.parametrize("left", ["", '{"ck', None], ids=["an empty journal", "half a first line", "no journal"])
def test_what_a_run_left_that_was_killed_at_its_very_start_is_ours(
    model: Path, tmp_path: Path, left: str | None
) -> None:
    (tmp_path / "run.ckpt-partial").mkdir()
    if left is not None:
        (tmp_path / "run.ckpt-partial" / "journal.jsonl").write_text(left)
    convert(model, tmp_path / "run", **TO)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_link_that_appears_in_the_output_while_it_runs_is_not_published(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("precious")

    def appear(_: object) -> None:
        link = tmp_path / "run.ckpt-partial" / "out" / "extra.json"
        if not link.is_symlink():
            link.symlink_to(tmp_path / "secret")

    with pytest.raises(CkptError, match="not made by this conversion"):
        convert(model, tmp_path / "run", **TO, listener=appear)
    assert not (tmp_path / "run").exists()


def test_only_this_user_may_look_into_the_staging_folder(model: Path, tmp_path: Path) -> None:
    modes: set[int] = set()
    convert(model, tmp_path / "run", **TO, listener=lambda _: modes.add((tmp_path / "run.ckpt-partial").stat().st_mode))
    assert {mode & 0o777 for mode in modes} == {0o700}


def a_users_folder(run: Path) -> None:
    run.mkdir()
    (run / "thesis.tex").write_text("mine")


def a_users_file(run: Path) -> None:
    run.write_text("mine")


def a_receipt_of_no_conversion(run: Path) -> None:
    run.mkdir()
    (run / RECEIPT).write_text('{"shop": "a bill"}')


@pytest.mark.parametrize("there", [a_users_folder, a_users_file, a_receipt_of_no_conversion])
def test_overwrite_replaces_no_more_than_checkpoints(model: Path, tmp_path: Path, there: Callable) -> None:
    there(tmp_path / "run")
    before = contents(tmp_path)
    with pytest.raises(CkptError, match="not a checkpoint"):
        convert(model, tmp_path / "run", **TO, overwrite=True)
    assert contents(tmp_path) == before


def test_what_this_plan_wrote_is_found_as_long_as_it_is_whole(model: Path, tmp_path: Path, work: list[str]) -> None:
    """A loop that repeats a command until it succeeds comes to an end, wherever it was killed."""
    convert(model, tmp_path / "run", **TO)
    before, moved = contents(tmp_path), len(work)
    assert convert(model, tmp_path / "run", **TO).found
    assert contents(tmp_path) == before and len(work) == moved
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(CkptError, match="the destination exists"):
        convert(model, tmp_path / "run", **TO)
    with pytest.raises(CkptError, match="the destination exists") as caught:
        convert(model, tmp_path / "run", **TO, dtype="fp16")
    assert "--dtype keep" in str(caught.value)


def test_overwrite_names_what_is_no_part_of_the_checkpoint_that_is_there(model: Path, tmp_path: Path) -> None:
    """By our receipt, or without one by the ledger of the format's reader."""
    for receipt in (True, False):
        run = tmp_path / f"run{receipt}"
        convert(model, run, to="nanotron")
        if not receipt:
            (run / "ckpt-receipt.json").unlink()
        (run / "thesis").mkdir()
        (run / "thesis" / "draft.txt").write_text("mine")
        with pytest.raises(CkptError, match="thesis"):
            convert(model, run, to="nanotron", overwrite=True)
        assert (run / "thesis" / "draft.txt").read_text() == "mine"
        (run / "thesis" / "draft.txt").unlink()
        (run / "thesis").rmdir()
        convert(model, run, to="nanotron", overwrite=True)


@pytest.mark.parametrize(("to", "words"), [("", "holds"), ("/..", "holds"), ("/new", "inside")])
def test_the_source_is_known_by_another_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, words: str
) -> None:
    """A folder that is mounted twice, or has a name in capitals where these are the same: links stand for both here."""
    (tmp_path / "place").mkdir()
    source = shutil.copytree(model, tmp_path / "place/model")
    (tmp_path / "PLACE").symlink_to(tmp_path / "place")
    monkeypatch.setattr(os.path, "realpath", os.path.abspath)
    with pytest.raises(CkptError, match=f"the destination .*{words}.* the source"):
        convert(source, f"{tmp_path}/PLACE/model{to}", to="hf", dtype="fp16", overwrite=True)
    assert convert(source, f"{tmp_path}/PLACE/other", to="hf", sync=False)
