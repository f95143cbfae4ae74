"""Models of transformers written as NeMo 2's families, and read again without the receipt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families.cases import CASES, build, tokens
from support import tiny
from support.models import load, logits_of

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_nemo.nemo2.graph import read_graph

FAMILIES = {
    "llama": ("llama.LlamaConfig", "LlamaModel"),
    "mistral": ("mistral.MistralConfig7B", "MistralModel"),
    "mixtral": ("mixtral.MixtralConfig", "MixtralModel"),
    "qwen2": ("qwen2.Qwen2Config", "Qwen2Model"),
    "qwen3": ("qwen3.Qwen3Config", "Qwen3Model"),
    "qwen3_moe": ("qwen3.Qwen3MoEConfig", "Qwen3Model"),
    "gpt2": ("base.GPTConfig", "GPTModel"),
    "nemotron": ("nemotron.NemotronConfig", "NemotronModel"),
    "starcoder2": ("starcoder2.Starcoder2Config", "Starcoder2Model"),
    "gemma": ("gemma.GemmaConfig", "GemmaModel"),
    "deepseek_v3": ("deepseek.DeepSeekV3Config", "DeepSeekModel"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_written_and_read(family: str, tmp_path: Path) -> None:
    if family in CASES:
        build(CASES[family], tmp_path / "hf", **({"rope_parameters": None} if family == "deepseek_v3" else {}))
    else:
        tiny.build(
            tmp_path / "hf", family, num_hidden_layers=2, **({"sliding_window": 9} if family == "mistral" else {})
        )
    run = tmp_path / "run"
    convert(tmp_path / "hf", run, to="nemo2", tp=2, pp=2)
    (run / "ckpt-receipt.json").unlink()
    model = read_graph(json.loads((run / "context/io.json").read_text()), "io.json").arguments["model"]
    config, name = FAMILIES[family]
    package = f"nemo.collections.llm.gpt.model.{config.partition('.')[0]}"
    assert (model.arguments["config"].target, model.target) == (
        f"nemo.collections.llm.gpt.model.{config}",
        f"{package}.{name}",
    )
    with open_checkpoint(tmp_path / "hf") as one, open_checkpoint(run, options={"vocab": "61"}) as two:
        assert one.architecture.decoder == two.architecture.decoder
        assert one.architecture.head == two.architecture.head
        assert one.architecture.tokens.scale == two.architecture.tokens.scale
    assert fingerprint(run, options={"vocab": "61"}) == fingerprint(tmp_path / "hf")


def test_scales_that_differ_between_layers_go_into_the_queries(tmp_path: Path) -> None:
    expected = logits_of(build(CASES["gpt2_scaled"], tmp_path / "hf"), tokens())
    convert(tmp_path / "hf", tmp_path / "run", to="nemo2")
    convert(tmp_path / "run", tmp_path / "back", to="hf")
    assert torch.allclose(logits_of(load(tmp_path / "back"), tokens()), expected, rtol=0, atol=1e-4)


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
        convert(tmp_path / "hf", tmp_path / "run", to="nemo2")
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("layout", "words"), [({"tp": 5}, "heads"), ({"pp": 3}, "2 layers"), ({"ep": 2}, "experts")])
def test_ranks_that_do_not_divide_are_refused(layout: dict[str, int], words: str, tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama", num_hidden_layers=2)
    with pytest.raises(CkptError, match=words):
        convert(tmp_path / "hf", tmp_path / "run", to="nemo2", **layout)
