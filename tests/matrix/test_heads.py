"""Bare decoders and classifiers in the formats that keep the models of transformers, and what the others say of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_core import convert, fingerprint
from ckpt_core.errors import CkptError
from ckpt_core.testing.examples import example, write_ir

KINDS = ("llama-headless", "llama-scored", "llama-tagged")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", ["deepspeed", "fsdp"])
def test_what_keeps_models_of_transformers_keeps_these(kind: str, format: str, tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example(kind))
    convert(tmp_path / "ir", tmp_path / format, to=format)
    convert(tmp_path / format, tmp_path / "back", to="ir")
    assert fingerprint(tmp_path / "back") == fingerprint(tmp_path / "ir")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "format", ["megatron", "megatron-bridge", "nemo", "nemo2", "nanotron", "nxdt", "megatron-deepspeed", "torchtitan"]
)
def test_what_trains_language_models_says_so(kind: str, format: str, tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example(kind, hidden=216))
    with pytest.raises(CkptError) as refusal:
        convert(tmp_path / "ir", tmp_path / format, to=format)
    for word in (
        "logits over the vocabulary",
        "convert to ir",
        "head.tied" if kind == KINDS[0] else "classifier.classes = 17",
    ):
        assert word in str(refusal.value)
