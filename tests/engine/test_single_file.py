"""Outputs that are one file, with their receipt beside it; and sources inside archives, compressed or not."""

from __future__ import annotations

import gzip
import os
import tarfile
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from ckpt_core.api import plan_conversion
from ckpt_core.checkpoint import Checkpoint, Sidecar
from ckpt_core.engine import run
from ckpt_core.engine.plan import Plan, make_plan
from ckpt_core.engine.run import run_plan
from ckpt_core.errors import CkptError
from ckpt_core.receipt import find_receipt
from ckpt_core.receipt.places import RECEIPT
from ckpt_core.storage.archive.tar import plan_tar
from ckpt_core.storage.archive.tree import open_tree
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.verify.files import check_files
from ckpt_tests import tiny
from ckpt_tests.folders import assert_same_bits, contents
from ckpt_tests.models import weights

INSIDE = "./rank_00/model.bin"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    tiny.build(folder, "llama", num_hidden_layers=1)
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    return folder


def plan_archive(model: Path, destination: Path) -> Plan:
    """A conversion to one file: a tar with the torch file of an HF model in it."""
    plan = plan_conversion(model, destination, to="hf", options={"container": "bin"})
    (file,) = plan.target.files
    archive, offsets = plan_tar(destination.name, {"./config.json": plan.target.documents["config.json"], INSIDE: file})
    placements = [
        replace(one, file=archive.path, offset=offsets[INSIDE] + one.offset) for one in plan.target.placements
    ]
    target = replace(plan.target, files=[archive], placements=placements, documents={}, sidecars={}, single_file=True)
    return make_plan(plan.source, target)


def receipt_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.{RECEIPT}")


def convert(model: Path, destination: Path, **options: object) -> None:
    run_plan(plan_archive(model, destination), str(destination), **options)


def test_one_file_and_its_receipt(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.nemo"
    convert(model, out)
    assert contents(tmp_path).keys() == {out.name, receipt_of(out).name}
    with tarfile.open(out) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert_same_bits(torch.load(tmp_path / "unpacked" / INSIDE), weights(model))
    recorded = find_receipt(str(out))
    assert recorded is not None and recorded.file == str(receipt_of(out))
    assert check_files(recorded, str(out)).broken == []
    with out.open("ab") as file:
        file.write(b"more")
    assert [problem for _, problem in check_files(recorded, str(out)).broken] == [
        f"{out.stat().st_size} bytes instead of {out.stat().st_size - 4}"
    ]


@pytest.mark.parametrize("there", ["file", "folder", "receipt"])
def test_what_is_there_is_kept_or_replaced_whole(model: Path, tmp_path: Path, there: str) -> None:
    out = tmp_path / "model.nemo"
    if there == "folder":
        out.mkdir()
    else:
        (out if there == "file" else receipt_of(out)).write_text('{"plan": "of something else"}')
    before = contents(tmp_path)
    with pytest.raises(CkptError, match=r"exists|something else"):
        convert(model, out)
    assert contents(tmp_path) == before
    if there == "file":
        with pytest.raises(CkptError, match="not a checkpoint"):
            convert(model, out, overwrite=True)
        assert contents(tmp_path) == before
        out.unlink()
        convert(model, out)
        out.write_text("something else")  # in the place of what its receipt speaks of
    convert(model, out, overwrite=True)
    assert contents(tmp_path).keys() == {out.name, receipt_of(out).name}
    assert open_tree(out).read("config.json")


class Killed(BaseException):
    """What no code catches: as good as a kill, as far as files are concerned."""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_between_the_two_names_is_mended(
    model: Path, tmp_path: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receipt gets its name before the file does: what has a final name is whole, at any moment."""
    out, undisturbed = tmp_path / "model.nemo", tmp_path / "again" / "model.nemo"
    undisturbed.parent.mkdir()
    rename, done = os.rename, []

    def dying(*names: str) -> None:
        if len(done) == renames:
            raise Killed
        done.append(rename(*names))

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "rename", dying)
        convert(model, out)
    assert not out.exists() and receipt_of(out).exists() == bool(renames)
    convert(model, out)
    convert(model, undisturbed)
    assert out.read_bytes() == undisturbed.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {out.name, receipt_of(out).name, "again"}


def test_a_failure_after_such_a_kill_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --overwrite, what was there comes back."""
    out = tmp_path / "model.nemo"
    convert(model, out)
    before = contents(tmp_path)
    rename = os.rename

    def dying(made: str, final: str) -> None:
        if made.endswith("/out/model.nemo"):
            raise Killed
        rename(made, final)

    def failing(*_: object) -> None:
        raise CkptError("the source is damaged")

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "rename", dying)
        convert(model, out, overwrite=True)
    assert not out.exists()
    with monkeypatch.context() as patch, pytest.raises(CkptError, match="damaged"):
        patch.setattr(run, "_transfer_all", failing)
        convert(model, out, overwrite=True)
    assert contents(tmp_path) == before


def test_more_than_one_file_is_no_single_file(model: Path, tmp_path: Path) -> None:
    plan = plan_conversion(model, tmp_path / "out", to="hf")
    with pytest.raises(CkptError, match="single file"):
        make_plan(plan.source, replace(plan.target, single_file=True))


# --- sources inside archives ------------------------------------------------------------------------------------------------


def moved(checkpoint: Checkpoint, archive: Path) -> Checkpoint:
    """The same checkpoint with its weights and its tokenizer inside an archive."""
    tree = open_tree(archive)

    def inside(block):
        extent = tree[os.path.basename(block.path)]
        return replace(block, path=extent.file, offset=extent.offset + block.offset)

    tensors = {
        name: replace(assembly, blocks=tuple(map(inside, assembly.blocks)), copies=tuple(map(inside, assembly.copies)))
        for name, assembly in checkpoint.tensors.items()
    }
    extents = {name: tree[name] for name in checkpoint.sidecars}
    sidecars = {name: Sidecar(extent.file, extent.size, extent.offset) for name, extent in extents.items()}
    return replace(checkpoint, path=str(archive), tensors=tensors, sidecars=sidecars, files=[FileState.of(archive)])


@pytest.mark.parametrize("compressed", [False, True], ids=["tar", "tar.gz"])
@pytest.mark.parametrize("pool", [None, ProcessPoolExecutor], ids=["threads", "processes"])
def test_a_source_inside_an_archive_gives_the_same_bytes(
    model: Path, tmp_path: Path, compressed: bool, pool: type[Executor] | None
) -> None:
    archive = tmp_path / "model.nemo"
    with tarfile.open(archive, "w") as tar:
        tar.add(model, ".")
    if compressed:
        archive.write_bytes(gzip.compress(archive.read_bytes(), 1))
    plan = plan_conversion(model, tmp_path / "plain", to="ir")
    run_plan(plan, str(tmp_path / "plain"))
    source = moved(plan.source, archive)
    sidecars = {path: source.sidecars[os.path.basename(path)] for path in plan.target.sidecars}
    assert sidecars
    executor = pool and pool(2, get_context("spawn"))
    again = make_plan(source, replace(plan.target, tensors=source.tensors, sidecars=sidecars))
    run_plan(again, str(tmp_path / "out"), executor=executor)
    ours, plain = contents(tmp_path / "out"), contents(tmp_path / "plain")
    assert ours.pop(RECEIPT) != plain.pop(RECEIPT)  # they name their sources
    assert ours == plain
