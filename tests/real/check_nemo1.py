"""HF -> NeMo 1, judged by the real NeMo: what we write it restores, and its logits are transformers'.

Run by `nox -s real_nemo1`, in an environment of its own. NEMO1_SOURCE, NEMO1_CORE_SOURCE and APEX_SOURCE are folders with the
sources of NeMo, Megatron-LM and apex, of the versions in README.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import sentencepiece
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from ckpt_core import convert
from ckpt_tests.rows import wrong_sentences

HERE = Path(__file__).parent
SOURCES = {name: os.environ.get(name) for name in ("NEMO1_SOURCE", "NEMO1_CORE_SOURCE", "APEX_SOURCE")}
TOLERANCE = 1e-4
# family, ranks, options
GPT: list[tuple[str, dict[str, int], dict[str, str]]] = [
    ("llama_heads", {}, {}),
    ("llama_heads", {"tp": 2, "pp": 2}, {}),
    ("llama_heads", {}, {"names": "mcore"}),
    ("gpt2", {"tp": 2}, {}),
    ("llama", {}, {}),
    ("llama", {}, {"backend": "ranks"}),
    ("llama", {"tp": 2}, {"backend": "ranks"}),
    ("llama", {"tp": 2, "pp": 2}, {"backend": "ranks"}),
    ("llama", {"tp": 2}, {}),
    ("llama", {}, {"container": "ckpt"}),
    ("mixtral", {}, {}),
]
T5 = {"t5": {"feed_forward_proj": "gated-gelu"}, "ul2": {"feed_forward_proj": "gated-silu"}}
SIZES_OF_T5: dict[str, Any] = {
    "vocab_size": 128, "d_model": 48, "d_kv": 8, "d_ff": 80, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 6,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a model of a name, once: its HF folder with a tokenizer, and beside it inputs and transformers' own logits."""
    folder = tmp_path_factory.mktemp("hf")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            if name in T5:
                _make_t5(folder, name)
            elif name == "vit":
                _make_vit(folder)
            else:
                tiny_models.make(folder, name)
                _add_tokenizer(folder / name)
        return folder / name

    return make


def _add_tokenizer(folder: Path) -> None:
    words = {f"w{number}": number for number in range(tiny_models.VOCABULARY - 4)}
    words |= {mark: len(words) + place for place, mark in enumerate(("<pad>", "<s>", "</s>", "<unk>"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def _noisy(model: torch.nn.Module) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.float().eval()


def _record(model: Any, folder: Path, name: str, inputs: dict[str, torch.Tensor]) -> None:
    model.save_pretrained(folder / name)
    with torch.no_grad():
        logits = model(**inputs).logits
    save_file(inputs, folder / f"{name}.ids.safetensors")
    save_file({"logits": logits.contiguous()}, folder / f"{name}.logits.safetensors")


def _make_t5(folder: Path, name: str) -> None:
    """With a padded batch, and a SentencePiece model of 100 pieces."""
    torch.manual_seed(3)
    model = _noisy(T5ForConditionalGeneration(T5Config(**SIZES_OF_T5, **T5[name])))
    masks = {"attention_mask": torch.ones(2, 41), "decoder_attention_mask": torch.ones(2, 43)}
    masks["attention_mask"][1, 33:] = masks["decoder_attention_mask"][1, 40:] = 0
    ids = {"input_ids": torch.randint(3, 100, (2, 41)), "decoder_input_ids": torch.randint(3, 100, (2, 43))}
    _record(model, folder, name, ids | {key: mask.long() for key, mask in masks.items()})
    text = (" ".join(f"{chr(97 + i % 26)}{chr(97 + (i * 7 + j) % 26)}" for j in range(9)) for i in range(400))
    with (folder / name / "spiece.model").open("wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=text, model_writer=writer, vocab_size=100, model_type="bpe", pad_id=0, eos_id=1, unk_id=2,
            bos_id=-1, hard_vocab_limit=False,
        )  # fmt: skip


def _make_vit(folder: Path) -> None:
    torch.manual_seed(3)
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=6, intermediate_size=96, image_size=56, patch_size=8,
        num_labels=11, layer_norm_eps=1e-5,
    )  # fmt: skip
    _record(_noisy(ViTForImageClassification(config)), folder, "vit", {"pixel_values": torch.randn(2, 3, 56, 56)})


@pytest.fixture(scope="module")
def nemo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[forked.Case], str | None]]:
    """The judge. It sees the stand-ins first, then Megatron-Core alone: `megatron/__init__.py` of the whole asks for its tools."""
    missing = [name for name, folder in SOURCES.items() if not folder]
    assert not missing, f"set {', '.join(missing)}: see README.md"
    core = tmp_path_factory.mktemp("core")
    (core / "megatron").mkdir()
    (core / "megatron/core").symlink_to(Path(str(SOURCES["NEMO1_CORE_SOURCE"])).resolve() / "megatron/core")
    folders = [HERE / "te", HERE, core, SOURCES["NEMO1_SOURCE"], SOURCES["APEX_SOURCE"]]
    settings = {"PYTORCH_JIT": "0", "TE_STANDIN_VERSION": "1.2.0", "HF_HUB_OFFLINE": "1"}
    path = {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    with forked.started([sys.executable, str(HERE / "nemo1_judge.py")], core / "judge.log", settings | path) as ask:
        yield ask


def off(archive: Path, model: Path, nemo: Callable[[forked.Case], str | None], tp: int = 1, pp: int = 1) -> float:
    """How far NeMo's logits are from those of transformers at the most, where a token is."""
    out, inputs = archive.with_suffix(".logits.safetensors"), model.with_suffix(".ids.safetensors")
    files = {"archive": str(archive), "inputs": str(inputs), "out": str(out)}
    failure = nemo({**files, "tp": tp, "pp": pp, "world": tp * pp})
    assert failure is None, failure
    expected = load_file(model.with_suffix(".logits.safetensors"))["logits"]
    keep = load_file(inputs).get("decoder_attention_mask", torch.ones(expected.shape[:-1])).bool()
    found = load_file(out)["logits"][..., : expected.shape[-1]]
    print(f"off by {(difference := (found - expected)[keep].abs().max().item()):.2e}")
    return difference


@pytest.mark.parametrize(("family", "ranks", "options"), GPT, ids=str)
def test_nemo_computes_what_transformers_computes(
    family: str, ranks: dict, options: dict, made: Callable, nemo: Callable, tmp_path: Path
) -> None:
    model = made(family)
    archive = tmp_path / ("run" if "container" in options else "x.nemo")
    convert(model, archive, to="nemo", **ranks, options={"tokenizer_name": str(model), **options})
    assert off(archive, model, nemo, **ranks) <= TOLERANCE


def test_nemo_computes_with_bf16_weights_what_transformers_computes(
    made: Callable, nemo: Callable, tmp_path: Path
) -> None:
    """Both compute in float32, on weights that bf16 holds."""
    model = LlamaForCausalLM.from_pretrained(made("llama"), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    _record(model, tmp_path, "rounded", load_file(made("llama").with_suffix(".ids.safetensors")))
    _add_tokenizer(source := tmp_path / "rounded")
    convert(source, tmp_path / "x.nemo", to="nemo", dtype="bf16", options={"tokenizer_name": str(source)})
    assert off(tmp_path / "x.nemo", source, nemo) <= TOLERANCE


@pytest.mark.parametrize("family", T5)
@pytest.mark.parametrize(("container", "tp"), [("nemo", 1), ("nemo", 2), ("ckpt", 1)])
def test_nemo_computes_t5(family: str, container: str, tp: int, made: Callable, nemo: Callable, tmp_path: Path) -> None:
    model, archive = made(family), tmp_path / ("run" if container == "ckpt" else "x.nemo")
    convert(model, archive, to="nemo", tp=tp, options={"container": container})
    assert off(archive, model, nemo, tp=tp) <= TOLERANCE


def test_nemo_computes_vit(made: Callable, nemo: Callable, tmp_path: Path) -> None:
    convert(made("vit"), tmp_path / "x.nemo", to="nemo")
    assert off(tmp_path / "x.nemo", made("vit"), nemo) <= TOLERANCE


def test_the_judge_sees_gate_and_up_exchanged(
    made: Callable, nemo: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check can fail: of what is written in another order than NeMo's, the logits are far off."""
    wrong_sentences(monkeypatch, {"((gate + up) f) h": "((up + gate) f) h"}, "mlp.linear_fc1.weight")
    model = made("llama")
    convert(model, tmp_path / "x.nemo", to="nemo", options={"tokenizer_name": str(model)})
    assert off(tmp_path / "x.nemo", model, nemo) > 0.1
