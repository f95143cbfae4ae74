"""ViTForImageClassification and ViTModel, judged by transformers itself, and what travels with them to NeMo and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, ViTConfig, ViTForImageClassification, ViTModel

from ckpt_core import convert, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.reference import Inputs, forward
from ckpt_core.rewrite import Rewritable, resized_images
from ckpt_core.tensors.source import SourceFiles
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.models import weights
from ckpt_tests.nemo import config_of, members
from ckpt_tests.program import ckpt

TOLERANCE = 1e-5
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "image_size": [8, 32], "patch_size": 4, "num_labels": 5,
}  # fmt: skip
PROCESSOR = {
    "do_resize": True,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size": {"height": 8, "width": 32},
}
LABELS = ["tench", "goldfish", "shark", "ray", "cock"]

MODELS: dict[str, tuple[Callable[[ViTConfig], nn.Module], dict]] = {
    "classifier": (
        ViTForImageClassification,
        {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}},
    ),
    "tanh": (ViTForImageClassification, {"hidden_act": "gelu_new", "image_size": 16}),
    "no qkv bias": (ViTForImageClassification, {"qkv_bias": False}),
    "pooler": (ViTModel, {}),
    "no pooler": (lambda config: ViTModel(config, add_pooling_layer=False), {}),
}


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every model, as transformers saves it."""
    folder = tmp_path_factory.mktemp("hf")
    for name, (build, changes) in MODELS.items():
        torch.manual_seed(len(name))
        model = build(ViTConfig(**{**SIZES, **changes}))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder / name)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return {name: folder / name for name in MODELS}


def pixels(folder: Path) -> torch.Tensor:
    size = json.loads((folder / "config.json").read_text())["image_size"]
    size = size if isinstance(size, list) else [size, size]
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))


def computed(folder: Path, images: torch.Tensor, **arguments: object) -> torch.Tensor:
    """What transformers computes: logits, or the output of a bare model."""
    model = AutoModel if "ViTModel" in (folder / "config.json").read_text() else ViTForImageClassification
    with torch.no_grad():
        found = model.from_pretrained(folder).eval()(pixel_values=images, **arguments)
    pooled = (
        found.pooler_output if "pooler_output" in found and any("pooler" in name for name in weights(folder)) else None
    )
    return found.logits if "logits" in found else found.last_hidden_state if pooled is None else pooled


def reference(path: Path, images: torch.Tensor) -> torch.Tensor:
    with open_checkpoint(path) as model:
        *_, last = forward(model, Inputs(pixels=images))
    return last.values


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def losses(folder: Path) -> str:
    receipt = folder / "ckpt-receipt.json" if folder.is_dir() else folder.with_name(f"{folder.name}.ckpt-receipt.json")
    return json.dumps(json.loads(receipt.read_text())["losses"])


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_computes_what_transformers_does(name: str, hf: dict[str, Path]) -> None:
    images = pixels(hf[name])
    assert (reference(hf[name], images) - computed(hf[name], images)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_through_ir_a_model_is_the_same(name: str, hf: dict[str, Path], tmp_path: Path) -> None:
    convert(hf[name], tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "hf", to="hf")
    assert_same_bits(weights(tmp_path / "hf"), weights(hf[name]))
    written = config(tmp_path / "hf")
    said = {key for key in config(hf[name]) if key in written} - {"hidden_act"}  # gelu_new has several names
    assert {key: written[key] for key in said} == {key: config(hf[name])[key] for key in said}
    assert ("no pooler" in losses(tmp_path / "hf")) == (name == "no pooler")


@pytest.mark.parametrize(
    ("name", "options", "tp"),
    [("classifier", {}, 2), ("tanh", {"container": "ckpt"}, 4), ("no qkv bias", {"container": "folder"}, 1)],
)
def test_to_nemo_and_back_is_bit_identical(
    name: str, options: dict, tp: int, hf: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / ("a.nemo" if not options else "nemo")
    convert(hf[name], path, to="nemo", tp=tp, options=options)
    convert(path, tmp_path / "hf", to="hf")
    found, images = weights(tmp_path / "hf"), pixels(hf[name])
    original = weights(hf[name])
    added = {key for key in found if key not in original}
    assert_same_bits({key: tensor for key, tensor in found.items() if key not in added}, original)
    assert bool(added) == (name == "no qkv bias") and not any(found[key].any() for key in added)
    # gelu_new and gelu_pytorch_tanh are one function, rounded by two kernels
    assert (computed(tmp_path / "hf", images) - computed(hf[name], images)).abs().max() <= TOLERANCE
    assert (tmp_path / "hf" / "preprocessor_config.json").read_bytes() == (
        hf[name] / "preprocessor_config.json"
    ).read_bytes()
    assert config(tmp_path / "hf")["id2label"] == config(hf[name])["id2label"]


def test_what_nemo_does_to_images_itself_is_told(hf: dict[str, Path], tmp_path: Path) -> None:
    convert(hf["classifier"], tmp_path / "a.nemo", to="nemo")
    assert "preprocessor_config.json" in members(tmp_path / "a.nemo")
    assert "image_mean = [0.5, 0.5, 0.5]" in losses(tmp_path / "a.nemo")
    assert config_of(tmp_path / "a.nemo")["labels"] == LABELS


def test_a_model_of_nemo_gets_the_processor_that_nemo_is(hf: dict[str, Path], tmp_path: Path) -> None:
    convert(hf["classifier"], tmp_path / "nemo", to="nemo", options={"container": "folder"})
    (tmp_path / "nemo" / "preprocessor_config.json").unlink()
    convert(tmp_path / "nemo", tmp_path / "hf", to="hf")
    made = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert made["image_mean"] == [0.485, 0.456, 0.406] and made["size"] == {"height": 8, "width": 32}
    convert(tmp_path / "hf", tmp_path / "back.nemo", to="nemo")
    assert "image_mean" not in losses(tmp_path / "back.nemo")


# --- images of another size ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["24", "8", "12x28"])
def test_positions_are_interpolated_as_transformers_does_it(size: str, hf: dict[str, Path], tmp_path: Path) -> None:
    convert(hf["tanh"], tmp_path / "hf", to="hf", options={"image_size": size})
    images = pixels(tmp_path / "hf")
    judged = computed(hf["tanh"], images, interpolate_pos_encoding=True)
    assert (computed(tmp_path / "hf", images) - judged).abs().max() <= TOLERANCE
    height, width = images.shape[2:]
    assert json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())["size"] == {
        "height": height,
        "width": width,
    }
    decisions = json.loads((tmp_path / "hf" / "ckpt-receipt.json").read_text())["target"]["decisions"]
    assert decisions["rewrites"] == [f"positions interpolated from images of 16 x 16 to {height} x {width} (bicubic)"]


def test_a_grid_that_is_not_square_is_interpolated_along_each_side(hf: dict[str, Path], tmp_path: Path) -> None:
    """transformers takes every grid for a square one; torch does not."""
    convert(hf["classifier"], tmp_path / "hf", to="hf", options={"image_size": "12x40"})
    name = "vit.embeddings.position_embeddings"
    before, after = weights(hf["classifier"])[name], weights(tmp_path / "hf")[name]
    grid = before[0, 1:].T.reshape(1, 24, 2, 8)
    expected = nn.functional.interpolate(grid, size=(3, 10), mode="bicubic").flatten(2)[0].T
    assert torch.equal(after[0, 0], before[0, 0])
    assert (after[0, 1:] - expected).abs().max() <= 1e-6


def test_nemo_gets_positions_of_another_size_too_and_bf16_is_not_rounded_again(
    hf: dict[str, Path], tmp_path: Path
) -> None:
    convert(hf["tanh"], tmp_path / "bf16", to="hf", dtype="bf16")
    convert(tmp_path / "bf16", tmp_path / "a.nemo", to="nemo", options={"image_size": "24", "patch_layer": "conv1"})
    images = torch.randn(2, 3, 24, 24)
    judged = computed(tmp_path / "bf16", images, interpolate_pos_encoding=True)
    with open_checkpoint(tmp_path / "a.nemo") as found:
        assert {tensor.dtype.name for name, tensor in found.items()} == {"bf16", "fp32"}
        assert found["positions.weight"].dtype.name == "fp32"
    assert (
        reference(tmp_path / "a.nemo", images) - judged.float()
    ).abs().max() <= 0.05  # transformers computes in bf16


@pytest.mark.parametrize(
    ("size", "why"),
    [
        ("30", "multiples of 4"),
        ("0", "not the size of an image"),
        ("99996", "too many patches"),
        ("8x", "not the size of an image"),
    ],
)
def test_a_size_that_cannot_be_is_refused(size: str, why: str, hf: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=why):
        convert(hf["tanh"], tmp_path / "hf", to="hf", options={"image_size": size})


# --- heads -----------------------------------------------------------------------------------------------------------------


def test_without_its_classes_a_model_is_a_bare_one(hf: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=r"classifier\.classes"):
        convert(hf["classifier"], tmp_path / "hf", to="hf", options={"hf_class": "ViTModel"})
    convert(hf["classifier"], tmp_path / "hf", to="hf", options={"headless": "true"})
    assert config(tmp_path / "hf")["architectures"] == ["ViTModel"]
    assert "classifier.weight" in losses(tmp_path / "hf")
    original = weights(hf["classifier"])
    assert_same_bits(
        weights(tmp_path / "hf"),
        {name.removeprefix("vit."): tensor for name, tensor in original.items() if name.startswith("vit.")},
    )
    with pytest.raises(CkptError, match="classes"):
        convert(tmp_path / "hf", tmp_path / "a.nemo", to="nemo")


def test_the_head_of_nemo_becomes_a_pooler_and_what_follows_it_is_left_out(hf: dict[str, Path], tmp_path: Path) -> None:
    from ckpt_tests import nemo_vit

    said = nemo_vit.config(finetune=False)
    held = nemo_vit.state(said)
    path = nemo_vit.save(tmp_path / "nemo", held, said, tp=2)
    convert(path, tmp_path / "hf", to="hf", options={"headless": "true"})
    images = nemo_vit.pixels(said)
    last = nn.functional.linear(
        computed(tmp_path / "hf", images), held["model.head.dense_out.weight"], held["model.head.dense_out.bias"]
    )
    assert (last - nemo_vit.logits(held, said, images)).abs().max() <= TOLERANCE


# --- strictness ------------------------------------------------------------------------------------------------------------


def damaged(source: Path, folder: Path, change: Callable[[dict, dict], object]) -> Path:
    folder.mkdir()
    tensors, settings = load_file(source / "model.safetensors"), config(source)
    change(tensors, settings)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


DAMAGES: dict[str, tuple[Callable[[dict, dict], object], str]] = {
    "positions of another size": (
        lambda tensors, config: config.update(image_size=16, patch_size=2),
        "position_embeddings",
    ),
    "patches that are not square": (lambda tensors, config: config.update(patch_size=[4, 2]), "patch_size"),
    "images of a bad size": (lambda tensors, config: config.update(image_size="big"), "image_size"),
    "an image without patches": (lambda tensors, config: config.update(image_size=3), "no patch"),
    "labels with a gap": (lambda tensors, config: config["id2label"].pop("2"), "id2label"),
    "two numbers of labels": (lambda tensors, config: config.update(num_labels=7), "num_labels"),
    "no labels": (lambda tensors, config: [config.pop("id2label"), config.pop("label2id")], "classifier.weight"),
    "another activation": (lambda tensors, config: config.update(hidden_act="mish"), "hidden_act"),
    "an unknown key": (lambda tensors, config: config.update(num_register_tokens=4), "num_register_tokens"),
    "no query bias": (
        lambda tensors, config: tensors.pop("vit.encoder.layer.1.attention.attention.query.bias"),
        "layer.1.attention.attention.query.bias",
    ),
    "one more tensor": (
        lambda tensors, config: tensors.update({"vit.embeddings.register_tokens": torch.zeros(1, 4, 24)}),
        "register_tokens",
    ),
    "the tensors of a bare model": (
        lambda tensors, config: config.update(architectures=["ViTModel"]),
        "classifier.weight",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_as_it_must_be_is_refused_by_name(damage: str, hf: dict[str, Path], tmp_path: Path) -> None:
    change, named = DAMAGES[damage]
    with pytest.raises(CkptError) as refusal:
        open_checkpoint(damaged(hf["classifier"], tmp_path / "hf", change))
    assert named in str(refusal.value)


@pytest.mark.parametrize(("key", "value"), [("pooler_act", "relu"), ("pooler_output_size", 12)])
def test_another_pooler_is_refused(key: str, value: object, hf: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=key):
        open_checkpoint(damaged(hf["pooler"], tmp_path / "hf", lambda tensors, config: config.update({key: value})))


def test_names_in_memory_are_read_and_a_mask_token_is_told(hf: dict[str, Path], tmp_path: Path) -> None:
    model = ViTForImageClassification.from_pretrained(hf["classifier"])
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()} | {
        "vit.embeddings.mask_token": torch.zeros(1, 1, 24)
    }
    bare = damaged(
        hf["classifier"], tmp_path / "bare", lambda tensors, config: [tensors.clear(), tensors.update(state)]
    )
    convert(bare, tmp_path / "hf", to="hf")
    assert_same_bits(weights(tmp_path / "hf"), weights(hf["classifier"]))
    assert "mask_token" in losses(tmp_path / "hf")


def test_verify_runs_both_sides_on_images(hf: dict[str, Path], tmp_path: Path) -> None:
    convert(hf["pooler"], tmp_path / "ir", to="ir")
    code, said = ckpt("verify", hf["pooler"], tmp_path / "ir", "--logits")
    assert code == 0 and "judge" in said, said


def test_a_part_of_interpolated_positions_is_that_part_of_the_whole(hf: dict[str, Path]) -> None:
    with open_checkpoint(hf["classifier"]) as found:
        held = found.checkpoint
        table = resized_images(Rewritable(held.architecture, held.tensors), "20x48").tensors["positions.weight"]
        source = SourceFiles(held.files)
        whole = source.read(table, ((0, 61), (0, 24)))
        for rows, columns in (((0, 1), (0, 24)), ((7, 31), (3, 20)), ((60, 61), (23, 24)), ((5, 5), (0, 24))):
            part = source.read(table, (rows, columns))
            assert (part == whole[slice(*rows), slice(*columns)]).all()
        source.close()
