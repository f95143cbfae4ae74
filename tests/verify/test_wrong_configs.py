"""A config that lost something computes something else: `verify --logits` says so, and from which block on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ckpt_core import convert
from ckpt_tests.goldens import goldens
from ckpt_tests.program import ckpt

# What is done to config.json, and the first block after which the model is another one.
WRONG = {
    "theta lost": ({"rope_theta": 10000.0, "rope_parameters": None, "rope_scaling": None}, "layers.0.attention"),
    "eps changed": ({"rms_norm_eps": 1e-2}, "layers.0.attention"),
    "another activation": ({"hidden_act": "gelu"}, "layers.0.mlp"),
    "a scaling": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": None},
        "layers.0.attention",
    ),
}


@pytest.fixture(scope="module")
def source() -> Path:
    return next(one.checkpoint for one in goldens("nanotron") if one.folder.name == "main_llama_tp2_pp1_bf16")


@pytest.fixture(scope="module")
def written(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong") / "hf"
    convert(source, folder, to="hf", dtype="fp32")
    return folder


def verified(source: Path, folder: Path) -> tuple[int, dict]:
    code, text = ckpt("verify", source, folder, "--logits", "--max-memory", "1MiB", "--json")
    return code, json.loads(text)["logits"]


def test_as_it_was_written(source: Path, written: Path) -> None:
    code, logits = verified(source, written)
    assert (code, logits["largest"], logits["first_apart"]) == (0, 0.0, None)


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_config_is_seen(what: str, source: Path, written: Path, tmp_path: Path) -> None:
    change, block = WRONG[what]
    shutil.copytree(written, tmp_path / "hf")
    config = json.loads((written / "config.json").read_text()) | change
    kept = {key: value for key, value in config.items() if value is not None or key not in change}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(kept))
    code, logits = verified(source, tmp_path / "hf")
    assert code == 3 and logits["first_apart"] == block
    assert logits["relative"] > logits["tolerance"]


def test_a_head_that_was_tied_by_mistake_is_seen(source: Path, written: Path, tmp_path: Path) -> None:
    """The weights still hold a head of their own, so reading them refuses rather than choose."""
    shutil.copytree(written, tmp_path / "hf")
    config = json.loads((written / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    (tmp_path / "hf" / "ckpt-receipt.json").unlink()  # by which the changed config would be seen before
    code, text = ckpt("verify", source, tmp_path / "hf", "--logits")
    assert code == 1 and "two copies of embedding.tokens.weight differ" in text
