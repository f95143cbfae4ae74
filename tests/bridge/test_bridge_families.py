"""Models of transformers written as Megatron-Bridge's providers, and read again without the receipt."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from families.cases import CASES, build
from support import tiny

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError

FAMILIES = ("mistral", "mixtral", "qwen2_moe", "qwen3_moe", "nemotron", "starcoder2", "gemma", "deepseek_v3")
CLASSES = {"gemma": "gemma.gemma_provider.GemmaModelProvider", "deepseek_v3": "mla_provider.MLAModelProvider"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_written_and_read(family: str, tmp_path: Path) -> None:
    if family in CASES:
        build(CASES[family], tmp_path / "hf", **({"rope_parameters": None} if family == "deepseek_v3" else {}))
    else:
        tiny.build(
            tmp_path / "hf", family, num_hidden_layers=2, **({"sliding_window": 9} if family == "mistral" else {})
        )
    run = tmp_path / "run"
    convert(tmp_path / "hf", run, to="megatron-bridge", tp=2, pp=2)
    (run / "ckpt-receipt.json").unlink()
    model = yaml.safe_load((run / "iter_0000000/run_config.yaml").read_text())["model"]
    expected = CLASSES.get(family, "gpt_provider.GPTModelProvider")
    assert model["_target_"] == f"megatron.bridge.models.{expected}"
    with open_checkpoint(tmp_path / "hf") as one, open_checkpoint(run) as two:
        assert one.architecture.decoder == two.architecture.decoder
        assert one.architecture.head == two.architecture.head
        assert one.architecture.tokens.scale == two.architecture.tokens.scale
    assert fingerprint(run) == fingerprint(tmp_path / "hf")


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("gemma2", ("softcap",)),
        ("olmo2", ("attention.norm",)),
        ("falcon", ("parallel",)),
        ("bloom", ("attention.alibi",)),
    ],
)
def test_what_no_class_holds_is_refused_by_name(family: str, words: tuple[str, ...], tmp_path: Path) -> None:
    build(CASES[family], tmp_path / "hf")
    with pytest.raises(CkptError) as refusal:
        convert(tmp_path / "hf", tmp_path / "run", to="megatron-bridge")
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("layout", "words"), [({"tp": 5}, "heads"), ({"pp": 3}, "2 layers"), ({"ep": 2}, "experts")])
def test_ranks_that_do_not_divide_are_refused(layout: dict[str, int], words: str, tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama", num_hidden_layers=2)
    with pytest.raises(CkptError, match=words):
        convert(tmp_path / "hf", tmp_path / "run", to="megatron-bridge", **layout)
