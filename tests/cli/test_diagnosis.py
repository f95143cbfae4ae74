"""A path that no format recognises is told apart by its names, and each kind has its own advice."""

from __future__ import annotations

import contextlib
import os
import shutil
import tomllib
from pathlib import Path

import pytest

from ckpt_core.api import convert, read_checkpoint
from ckpt_core.diagnosis import OWN, TRACES, diagnosis
from ckpt_core.errors import CkptError, UsageError
from ckpt_core.plugins import discovery
from ckpt_tests.goldens import goldens

LFS = "version https://git-lfs" + ".github.com/spec/v1\n"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("diagnosis") / "hf"
    convert(goldens("nanotron")[0].checkpoint, out, to="hf", options={"max_shard_size": "60000"})
    return out


@pytest.fixture
def hf(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "hf"))


def said(path: Path) -> str:
    with pytest.raises(CkptError) as raised:
        read_checkpoint(path)
    return str(raised.value)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*"))


def remove(*paths: Path) -> None:
    for path in paths:
        path.unlink()


class TestHalves:
    def test_an_empty_folder(self, tmp_path):
        (tmp_path / "x").mkdir()
        assert "the folder is empty" in said(tmp_path / "x")

    def test_a_config_alone(self, hf):
        remove(*hf.glob("model*"))
        assert "describes a model, and there are no weights" in said(hf)

    def test_weights_alone(self, hf):
        remove(hf / "config.json")
        assert "no config that says of which model" in said(hf) and "--config FILE" in said(hf)

    def test_shards_without_their_index(self, hf):
        remove(hf / "model.safetensors.index.json")
        assert "the index that says which tensors each holds is missing" in said(hf)

    def test_shards_that_the_index_names(self, hf):
        """The format is recognised, and its reader meets the first of them."""
        remove(shards(hf)[0])
        for text in (said(hf), (remove(hf / "config.json"), said(hf))[1]):
            assert "a shard is not here" in text and "found: no model-00001-of" in text
            assert "expected: all that model.safetensors.index.json names" in text
        (hf / "model-00001-of-00002.safetensors.incomplete").touch()
        assert "; unfinished: model-00001-of-00002.safetensors.incomplete" in said(hf)

    def test_an_unfinished_download(self, tmp_path):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "model.safetensors.incomplete").write_bytes(b"1" * 2000)
        assert "unfinished downloads" in said(tmp_path / "x")

    def test_a_link_to_nowhere(self, hf):
        remove(shards(hf)[0])
        shards(hf)[0].with_name("model-00001-of-00002.safetensors").symlink_to("../blobs/gone")
        assert "leads nowhere" in said(hf) and "found: ../blobs/gone" in said(hf)

    def test_a_pointer(self, tmp_path):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "weights.nemo").write_text(LFS)
        assert "git lfs pull" in said(tmp_path / "x") and "git lfs pull" in said(tmp_path / "x" / "weights.nemo")


class TestPlaces:
    def test_a_parent_names_what_is_in_it(self, hf, tmp_path):
        top = tmp_path / "top"
        (top / "runs").mkdir(parents=True)
        shutil.move(hf, top / "runs" / "one")
        assert "holds one" in said(top) and f"fix: give {top}/runs/one" in said(top)
        shutil.copytree(top / "runs" / "one", top / "two")
        assert "holds 2" in said(top) and "runs/one (hf)" in said(top) and "two (hf)" in said(top)

    def test_a_cache_of_the_hub(self, hf, tmp_path):
        repository = tmp_path / "home" / "hub" / "models--a--b"
        snapshot = repository / "snapshots" / "0123"
        snapshot.parent.mkdir(parents=True)
        shutil.move(hf, snapshot)
        for path in (tmp_path / "home", repository.parent, repository):
            assert "cache of the Hugging Face hub" in said(path) and f"give a snapshot: {snapshot}" in said(path)
        shutil.rmtree(repository / "snapshots")
        (repository / "snapshots").mkdir()
        assert "without any snapshot" in said(repository)

    @pytest.mark.parametrize("name", ["mp_rank_00_001", "mp_rank_00_001/model_optim_rng.pt"])
    def test_one_rank(self, name):
        golden = next(golden for golden in goldens("megatron") if golden.folder.name == "mixtral_groupedmlp_ep2_torch")
        (step,) = golden.checkpoint.glob("iter_*")
        assert "a part of a checkpoint (Megatron-LM" in said(step / name)
        assert f"give the folder of all parts: {step} (megatron)" in said(step / name)

    def test_iterations_without_a_tracker(self, tmp_path):
        golden = next(golden for golden in goldens("megatron") if golden.folder.name == "mixtral_groupedmlp_ep2_torch")
        shutil.copytree(golden.checkpoint, tmp_path / "m", copy_function=os.link)
        (step,) = (tmp_path / "m").glob("iter_*")
        shutil.copytree(step, tmp_path / "m" / "iter_0000777", copy_function=os.link)
        remove(tmp_path / "m" / "latest_checkpointed_iteration.txt")
        assert "several iterations" in said(tmp_path / "m") and f"{step.name}, iter_0000777" in said(tmp_path / "m")


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.pattern)
def test_what_to_install(tmp_path, trace):
    """Each name leads to the package that reads it, or to none; never to a package that is there already."""
    name = trace.pattern.replace("[0-9]*", "01").replace("*", "1")
    (tmp_path / name).write_bytes(b"x" * 2000)
    (tmp_path / "of-no-format").write_bytes(b"x" * 2000)
    error = diagnosis(str(tmp_path), ["ir"], lambda path: [])
    assert name in str(error.found) and "looks like one of" in error.problem
    if trace.package is None:
        assert error.fix == "this is not supported yet" or error.fix.startswith("pip install ckpt-")
    else:
        assert error.fix.startswith("pip install ckpt-")
        everything = diagnosis(str(tmp_path), ["ir", trace.package.removeprefix("ckpt-")], lambda path: [])
        assert everything.fix != error.fix


class TestWhatIsNotInstalled:
    ROOT = Path(__file__).resolve().parents[2]

    def test_the_table_of_our_packages_is_that_of_their_entry_points(self):
        projects = [tomllib.loads(file.read_text())["project"] for file in self.ROOT.glob("plugins/*/pyproject.toml")]
        assert {one["name"]: {*one["entry-points"]["ckpt.formats"]} for one in projects} == {
            package: {*names} for package, names in OWN.items()
        }
        whole = tomllib.loads((self.ROOT / "convert/pyproject.toml").read_text())["project"]["dependencies"]
        assert {*OWN} == {one.partition("=")[0] for one in whole} - {"ckpt-core[rich]", "ckpt-page"}

    def test_a_checkpoint_in_a_folder_below_leads_to_its_package(self):
        """Nanotron's own folder has nothing in it but a number and `latest.txt`."""
        golden = goldens("nanotron")[0].checkpoint
        for path in (golden, golden.parent):
            error = diagnosis(str(path), ["hf", "ir"], lambda path: [])
            assert "looks like one of Nanotron" in error.problem and "checkpoint_metadata.json" in str(error.found)
            assert error.fix == "pip install ckpt-nanotron (ckpt-convert brings all formats)"

    def test_what_nobody_knows_may_be_of_a_format_that_is_not_here(self, tmp_path):
        (tmp_path / "of-no-format").write_bytes(b"x" * 2000)
        ours = [name for names in OWN.values() for name in names]
        few = diagnosis(str(tmp_path), ["ir", "of-a-stranger", "nemo"], lambda path: [])
        assert few.expected == "one of the formats installed here: ir, of-a-stranger, nemo"
        assert few.fix.partition("brings ")[2].split(", ")[:-1] == [name for name in ours if name != "nemo"]
        assert "pip install ckpt-convert" in few.fix
        assert diagnosis(str(tmp_path), ours, lambda path: []).fix == "name the format with --from"

    def test_a_format_that_is_named_leads_to_its_package(self, monkeypatch):
        ours = {"ir": discovery.entry_points()["ir"]}  # the entry itself, because what is loaded here stays loaded
        monkeypatch.setattr(discovery, "entry_points", lambda: ours)
        with pytest.raises(UsageError) as raised:
            discovery.load.__wrapped__("fsdp-lora")
        assert raised.value.fix == "pip install ckpt-peft, or ckpt-convert for all formats"


def test_the_name_of_a_repository_leads_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What every other tool takes for a repository is a path here; a path below a folder that is there, and an absolute one, are none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert "fix: a repository of the hub is written hf://owner/name-1.5B" in said(Path("owner/name-1.5B"))
    for path in (Path("runs/llama"), tmp_path / "llama", Path("a/b/c"), Path("llama")):
        assert "hf://" not in said(path)


def test_what_is_no_gguf_file_is_not_called_unsupported(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"no such magic" * 100)
    assert "not supported" not in said(tmp_path / "model.gguf")


@pytest.mark.parametrize("format", [name for names in OWN.values() for name in names if name != "hf"])
def test_a_format_that_is_asked_for_and_is_not_the_one(sharded: Path, format: str) -> None:
    with pytest.raises(CkptError) as raised:
        read_checkpoint(sharded, format=format)
    assert "leave --from out: it looks like hf" in str(raised.value)
    read_checkpoint(sharded)


def test_a_conversion_that_is_not_finished(hf: Path, tmp_path: Path) -> None:
    """Its files have their size and their headers, and holes in place of what is not written yet."""
    staging = tmp_path / "out.ckpt-partial"
    staging.mkdir()
    hf.rename(staging / "out")
    read_checkpoint(staging / "out")  # anybody's folder may have such a name
    (staging / "journal.jsonl").write_text("{}")
    (tmp_path / "latest").symlink_to("out.ckpt-partial/out")
    for path in (
        tmp_path / "out",
        staging,
        staging / "out",
        next((staging / "out").glob("model-*")),
        tmp_path / "latest",
    ):
        assert f"repeat the command that writes {tmp_path / 'out'}:" in said(path)
    (tmp_path / "latest").unlink()
    with contextlib.chdir(staging / "out"):
        assert f"repeat the command that writes {tmp_path / 'out'}:" in said(Path("."))
    with pytest.raises(CkptError, match="not finished"):
        read_checkpoint(staging / "out", format="hf")
    assert f"repeat the command that writes {tmp_path / 'out'}:" in said(tmp_path)
    shutil.copytree(staging / "out", tmp_path / "whole")
    assert f"fix: give {tmp_path / 'whole'}" in said(tmp_path)
