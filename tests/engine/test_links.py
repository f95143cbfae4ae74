"""Links: where a checkpoint's may lead, through which folder soever, and that what is refused is not quoted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_tests import tiny
from ckpt_tests.folders import contents
from ckpt_tests.program import ckpt

SECRET = "root:x:0:0:TOPSECRET:/root:/bin/bash"
SIDE_FOLDERS = {
    "hf": ("additional_chat_templates", {}),
    "ir": ("sidecars", {}),
    "megatron": ("tokenizer", {}),
    "megatron-bridge": ("iter_*/tokenizer", {}),
    "nanotron": ("0/additional_chat_templates", {"dtype": "fp32"}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    tiny.build(folder, "llama", num_hidden_layers=1)
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    return folder


@pytest.fixture
def private(tmp_path: Path) -> Path:
    (tmp_path / "private").mkdir()
    for name in ("id_rsa", "tokenizer.json"):
        (tmp_path / "private" / name).write_text(SECRET)
    return tmp_path / "private"


@pytest.mark.parametrize("format", SIDE_FOLDERS)
def test_a_folder_that_is_a_link_is_not_followed_out(model: Path, private: Path, tmp_path: Path, format: str) -> None:
    name, arguments = SIDE_FOLDERS[format]
    source = tmp_path / "source"
    convert(model, source, to=format, **arguments)
    if "*" in name:
        name = str(next(source.glob(name)).relative_to(source))
    shutil.rmtree(source / name, ignore_errors=True)
    (source / name).symlink_to(private)
    with pytest.raises(CkptError, match="leads out of the checkpoint") as caught:
        convert(source, tmp_path / "out", to="ir")
    assert "TOPSECRET" not in str(caught.value) and not (tmp_path / "out").exists()
    (source / name).unlink()
    (source / "inside").mkdir()
    (source / name).symlink_to(source / "inside")
    convert(source, tmp_path / "out", to="ir")


@pytest.mark.parametrize("parent", ["snapshots", "models"])
def test_a_folder_called_snapshots_is_no_cache(model: Path, private: Path, tmp_path: Path, parent: str) -> None:
    source = shutil.copytree(model, tmp_path / parent / "model")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.json").symlink_to("../../private/id_rsa")
    with pytest.raises(CkptError, match="leads out of the checkpoint"):
        convert(source, tmp_path / "out", to="hf")
    if parent == "snapshots":  # not even beside blobs: links of a cache lead into these
        (tmp_path / "blobs").mkdir()
        with pytest.raises(CkptError, match="leads out of the checkpoint"):
            convert(source, tmp_path / "out", to="hf")


def test_a_download_of_links_to_blobs_is_read(model: Path, tmp_path: Path) -> None:
    """As huggingface_hub made them before 0.23 (`local_dir_use_symlinks`): every file, a config among them."""
    repository = tmp_path / "cache" / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    source = tmp_path / "model"
    source.mkdir()
    for number, file in enumerate(sorted(path for path in model.iterdir() if path.is_file())):
        blob = repository / "blobs" / f"{number:064x}"
        shutil.copy2(file, blob)
        (source / file.name).symlink_to(blob)
    convert(source, tmp_path / "out", to="hf")
    assert fingerprint(tmp_path / "out") == fingerprint(model)
    shutil.rmtree(repository / "snapshots")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(CkptError, match="leads out of the checkpoint"):
        convert(source, tmp_path / "out", to="hf")


FORMATS = {
    "hf": {}, "ir": {}, "nanotron": {"tp": 2}, "megatron": {"options": {"container": "torch"}}, "megatron-bridge": {}, "nemo2": {},
    "nxdt": {}, "deepspeed": {}, "fsdp": {}, "torchtitan": {},
}  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_weights_may_be_elsewhere_and_documents_may_not(
    model: Path, private: Path, tmp_path: Path, format: str
) -> None:
    """Every file of a checkpoint, in turn: a link to where it was moved, and a link to something else."""
    convert(model, tmp_path / "source", to=format, **FORMATS[format])
    (tmp_path / "source" / "ckpt-receipt.json").unlink()
    expected = fingerprint(tmp_path / "source", format=format)
    for name in sorted(contents(tmp_path / "source")):
        file, moved = tmp_path / "source" / name, tmp_path / "moved"
        file.rename(moved)
        file.symlink_to(moved)
        try:
            assert fingerprint(tmp_path / "source", format=format) == expected
            followed = True
        except CkptError as error:
            assert "leads out of the checkpoint" in str(error), name
            followed = False
        if name.endswith((".safetensors", ".distcp")):
            assert followed, name
        elif name.endswith((".json", ".yaml", ".txt", ".metadata")):
            with (
                pytest.raises(CkptError, match="leads out of the checkpoint"),
                open_checkpoint(tmp_path / "source", format=format) as source,
            ):
                assert not source.checkpoint.sidecars.keys() >= {file.name}
                raise CkptError("no file that is read leads out of the checkpoint")
        file.unlink()
        file.symlink_to(private / "id_rsa")
        try:
            fingerprint(tmp_path / "source", format=format)
        except (CkptError, OSError) as error:
            assert "TOPSECRET" not in str(error) and "root:x" not in str(error), name
        file.unlink()
        moved.rename(file)
    assert fingerprint(tmp_path / "source", format=format) == expected


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with another one, to which `link` leads from the current folder: `link/..` is this one, and not the current one."""
    (tmp_path / "elsewhere" / "inner").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "elsewhere" / "inner")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "elsewhere"


@pytest.mark.parametrize("overwrite", [False, True])
def test_up_from_a_link_is_up_from_where_it_leads(model: Path, elsewhere: Path, overwrite: bool) -> None:
    """As for `cp` and every other program. What has that name beside the link is not looked at, and not replaced."""
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("mine")
    receipt = convert(model, "link/../out", to="nanotron", overwrite=overwrite)
    assert os.path.samefile(Path(receipt.file).parent, elsewhere / "out")
    assert Path("out/thesis.tex").read_text() == "mine"
    assert sorted(os.listdir()) == ["link", "out"] and os.listdir("out") == ["thesis.tex"]
    assert sorted(os.listdir(elsewhere)) == ["inner", "out"]
    assert ckpt("verify", model, "link/../out")[0] == 0


def test_a_source_up_from_a_link_is_the_one_where_it_leads(model: Path, elsewhere: Path) -> None:
    """And its ledger is that of its own files."""
    tiny.build(Path("model"), "llama", num_hidden_layers=2)
    shutil.copytree(model, elsewhere / "model")
    assert fingerprint("link/../model") == fingerprint(model)
    convert("link/../model", "out", to="hf", dtype="fp32", config="link/../model")
    assert fingerprint("out") == fingerprint(model)


@pytest.mark.parametrize("given", ["notes.txt/", "notes.txt/.", "missing/../notes.txt", "missing/../folder"])
def test_overwrite_replaces_no_file_that_is_named_in_a_roundabout_way(model: Path, tmp_path: Path, given: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(CkptError, match=r"the destination exists|is not a checkpoint"):
            convert(model, f"{tmp_path}/{given}", to="ir", overwrite=overwrite)
    assert contents(tmp_path) == before
