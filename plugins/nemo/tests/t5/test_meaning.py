"""Whatever a config of NeMo says, transformers computes what the reference computes from the checkpoint as it was read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from ckpt_core import convert, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.reference import Inputs, forward
from ckpt_tests.seq2seq import build, inputs, load, logits_of

TOLERANCE = 1e-4
HEAD = "enc_dec_model.tokens_head"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model of transformers as NeMo would have it, in a folder."""
    found: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            build(name, folder / "hf")
            convert(folder / "hf", folder / "nemo", to="nemo", options={"container": "folder"})
            (folder / "nemo" / "ckpt-receipt.json").unlink()
            found[name] = folder / "nemo"
        return found[name]

    return make


def changed(
    source: Path,
    target: Path,
    change: Callable[[dict], object] = lambda held: None,
    top: dict | None = None,
    **keys: object,
) -> Path:
    """A copy with keys of both sections (and of the top) changed, and tensors."""
    shutil.copytree(source, target)
    config = yaml.safe_load((target / "model_config.yaml").read_text()) | (top or {})
    for section in ("encoder", "decoder"):
        config[section].update(keys)
    (target / "model_config.yaml").write_text(yaml.safe_dump(config))
    held = torch.load(target / "model_weights.ckpt")
    change(held)
    torch.save(held, target / "model_weights.ckpt")
    return target


def check(path: Path, folder: Path) -> str:
    """Convert, compare with the reference, and name the class."""
    given = inputs()
    with open_checkpoint(path) as model:
        *_, step = forward(
            model, Inputs(given["decoder_input_ids"], given["input_ids"], None, None, given["attention_mask"])
        )
    convert(path, folder / "out", to="hf")
    written = load(folder / "out")
    found, expected = logits_of(written), step.values
    assert (found - expected).abs().max() <= TOLERANCE * max(1.0, expected.abs().max())
    return type(written).__name__.removesuffix("ForConditionalGeneration")


SCORES = [(True, False, "T5"), (False, False, "T5"), (True, True, "UMT5"), (False, True, "UMT5")]


@pytest.mark.parametrize(("normalises", "numbers", "kind"), SCORES)
def test_the_four_scalings_of_scores(
    normalises: bool, numbers: bool, kind: str, made: Callable, tmp_path: Path
) -> None:
    keys = {"normalize_attention_scores": normalises, "apply_query_key_layer_scaling": numbers}
    assert check(changed(made("t5_v1.1"), tmp_path / "nemo", **keys), tmp_path) == kind


@pytest.mark.parametrize(("normalises", "numbers"), [(True, True), (False, True), (False, False)])
def test_without_a_relative_bias_the_layer_number_cancels_or_is_folded(
    normalises: bool, numbers: bool, made: Callable, tmp_path: Path
) -> None:
    keys = {"normalize_attention_scores": normalises, "apply_query_key_layer_scaling": numbers}
    assert check(changed(made("blenderbot"), tmp_path / "nemo", **keys), tmp_path) == "Blenderbot"


@pytest.mark.parametrize(
    ("activation", "openai", "fused"),
    [("gelu", True, False), ("gelu", False, False), ("gelu", False, True), ("gelu", True, True)],
)
def test_the_gelu_of_a_model_with_biases(
    activation: str, openai: bool, fused: bool, made: Callable, tmp_path: Path
) -> None:
    keys = {"activation": activation, "openai_gelu": openai, "bias_activation_fusion": fused}
    assert check(changed(made("blenderbot"), tmp_path / "nemo", **keys), tmp_path) == "Blenderbot"


def test_norms_that_are_stored_less_one(made: Callable, tmp_path: Path) -> None:
    def less_one(held: dict) -> None:
        for name in held:
            if "layernorm" in name and name.endswith("weight"):
                held[name] -= 1

    assert (
        check(changed(made("blenderbot"), tmp_path / "nemo", less_one, normalization="layernorm1p"), tmp_path)
        == "Blenderbot"
    )


def test_a_head_bias_is_left_out_where_it_is_zero_alone(made: Callable, tmp_path: Path) -> None:
    biased = {"tokens_head_bias": True}
    path = changed(
        made("t5_v1.1"), tmp_path / "zero", lambda held: held.__setitem__(f"{HEAD}.bias", torch.zeros(128)), biased
    )
    assert check(path, tmp_path) == "T5"
    path = changed(
        made("t5_v1.1"),
        tmp_path / "trained",
        lambda held: held.__setitem__(f"{HEAD}.bias", torch.eye(128)[3] / 8),
        biased,
    )
    with pytest.raises(CkptError, match=r"tokens_head_bias: true.*0\.125"):
        convert(path, tmp_path / "refused", to="hf")


def test_a_tied_head_without_bias_becomes_blenderbots(made: Callable, tmp_path: Path) -> None:
    path = changed(
        made("blenderbot"), tmp_path / "nemo", lambda held: held.pop(f"{HEAD}.bias"), {"tokens_head_bias": False}
    )
    assert check(path, tmp_path) == "Blenderbot"


def test_head_scales_are_folded(made: Callable, tmp_path: Path) -> None:
    def scale(held: dict) -> None:
        for name in list(held):
            if name.endswith("attention.dense.weight"):
                held[name.replace("dense.weight", "head_scale_tensor")] = torch.rand(1, 4, 1, 1) + 0.5

    assert check(changed(made("t5_v1.1"), tmp_path / "nemo", scale, headscale=True), tmp_path) == "T5"


def test_embeddings_of_their_own_must_be_equal(made: Callable, tmp_path: Path) -> None:
    """transformers' T5 has one. Two that are alike are one."""
    path = changed(made("t5_v1.1"), tmp_path / "nemo", top={"share_token_embeddings": False})
    assert check(path, tmp_path) == "T5"
    name = "enc_dec_model.decoder_embedding.word_embeddings.weight"
    path = changed(path, tmp_path / "apart", lambda held: held[name][:1].add_(1))
    with pytest.raises(CkptError, match="two copies of embedding"):
        convert(path, tmp_path / "refused", to="hf")
