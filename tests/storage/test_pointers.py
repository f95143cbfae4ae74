"""A text that version control left in place of a file is named as what it is, whatever container it stands for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ckpt_core.api import convert, plan_conversion, read_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.storage.bytes.files import FileState, open_regular
from ckpt_core.storage.bytes.pointers import POINTERS
from ckpt_tests.goldens import Golden, goldens

LFS = "version https://git-lfs" + ".github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
CONTAINERS = [
    ("megatron", "*.pt"),
    ("megatron", "*.distcp"),
    ("megatron-bridge", "*.metadata"),
    ("megatron-deepspeed", "*model_states.pt"),
    ("nanotron", "*.safetensors"),
    ("nemo", "*.nemo"),
    ("nemo2", "*.json"),
    ("nxdt", "*.pt"),
]


def holding(framework: str, pattern: str) -> Golden:
    """A golden with such a file."""
    return next(golden for golden in goldens(framework) if any(golden.checkpoint.rglob(pattern)))


@pytest.mark.parametrize("pointer", POINTERS, ids=lambda pointer: pointer.beginning.decode())
def test_each_kind_has_its_own_fix(tmp_path, pointer):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pointer.beginning + b" and so on\n")
    for opened in (FileState.of, open_regular):
        with pytest.raises(CkptError) as raised:
            opened(path)
        assert raised.value.problem.startswith(pointer.name) and raised.value.fix == pointer.fix


def test_a_file_that_only_mentions_one_is_a_file(tmp_path):
    for text in ("see " + LFS, LFS + " " * 1024, ""):
        path = tmp_path / "README.md"
        path.write_text(text)
        assert FileState.of(path).size == len(text)
        os.close(open_regular(path))


@pytest.mark.parametrize(("framework", "pattern"), CONTAINERS)
def test_every_container(tmp_path: Path, framework: str, pattern: str):
    shutil.copytree(holding(framework, pattern).checkpoint, tmp_path / "c", copy_function=os.link)
    weights = max((tmp_path / "c").rglob(pattern), key=lambda path: (path.stat().st_size, path))
    weights.unlink()
    weights.write_text(LFS)
    with pytest.raises(CkptError) as raised:
        read_checkpoint(tmp_path / "c")
    assert "a Git LFS pointer lies in place of the file" in str(raised.value)
    assert "git lfs pull" in str(raised.value) and weights.name in str(raised.value)


def test_a_tokenizer_too(tmp_path: Path):
    """It is only copied, and all the same it is looked at before anything is written."""
    convert(holding("nanotron", "*.safetensors").checkpoint, tmp_path / "hf", to="hf")
    (tmp_path / "hf" / "tokenizer.json").write_text(LFS)
    with pytest.raises(CkptError, match="Git LFS pointer"):
        plan_conversion(tmp_path / "hf", tmp_path / "out", to="hf")
