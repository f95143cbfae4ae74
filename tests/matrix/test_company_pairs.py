"""Every pair of formats: what comes with a model (ids of special tokens, tokenizer files, the true vocabulary) arrives, or
is named in the losses of a step."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ckpt_core import convert
from ckpt_core.api import read_checkpoint
from ckpt_core.testing.examples import calm_numbers, example, write_ir
from ckpt_tests.formats import written

# 211 tokens: every format that pads its vocabulary adds rows
TOKENS = 211
NAMES = {f"<{number}>": number for number in range(200, TOKENS)}
TOKENIZER = {
    "version": "1.0",
    "model": {"type": "BPE", "vocab": {f"t{number}": number for number in range(200)}, "merges": []},
    "added_tokens": [{"id": number, "content": token, "special": True} for token, number in NAMES.items()],
}
FILES = {
    "tokenizer.json": json.dumps(TOKENIZER).encode(),
    "tokenizer_config.json": json.dumps({"bos_token": "<200>", "eos_token": "<201>", "pad_token": "<204>"}).encode(),
    "special_tokens_map.json": json.dumps({"eos_token": {"content": "<201>"}}).encode(),
    "added_tokens.json": json.dumps(NAMES).encode(),
    "generation_config.json": json.dumps({"eos_token_id": [201, 208, 209], "top_p": 0.9}).encode(),
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/rag.jinja": b"{{ documents }}",
    "README.md": b"# a model\n",
}
IDS = {"bos": 200, "eos": [201, 208, 209], "pad": 204, "decoder_start": 204}
PROCESSOR = {
    "preprocessor_config.json": json.dumps({"image_mean": [0.5, 0.5, 0.5]}).encode(),
    "README.md": b"# a model\n",
}
# heads that share the hidden size, as most classes want them
SHARED: dict[str, object] = {"hidden": 144, "attention.head_dim": 12}
SQUARE: dict[str, object] = {"patches.height": 32, "positions.count": 17, "classifier.hidden": False}
SMALL: dict[str, object] = {"tokens.vocabulary": TOKENS, "tokens.padded_vocabulary": TOKENS}

LAYOUTS: dict[str, dict[str, object]] = {
    "hf": {},
    "ir": {},
    "nanotron": {"tp": 2, "pp": 2},
    "megatron": {"tp": 2},
    "megatron-bridge": {"tp": 2},
    "nemo": {"tp": 2},
    "nemo2": {"tp": 2},
    "nxdt": {},
    "megatron-deepspeed": {"tp": 2},
    "deepspeed": {},
    "fsdp": {},
    "torchtitan": {},
    "gguf": {"options": {"dst.tokenizer": "none"}},
}
# A model of each kind, its notes and files, and the formats that can hold it.
MODELS: dict[str, tuple[Any, dict[str, object], dict[str, bytes], set[str]]] = {
    "llama": (
        example("llama", layers=2, **SHARED, **SMALL),
        IDS,
        FILES,
        set(LAYOUTS) - {"megatron-deepspeed"},
    ),
    "bloom": (
        example("bloom", layers=2, **SHARED, **SMALL, **{"mlp.ffn": 576}),
        IDS,
        FILES,
        {"hf", "megatron-deepspeed"},
    ),
    "t5": (example("t5"), {"eos": 3, "pad": 1, "decoder_start": 1}, FILES, {"hf", "nemo", "deepspeed"}),
    "vit": (example("vit", **SHARED, **SQUARE), {}, PROCESSOR, {"hf", "nemo"}),
}
# What fsdp and torchtitan keep beside a model is what hf keeps, and GGUF has its own tests; they go from and to that alone.
PAIRS = [
    (model, *pair)
    for model, (*_, holders) in MODELS.items()
    for pair in itertools.product(sorted(holders), repeat=2)
    if not {"fsdp", "torchtitan", "gguf"} & set(pair) or "hf" in pair
]


def test_every_format_that_is_written_is_here() -> None:
    assert set(written()) == set(LAYOUTS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("company"))


class Made:
    """The models in the format that a test starts from, written once, with what writing them lost."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[str, str], tuple[Path, list[str]]] = {}

    def model(self, name: str, format: str) -> tuple[Path, list[str]]:
        if (name, format) not in self._known:
            architecture, notes, files, _ = MODELS[name]
            source = write_ir(
                self.folder / f"{name}-source-{format}", architecture, values=calm_numbers, notes=notes, sidecars=files
            )
            self._known[name, format] = step(source, self.folder / f"{name}-{format}", format)
        return self._known[name, format]


def step(source: Path | str, target: Path, format: str, origin: str | None = None) -> tuple[Path, list[str]]:
    receipt = convert(source, target, to=format, format=origin, sync=False, **LAYOUTS[format])
    losses = receipt.body["losses"]
    assert isinstance(losses, list)
    return target, [f"{loss['subject']} {loss['reason']}" for loss in losses]


def missing(folder: Path, notes: Mapping[str, object], files: Mapping[str, bytes], tokens: int | None) -> list[str]:
    """What of a model's company an HF folder lacks, as a loss would call it."""
    config = json.loads((folder / "config.json").read_text())
    named = {
        "eos": "eos_token_id",
        "bos": "bos_token_id",
        "pad": "pad_token_id",
        "decoder_start": "decoder_start_token_id",
    }
    found = [role for role, value in notes.items() if config.get(named[role]) != value]
    found += [name for name, data in files.items() if not same(folder / name, data)]
    return found + (["vocabulary"] if tokens is not None and config.get("vocab_size") != tokens else [])


def same(file: Path, data: bytes) -> bool:
    return file.is_file() and file.read_bytes() == data


@pytest.mark.parametrize(("model", "origin", "target"), PAIRS)
def test_what_comes_with_a_model_arrives_or_is_named(
    model: str, origin: str, target: str, made: Made, tmp_path: Path
) -> None:
    architecture, notes, files, _ = MODELS[model]
    start, first = made.model(model, origin)
    there, second = step(start, tmp_path / "there", target, origin)
    back, third = step(there, tmp_path / "back", "hf", target)
    tokens = architecture.tokens and architecture.tokens.vocabulary
    said = [*first, *second, *third]
    for thing in missing(back, notes, files, tokens):
        assert any(thing in loss for loss in said), f"{thing} is gone, and none of {said} names it"


@pytest.mark.parametrize("format", sorted(MODELS["llama"][3]))
def test_without_the_receipt_no_row_of_padding_becomes_a_token(format: str, made: Made, tmp_path: Path) -> None:
    """The tokenizer that travels along says the number, or the format itself, or it is said to be assumed."""
    there, _ = step(made.model("llama", "ir")[0], tmp_path / "there", format, "ir")
    for receipt in tmp_path.rglob("*ckpt-receipt*"):
        receipt.unlink()
    found = read_checkpoint(there, format=format)
    assert found.architecture.tokens is not None
    assumed = [loss for loss in found.provenance.losses if loss.kind == "assumed" and "a vocabulary of" in loss.subject]
    assert found.architecture.tokens.vocabulary == TOKENS or assumed


@pytest.mark.parametrize("format", sorted(MODELS["llama"][3] - {"nanotron", "gguf"}))
def test_most_formats_say_every_id_in_their_own_config(format: str, made: Made) -> None:
    """So that they survive without any companion; nanotron and GGUF have one number for each."""
    folder, _ = made.model("llama", format)
    notes = read_checkpoint(folder, format=format).notes
    expected = {role: value for role, value in IDS.items() if role != "decoder_start"}
    assert {role: notes.get(role) for role in expected} == expected
