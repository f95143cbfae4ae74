"""Whole models that see: their towers and projectors are read and written bit for bit, and what they compute of images is transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_core import convert, open_checkpoint
from ckpt_core.api import config_architecture, read_checkpoint
from ckpt_core.architecture import facts_of
from ckpt_core.errors import CkptError
from ckpt_core.reference import Inputs, forward, random_inputs
from ckpt_core.reference.vision import images_in, placed
from ckpt_core.testing import example, write_ir
from ckpt_core.verify.logits import arrays
from ckpt_hf.config import BY_TYPE
from ckpt_hf.model import logits
from ckpt_hf.wholes import WHOLES
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.goldens import beside
from ckpt_tests.models import weights
from ckpt_tests.vision import made

KINDS = [*(kind for kind in WHOLES if kind in BY_TYPE), "mistral3+ministral3"]
TOLERANCE = 1e-4
(GOLDEN,) = [golden for golden in beside("families", "source_hf/config.json") if str(golden) == "qwen3vl_tp1"]


def saved_model(kind: str, folder: Path) -> Path:
    """A model as transformers saves it, with ids of images that are among its tokens."""
    made(kind, WHOLES[kind.partition("+")[0]].class_name).save_pretrained(folder / "made")
    ids = (
        {"image_token_index": 150}
        if kind.startswith(("gemma3", "mistral3"))
        else {"image_token_id": 150, "video_token_id": 151}
    )
    return changed(folder / "made", folder / "hf", **ids)


@pytest.fixture(scope="module", params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(request.param, tmp_path_factory.mktemp(request.param))


def changed(source: Path, folder: Path, **config: Any) -> Path:
    """A copy of a folder with another config; a section is changed key by key."""
    folder.mkdir()
    body = json.loads((source / "config.json").read_text())
    for key, value in config.items():
        body[key] = {**body[key], **value} if isinstance(value, dict) and key.endswith("_config") else value
    (folder / "config.json").write_text(json.dumps(body))
    save_file(weights(source), folder / "model.safetensors")
    return folder


def off_by(folder: Path) -> float:
    """How far transformers is from the reference on a text with an image in each row, in units of the largest logit."""
    checkpoint = read_checkpoint(folder)
    inputs = random_inputs([checkpoint.architecture], 24)
    judged = logits(checkpoint, arrays(inputs))
    assert judged is not None and judged.logits is not None, judged
    with open_checkpoint(folder) as model:
        *_, last = forward(model, inputs)
    return float((torch.from_numpy(judged.logits) - last.values).abs().max() / last.values.abs().max())


def test_it_comes_back_and_computes_what_transformers_does(saved: Path, tmp_path: Path) -> None:
    (saved / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    convert(saved, tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "back", to="hf")
    kept = {name: value for name, value in weights(saved).items() if ".head." not in name}  # of SigLIP
    assert_same_bits(weights(tmp_path / "back"), kept)
    assert (tmp_path / "back/preprocessor_config.json").read_text() == '{"image_mean": [0.5, 0.5, 0.5]}'
    assert read_checkpoint(tmp_path / "back").architecture == read_checkpoint(saved).architecture
    assert off_by(tmp_path / "back") <= TOLERANCE


def test_the_language_model_is_that_of_the_part(saved: Path) -> None:
    """What the whole says of its language model is what `-o part=language` reads."""
    whole, part = (read_checkpoint(saved, options=options) for options in ({}, {"part": "language"}))
    assert set(part.tensors) == {name for name in whole.tensors if not name.startswith("vision.")}


def test_it_sees_what_transformers_saw() -> None:
    """The golden's image of one layer of frames: its logits, and the three coordinates of each position."""
    said = load_file(GOLDEN.folder / "expected.safetensors")
    (layers, rows, columns), tokens = said["image.grid_thw"][0].tolist(), said["image.input_ids"]
    with open_checkpoint(GOLDEN.source) as model:
        vision = model.architecture.vision
        merge, patch = vision.projector.merge, vision.patch
        # squares of patches that are merged follow one another
        cut = said["image.pixel_values"].reshape(
            layers, rows // merge, columns // merge, merge, merge, vision.channels, vision.frames, patch, patch
        )
        pixels = cut.permute(5, 0, 6, 1, 3, 7, 2, 4, 8).reshape(
            1, vision.channels, layers * vision.frames, rows * patch, columns * patch
        )
        *_, last = forward(model, Inputs(tokens=tokens, pixels=pixels))
    assert float((last.values - said["image.logits"]).abs().max()) <= TOLERANCE
    size = layers, rows // merge, columns // merge
    places = placed(images_in(vision, tokens, size[0] * size[1] * size[2]), *size)
    assert torch.equal(places, said["image.position_ids"])


def test_layers_that_predict_further_tokens_are_kept_or_left(tmp_path: Path) -> None:
    """Of Qwen 3.5, whose section of the language model counts them."""
    tower = {path: value for path, value in facts_of(example("seeing")).items() if path.startswith("vision.")}
    facts = {path: value for path, value in tower.items() if not path.startswith("vision.tap")}
    facts |= {"attention.rotary.sections": (2, 2, 1), "attention.rotary.interleaved": True, "predictors.count": 1}
    for norm in ("embed_norm", "hidden_norm", "out_norm"):
        facts |= {
            f"predictors.{norm}.{key}": value for key, value in (("kind", "rms"), ("eps", 1e-6), ("zero_centred", True))
        }
    write_ir(tmp_path / "ir", example("delta", **facts))
    convert(tmp_path / "ir", tmp_path / "hf", to="hf")
    assert "mtp.fc.weight" in weights(tmp_path / "hf")
    with open_checkpoint(tmp_path / "ir") as before, open_checkpoint(tmp_path / "hf") as after:
        assert before.architecture == after.architecture
        inputs = random_inputs([before.architecture], 12)
        assert any(step.name == "predictors.0.logits" for step in forward(before, inputs))
    kept = read_checkpoint(tmp_path / "hf", options={"predictors": "drop"})
    assert kept.architecture.decoder.predictors is None and kept.architecture.vision is not None


# --- configs of other versions -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen2_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model("qwen2_5_vl", tmp_path_factory.mktemp("qwen2_5"))


def test_a_config_of_the_hub_has_the_keys_of_its_language_model_beside_the_others(
    qwen2_5: Path, tmp_path: Path
) -> None:
    body = json.loads((qwen2_5 / "config.json").read_text())
    text = body.pop("text_config")
    rotary = text.pop("rope_parameters")
    text |= {
        "rope_theta": rotary["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rotary["mrope_section"]},
    }
    vision = {key: value for key, value in body["vision_config"].items() if key != "rope_parameters"}
    vision["in_chans"] = vision.pop("in_channels")
    hub = changed(qwen2_5, tmp_path / "hub", **{key: value for key, value in text.items() if key != "model_type"})
    flat = json.loads((hub / "config.json").read_text())
    del flat["text_config"]
    (hub / "config.json").write_text(json.dumps({**flat, "vision_config": vision, "vision_token_id": 154}))
    assert read_checkpoint(hub).architecture == read_checkpoint(qwen2_5).architecture
    held = changed(qwen2_5, tmp_path / "held")
    names = {
        name: f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else f"model.{name}"
        for name in weights(qwen2_5)
    } | {"lm_head.weight": "lm_head.weight"}
    save_file({names[name]: value for name, value in weights(qwen2_5).items()}, held / "model.safetensors")
    convert(held, tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "back", to="hf")
    assert_same_bits(weights(tmp_path / "back"), weights(held))


def test_squares_are_as_many_patches_as_there_is_place_for(qwen2_5: Path, tmp_path: Path) -> None:
    folder = changed(qwen2_5, tmp_path / "hf", vision_config={"window_size": 60, "fullatt_block_indexes": []})
    vision = config_architecture(str(folder / "config.json")).vision
    assert vision.stack.layers[0].attention.chunk == 8  # 60 pixels are 8 patches of 7, of which two make one
    whole = changed(qwen2_5, tmp_path / "whole", vision_config={"fullatt_block_indexes": [0]})
    assert config_architecture(str(whole / "config.json")).vision.stack.layers[0].attention.chunk is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"vision_config": {"out_hidden_size": 40}}, "'out_hidden_size' is not the width of the language model"),
        ({"vision_config": {"rope_parameters": {"rope_type": "default"}}}, "turns by row and column alone"),
        ({"vision_config": {"window_sizes": 3}}, "unknown config key 'vision_config.window_sizes'"),
        ({"text_config": {"rope_parameters": {"rope_theta": 1e6, "mrope_section": [2, 2, 1]}}}, "not three parts of 6"),
        ({"text_config": {"rope_parameters": {"rope_theta": 1e6, "mrope_section": "222"}}}, "mrope_section is not one list"),
        ({"image_token_id": -1}, "'image_token_id' is not a whole number"),
        ({"hidden_size": 40}, "other things beside text_config"),
    ],
)  # fmt: skip
def test_what_its_class_does_not_compute_is_refused(
    config: dict[str, Any], words: str, qwen2_5: Path, tmp_path: Path
) -> None:
    folder = changed(qwen2_5, tmp_path / "hf", **config)
    with pytest.raises(CkptError, match=words.replace("[", r"\[")):
        convert(folder, tmp_path / "out", to="ir")
    assert_nothing_at(tmp_path / "out")


@pytest.mark.parametrize("options", [{}, {"part": "language"}])
def test_a_cap_that_the_class_never_applies_is_refused(options: dict[str, str], tmp_path: Path) -> None:
    """Of Gemma 3's logits: its language model by itself would."""
    write_ir(tmp_path / "ir", example("seeing-whole"))
    convert(tmp_path / "ir", tmp_path / "hf", to="hf")
    folder = changed(tmp_path / "hf", tmp_path / "capped", text_config={"final_logit_softcapping": 30.0})
    with pytest.raises(CkptError, match="final_logit_softcapping"):
        convert(folder, tmp_path / "out", to="ir", options=options)
    assert_nothing_at(tmp_path / "out")


# --- other formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["megatron", "nemo", "nemo2", "nanotron", "nxdt", "torchtitan"])
def test_formats_without_towers_name_the_part(format: str, tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example("seeing"))
    with pytest.raises(CkptError, match="-o part=language") as refusal:
        convert(tmp_path / "ir", tmp_path / "out", to=format)
    assert "vision.hidden = 80" in str(refusal.value)
    assert_nothing_at(tmp_path / "out")


@pytest.mark.parametrize("format", ["deepspeed", "fsdp"])
def test_formats_of_transformers_models_hold_it(format: str, tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example("seeing"))
    convert(tmp_path / "ir", tmp_path / "run", to=format)
    convert(tmp_path / "run", tmp_path / "back", to="ir")
    with open_checkpoint(tmp_path / "ir") as before, open_checkpoint(tmp_path / "back") as after:
        assert before.architecture == after.architecture
        assert all(before[name].raw().tobytes() == after[name].raw().tobytes() for name in before)


def test_a_class_that_sees_holds_no_model_that_does_not(tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example("llama"))
    with pytest.raises(CkptError, match="it sees, and this model has no vision tower"):
        convert(tmp_path / "ir", tmp_path / "out", to="hf", options={"hf_class": WHOLES["qwen3_vl"].class_name})
    write_ir(tmp_path / "whole", example("seeing"))
    with pytest.raises(CkptError, match="Qwen3ForCausalLM has no vision tower"):
        convert(tmp_path / "whole", tmp_path / "out", to="hf", options={"hf_class": "Qwen3ForCausalLM"})
