"""What of a training is asked for and is not there: the answer is of one kind, whatever format the model has."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_core import convert
from ckpt_core.api import read_checkpoint
from ckpt_core.cli.main import main
from ckpt_core.errors import NotCarried
from ckpt_core.testing import example, write_ir
from ckpt_tests.formats import written
from ckpt_tests.goldens import SHIPPED

HEADS = {"hidden": 144, "attention.head_dim": 12, "layers": 2}  # every format holds heads that share the hidden size
NAMES = {"megatron-deepspeed": "bloom"}  # its code has no Llama
OPTIONS = {"gguf": {"tokenizer": "none"}}
WITHOUT_CONFIG = ("fsdp", "deepspeed")
WITH_MASTERS = ("deepspeed",)  # a universal checkpoint has no other weights


@pytest.mark.parametrize("format", written())
def test_weights_alone_have_no_masters_and_no_state(format: str, tmp_path: Path) -> None:
    architecture = example(NAMES[format]) if format in NAMES else example("llama", **HEADS)
    source = write_ir(tmp_path / "ir", architecture)
    convert(source, tmp_path / "out", to=format, dtype="bf16", options=OPTIONS.get(format))
    config = None
    if format in WITHOUT_CONFIG:
        convert(source, config := tmp_path / "hf", to="hf")
    for asked in [{"training_state": "keep"}, *([] if format in WITH_MASTERS else [{"weights": "master"}])]:
        with pytest.raises(NotCarried, match=r"masters|the checkpoint has no state of a training|has taken no step"):
            read_checkpoint(tmp_path / "out", config=config, **asked)


def test_an_optimizer_that_took_no_step_has_no_state(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = SHIPPED / "nanotron" / "main_llama_tp2_pp1_bf16" / "checkpoint"
    asked = ["convert", str(run), str(tmp_path / "out"), "--to", "ir", "--training-state", "keep"]
    assert main(asked) == 1
    said = capsys.readouterr().err
    assert "no state of the optimizer has a step: it has taken none yet" in said
    assert "fix: leave it behind with --training-state drop" in said
    assert said.endswith("see: docs/troubleshooting.md#not-carried\n")
