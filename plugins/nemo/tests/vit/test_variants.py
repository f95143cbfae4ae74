"""Every setting of NeMo's vision transformer: what it computes, what transformers can hold of it, and every layout of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from transformers import ViTForImageClassification

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.reference import Inputs, forward
from ckpt_tests import nemo_vit
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.nemo import tensors
from ckpt_tests.nemo_vit import LAYER

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """Keys that differ from the usual config; `refused` are words of the error where no class of transformers holds the model."""

    keys: dict = field(default_factory=dict)
    patches: str = "linear_encoder"
    refused: tuple[str, ...] = ()

    @property
    def config(self) -> dict:
        return nemo_vit.config(**self.keys)


CASES = {
    "plain": Case(),
    "convolution": Case(patches="conv1"),
    "fused gelu": Case({"bias_activation_fusion": True}),
    "openai gelu": Case({"openai_gelu": True}),
    "zero-centred norms": Case({"normalization": "layernorm1p"}),
    "bare positions": Case({"position_embedding_type": "learned_parameters"}),
    "blocks of q, k, v": Case({"megatron_legacy": True}),
    "layer scale": Case({"layerscale": True}, refused=("layer_scale", "layerscale: true", "fold_layer_scale")),
    "norm before the layers": Case(
        {"preprocess_layernorm": True}, refused=("input_norm", "preprocess_layernorm: true")
    ),
    "three class tokens": Case({"class_token_length": 3}, refused=("patches.class_tokens", "class_token_length: 3")),
    "eight class tokens": Case(
        {"class_token_length": ..., "img_w": 8}, refused=("class_token_length: 8 (the default",)
    ),
    "dense and tanh": Case({"finetune": False}, refused=("classifier.hidden", "finetune: false", "headless")),
    "wide heads": Case({"kv_channels": 10}, refused=("attention.head_dim",)),
    "gate beside": Case({"activation": "fast-swiglu"}, refused=("mlp.gated",)),
    "gate apart": Case({"activation": "swiglu"}, refused=("mlp.gated",)),
}
# what changes no name and no layout has been computed above
LAYOUTS = [name for name in CASES if "gelu" not in name and "class tokens" not in name]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every case on two ranks."""
    folder = tmp_path_factory.mktemp("nemo")
    return {
        name: nemo_vit.save(
            folder / name.replace(" ", "_"), nemo_vit.state(case.config, case.patches), case.config, tp=2
        )
        for name, case in CASES.items()
    }


def expected(case: Case) -> torch.Tensor:
    return nemo_vit.logits(nemo_vit.state(case.config, case.patches), case.config, nemo_vit.pixels(case.config))


def off(path: Path, case: Case) -> float:
    """How far the reference on what was read is from what NeMo computes."""
    with open_checkpoint(path) as model:
        *_, last = forward(model, Inputs(pixels=nemo_vit.pixels(case.config)))
    return (last.values - expected(case)).abs().max().item()


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_computes_what_nemo_does(name: str, saved: dict[str, Path]) -> None:
    assert off(saved[name], CASES[name]) <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_transformers_computes_it_or_it_is_refused_by_name(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    case = CASES[name]
    if case.refused:
        with pytest.raises(CkptError) as refusal:
            convert(saved[name], tmp_path / "hf", to="hf")
        for words in case.refused:
            assert words in str(refusal.value)
        return
    convert(saved[name], tmp_path / "hf", to="hf")
    model = ViTForImageClassification.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        found = model(pixel_values=nemo_vit.pixels(case.config)).logits
    assert (found - expected(case)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_number_of_ranks_is_written_as_nemo_shares_it(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    case = CASES[name]
    whole = nemo_vit.state(case.config, case.patches)
    for tp in (1, 4) if name == "plain" else (2,):
        convert(saved[name], tmp_path / f"tp{tp}", to="nemo", tp=tp, options={"container": "folder"})
        judged = nemo_vit.save(tmp_path / f"judge{tp}", whole, case.config, tp=tp)
        assert_same_bits(tensors(tmp_path / f"tp{tp}"), tensors(judged))


def test_stages_number_their_layers_from_zero(saved: dict[str, Path], tmp_path: Path) -> None:
    convert(saved["plain"], tmp_path / "run", to="nemo", tp=2, pp=2, options={"container": "ckpt"})
    found = tensors(tmp_path / "run")
    heads = {key for key in found if ".head." in key}
    assert heads and all("pp_rank_001" in key for key in heads)
    assert {key.partition(f"{LAYER}.")[2][0] for key in found if LAYER in key} == {"0"}
    assert fingerprint(tmp_path / "run") == fingerprint(saved["plain"])
    with pytest.raises(CkptError, match="pp=3"):
        convert(saved["plain"], tmp_path / "three", to="nemo", pp=3)


def test_masters_of_half_precision_are_read(tmp_path: Path) -> None:
    """A Lightning file of megatron_amp_O2: weights in bf16, and what they were rounded from, in two groups of the optimizer."""
    config = nemo_vit.config(megatron_amp_O2=True, precision="bf16", class_token_length=3)
    exact = nemo_vit.state(config)
    decayed = [tensor for name, tensor in exact.items() if tensor.dim() > 1]
    others = [tensor for name, tensor in exact.items() if tensor.dim() == 1]
    content = {
        "state_dict": {name.replace("model.", "model.module.", 1): tensor.bfloat16() for name, tensor in exact.items()},
        "optimizer_states": [
            {"optimizer": {"state": {}, "param_groups": []}, "fp32_from_fp16_params": [decayed, others]}
        ],
        "hyper_parameters": {"cfg": config},
        "pytorch-lightning_version": "2.0.7",
    }
    torch.save(content, tmp_path / "step=1.ckpt")
    with open_checkpoint(tmp_path / "step=1.ckpt") as model:
        assert model.checkpoint.provenance.masters and {tensor.dtype.name for tensor in model.values()} == {"bf16"}
        assert any(loss.subject.startswith("fp32 master weights") for loss in model.checkpoint.all_losses)
    convert(tmp_path / "step=1.ckpt", tmp_path / "nemo", to="nemo", weights="master", options={"container": "folder"})
    assert_same_bits(tensors(tmp_path / "nemo"), exact)


def test_a_bias_of_patches_and_a_convolution(saved: dict[str, Path], tmp_path: Path) -> None:
    """NeMo 2 has no place for the bias but the positions; what it lacks is a bias of zeros for NeMo 1."""
    convert(saved["plain"], tmp_path / "two", to="nemo", options={"container": "folder", "patch_layer": "conv1"})
    before, after = nemo_vit.state(CASES["plain"].config), tensors(tmp_path / "two")
    table, bias = "model.backbone.position_embeddings.weight", before["model.backbone.linear_encoder.bias"]
    assert torch.equal(after[table][:1], before[table][:1]) and torch.equal(after[table][1:], before[table][1:] + bias)
    assert "model.backbone.conv1.bias" not in after
    assert off(tmp_path / "two", CASES["plain"]) <= TOLERANCE
    receipt = json.loads((tmp_path / "two" / "ckpt-receipt.json").read_text())
    assert receipt["target"]["decisions"]["rewrites"] == ["patch bias added to the positions of the patches"]
    convert(
        saved["convolution"],
        tmp_path / "one",
        to="nemo",
        options={"container": "folder", "patch_layer": "linear_encoder"},
    )
    assert not tensors(tmp_path / "one")["model.backbone.linear_encoder.bias"].any()
    assert yaml.safe_load((tmp_path / "one" / "model_config.yaml").read_text())["nemo_version"] == "1.23.0"
    assert off(tmp_path / "one", CASES["convolution"]) <= TOLERANCE
    convert(
        tmp_path / "one", tmp_path / "again", to="nemo", tp=2, options={"container": "folder", "patch_layer": "conv1"}
    )
    assert_same_bits(tensors(tmp_path / "again"), tensors(saved["convolution"]))


def test_layer_scale_is_folded_where_that_is_asked_for(saved: dict[str, Path], tmp_path: Path) -> None:
    convert(saved["layer scale"], tmp_path / "hf", to="hf", options={"fold_layer_scale": "true"})
    assert off(tmp_path / "hf", CASES["layer scale"]) <= TOLERANCE
    assert "layer scale folded" in (tmp_path / "hf" / "ckpt-receipt.json").read_text()


def test_what_no_class_holds_still_becomes_ir_and_comes_back(saved: dict[str, Path], tmp_path: Path) -> None:
    name = "norm before the layers"
    convert(saved[name], tmp_path / "ir", to="ir")
    assert off(tmp_path / "ir", CASES[name]) <= TOLERANCE
    convert(tmp_path / "ir", tmp_path / "back", to="nemo", tp=2, options={"container": "folder"})
    assert_same_bits(tensors(tmp_path / "back"), tensors(saved[name]))


@pytest.mark.parametrize(("option", "value"), [("names", "mcore"), ("layout", "native"), ("vpp", "2")])
def test_an_option_of_another_kind_of_model_is_refused(
    option: str, value: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CkptError, match=option):
        convert(saved["plain"], tmp_path / "a.nemo", to="nemo", options={option: value})


@pytest.mark.parametrize(("tokens", "width"), [(1, 24), (9, 32)])
def test_what_nemo_itself_would_not_load_is_not_written(tokens: int, width: int, tmp_path: Path) -> None:
    """Its hook takes a table of a square number of rows for one without class tokens, and any other number of patches for an error."""
    config = nemo_vit.config(class_token_length=tokens, img_w=width)
    path = nemo_vit.save(tmp_path / "nemo", nemo_vit.state(config), config)
    with pytest.raises(CkptError, match="square number"):
        convert(path, tmp_path / "back", to="nemo", options={"container": "folder"})
