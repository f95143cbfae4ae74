"""Every golden of every framework: each file and key of it is in the ledger, and whatever is added to one shows."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from ckpt_core.checkpoint import Checkpoint
from ckpt_core.cli.survey import Survey
from ckpt_core.errors import CkptError
from ckpt_tests.forwards import opened
from ckpt_tests.goldens import Golden, every_golden

GOLDENS = every_golden()


def read(golden: Golden, tmp_path: Path) -> Checkpoint | None:
    """The golden as tests of logits open it; None for one that must be refused."""
    tmp_path.mkdir(exist_ok=True)
    try:
        with opened(golden, tmp_path) as found:
            return found.checkpoint
    except CkptError:
        return None


def accounted(checkpoint: Checkpoint) -> set[str]:
    """Every file that an entry names, and every file below a folder that one names."""
    found = set()
    for entry in checkpoint.ledger:
        found.add(entry.file)
        for inside, _, names in os.walk(entry.file):
            found |= {os.path.join(inside, name) for name in names}
    return found


def files_of(folder: Path) -> set[str]:
    return {os.path.join(inside, name) for inside, _, names in os.walk(folder) for name in names}


def summary(checkpoint: Checkpoint) -> str:
    return json.dumps(
        [checkpoint.ledger.to_json(checkpoint.path), list(map(str, checkpoint.all_losses))], sort_keys=True
    )


@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_every_file_of_a_golden_is_in_its_ledger(golden: Golden, tmp_path: Path) -> None:
    checkpoint = read(golden, tmp_path)
    if checkpoint is None:
        return
    root = Path(os.path.abspath(checkpoint.path))
    source = root if root.is_dir() else root.parent
    missing = (files_of(root) if root.is_dir() else {str(root)}) - accounted(checkpoint)
    assert not missing
    for archive in source.rglob("*.nemo"):
        with tarfile.open(archive) as members:
            names = {os.path.join(archive, os.path.normpath(one.name)) for one in members if one.isfile()}
        assert names <= {entry.file for entry in checkpoint.ledger}
    if (
        root.is_dir()
        and not any(source.rglob("*.nemo"))
        and all(Path(one.file).is_relative_to(root) for one in checkpoint.ledger)
    ):
        counts = Survey(checkpoint, str(root)).files  # what `ckpt inspect --all` adds up
        assert counts.total() == len(files_of(root)) >= len(checkpoint.files)
    assert not any("does not know" in loss.subject for loss in checkpoint.all_losses)


def torch_files(folder: Path) -> list[Path]:
    """Rank files and the like that hold a dict, one of each name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.pt")) + sorted(folder.rglob("*.ckpt")):
        if (
            path.is_file()
            and ".tensors" not in str(path)
            and "_extra_state" not in str(path)
            and "/zero/" not in str(path)
        ):
            found.setdefault("".join(c for c in path.name if not c.isdigit()), path)
    return list(found.values())


def add_to_torch(path: Path) -> bool:
    try:
        content = torch.load(path, weights_only=False)
    except ModuleNotFoundError:  # classes of a framework that is not installed
        return False
    if not isinstance(content, dict):
        return False
    content["a key of the future"] = {"something": torch.ones(3)}
    torch.save(content, path)
    return True


def add_to_document(path: Path) -> bool:
    loads: Callable = json.loads if path.suffix == ".json" else yaml.safe_load
    try:
        body = loads(path.read_text())
    except (ValueError, yaml.YAMLError):
        return False
    if not isinstance(body, dict):
        return False
    body["a_key_of_the_future"] = 5
    path.write_text(json.dumps(body) if path.suffix == ".json" else yaml.safe_dump(body))
    return True


# Of each framework one golden with an optimizer, if there is one: what is added shows by the same code in all.
CHANGED = {golden.case["framework"]: golden for golden in GOLDENS} | {
    golden.case["framework"]: golden
    for golden in GOLDENS
    if "optim" in golden.folder.name or "zero" in golden.folder.name
}


@pytest.mark.parametrize("golden", CHANGED.values(), ids=str)
def test_what_is_added_changes_the_ledger_or_is_refused(golden: Golden, tmp_path: Path) -> None:
    before = read(golden, tmp_path / "before")
    assert before is not None
    told = summary(before)
    copy = Golden(tmp_path / "copy" / golden.folder.name)
    shutil.copytree(golden.folder, copy.folder)
    here = str(golden.folder), str(copy.folder)
    folders = sorted(
        path for path in [copy.checkpoint, *copy.checkpoint.rglob("*")] if path.is_dir() and ".tensors" not in path.name
    )
    silent: list[str] = []
    places = [copy.checkpoint, *(path for path in folders if path.parent == copy.checkpoint)]
    for place in places:
        extra = place / "optimizer_of_the_future.bin"
        extra.write_bytes(b"x" * 77)
        now = read(copy, tmp_path / "now")
        assert now is None or summary(now).replace(here[1], here[0]) != told, extra
        extra.unlink()
    carried = {entry.file for entry in before.ledger if entry.fate == "carried"}
    for path in [*torch_files(copy.checkpoint), *copy.checkpoint.rglob("*.json"), *copy.checkpoint.rglob("*.yaml")]:
        if str(path).replace(here[1], here[0]) in carried:
            continue  # it goes along whole, whatever is in it
        kept = path.read_bytes()
        added = add_to_document(path) if path.suffix in (".json", ".yaml") else add_to_torch(path)
        if added:
            now = read(copy, tmp_path / "now")
            if now is not None and summary(now).replace(here[1], here[0]) == told:
                silent.append(str(path.relative_to(copy.checkpoint)))
        path.write_bytes(kept)
    assert not silent
