"""What is wrong with the arguments of a conversion, before there is a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckpt_core.api import check_asked
from ckpt_core.cli.main import main
from ckpt_core.errors import CkptError, NotCarried, UsageError
from ckpt_core.testing import example, write_ir


@pytest.mark.parametrize(
    ("asked", "kind", "text"),
    [
        ({"to": "gguf", "options": {"type": "Q4_K_M"}}, UsageError, "llama-quantize"),
        ({"to": "gguf", "options": {"type": "f16"}}, UsageError, "did you mean 'F16'"),
        ({"to": "hf", "options": {"dst.vocab": "9"}}, UsageError, "format hf has no write option 'vocab'"),
        ({"to": "hf", "options": {"src.container": "hf"}}, UsageError, "no format has a read option 'container'"),
        ({"to": "hf", "options": {"src.vocub": "9"}}, UsageError, "did you mean 'vocab'"),
        ({"to": "hf", "format": "nanotron", "options": {"vocub": "9"}}, UsageError, "neither nanotron (source) nor hf"),
        (
            {"to": "megatron", "options": {"latent_norm_eps": "small"}},
            UsageError,
            "option latent_norm_eps has no value",
        ),
        ({"to": "gguf", "training_state": "keep"}, NotCarried, "does not take the state"),
        ({"to": "hf", "config": "no/where"}, CkptError, "there is no such file or folder"),
        ({"to": "hf", "config": "Qwen/Qwen3-0.6B"}, CkptError, "hf://Qwen/Qwen3-0.6B"),
        ({"to": "hf", "tp": 2}, UsageError, "format hf has no --tp"),
    ],
)
def test_what_no_source_could_mend_is_said(asked: dict[str, Any], kind: type[CkptError], text: str) -> None:
    with pytest.raises(kind) as error:
        check_asked(**asked)
    assert text in str(error.value)


@pytest.mark.parametrize(
    "asked",
    [
        {"to": "hf", "options": {"vocab": "9"}},  # of some reader
        {"to": "hf", "options": {"src.vocab": "9", "dst.max_shard_size": "1GB"}},
        {"to": "hf", "options": {"base": "a/model/that/comes/later"}},
        {"to": "gguf", "format": "hf", "options": {"ignore_keys": "a,b", "type": "F16"}, "weights": "model"},
    ],
)
def test_what_a_source_may_take_is_not(asked: dict[str, Any]) -> None:
    check_asked(**asked)


def test_a_selftest_takes_the_folder_of_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As every other command does."""
    write_ir(tmp_path / "m", example("llama", **{"hidden": 144, "attention.head_dim": 12, "layers": 2}), sparse=True)
    assert main(["selftest", "nanotron", "--config", str(tmp_path / "m")]) == 0
    assert "every element lies where it is declared" in capsys.readouterr().out
    assert main(["selftest", "nanotron", "--config", ""]) == 2
