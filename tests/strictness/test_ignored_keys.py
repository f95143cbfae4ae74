"""A key that no table knows: what the error proposes works in every format that reads a config of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckpt_core import CkptError, convert, fingerprint, open_checkpoint
from ckpt_core.receipt.places import RECEIPT
from ckpt_tests.goldens import SHIPPED

LLAMA = SHIPPED / "nanotron/main_llama_tp2_pp1_bf16/checkpoint"


@pytest.mark.parametrize("format", ["hf", "deepspeed", "fsdp", "torchtitan", "nxdt", "nanotron"])
def test_a_key_is_left_out_as_the_error_proposes(tmp_path: Path, format: str) -> None:
    out = tmp_path / format
    convert(LLAMA, out, to=format)
    (out / RECEIPT).unlink()
    value, files = fingerprint(out), [*out.rglob("config.json"), *out.rglob("model_config.json")]
    assert len(files) == 1
    files[0].write_text(json.dumps({**json.loads(files[0].read_text()), "surprising": 3}))
    with pytest.raises(CkptError, match=r"unknown config key 'surprising'[\s\S]* -o ignore_keys="):
        open_checkpoint(out)
    assert fingerprint(out, options={"ignore_keys": "surprising"}) == value
    with open_checkpoint(out, options={"ignore_keys": "surprising"}) as opened:
        losses = list(map(str, opened.checkpoint.provenance.losses)) + [
            entry.why for entry in opened.checkpoint.ledger if entry.what == "keys that were left out"
        ]
        assert "as -o ignore_keys asks" in losses


def test_the_class_that_the_error_proposes_may_be_written_into_the_file(tmp_path: Path) -> None:
    """Format hf has an option for it, and formats with a config of transformers have none."""
    for format in ("deepspeed", "fsdp", "torchtitan"):
        convert(LLAMA, tmp_path / format, to=format)
        (tmp_path / format / RECEIPT).unlink()
        file = tmp_path / format / "config.json"
        said = json.loads(file.read_text())
        file.write_text(json.dumps({**said, "architectures": ["MyLlama"]}))
        with pytest.raises(
            CkptError,
            match="read_as=LlamaForCausalLM, or, where format hf does not read them, write that into the file",
        ):
            open_checkpoint(tmp_path / format)
        file.write_text(json.dumps({**said, "architectures": ["LlamaForCausalLM"]}))
        open_checkpoint(tmp_path / format).close()
