"""LLaDA and Llama-Nemotron in Bridge, which has a class for each: the same model comes back, and what the class lacks is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_hf.wholes import WHOLES
from ckpt_tests import distributed
from ckpt_tests.bridge import STEP, changed, model
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.goldens import Golden, beside
from ckpt_tests.models import weights
from ckpt_tests.of_authors import DECILM_LAYERS, MADE
from ckpt_tests.vision import made

CLASSES = {"llada": "LLaDA15ModelProvider", "nemotron-nas": "LlamaNemotronHeterogeneousProvider"}
HYBRID = [golden for golden in beside("families", "source_hf/config.json") if str(golden) == "exaone4_hybrid"]


@pytest.mark.parametrize("kind", MADE)
def test_it_is_the_model_that_was_written(kind: str, tmp_path: Path) -> None:
    MADE[kind](tmp_path / "hf")
    with pytest.raises(CkptError):
        convert(tmp_path / "hf", tmp_path / "lm", to="megatron")
    assert_nothing_at(tmp_path / "lm")
    convert(tmp_path / "hf", tmp_path / "run", to="megatron-bridge", tp=2)
    said = model(tmp_path / "run")
    assert said["_target_"].rpartition(".")[2] == CLASSES[kind]
    (tmp_path / "run/ckpt-receipt.json").unlink()
    with open_checkpoint(tmp_path / "hf") as one, open_checkpoint(tmp_path / "run") as two:
        assert one.architecture.decoder == two.architecture.decoder
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")
    # a private name, which Bridge refuses to load
    assert ("transformer_layer_spec" in said) == (kind == "nemotron-nas")


def test_the_layers_are_said_as_the_model_s_own_config_says_them(tmp_path: Path) -> None:
    MADE["nemotron-nas"](tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "run", to="megatron-bridge")
    said = model(tmp_path / "run")
    blocks = json.loads(said["heterogeneous_layers_config_encoded_json"])["block_configs"]
    assert [one["ffn"]["ffn_hidden_size"] for one in blocks] == [width for _, width in DECILM_LAYERS]
    assert [one["attention"]["no_op"] for one in blocks] == [groups is None for groups, _ in DECILM_LAYERS]
    stored = distributed.tensors(tmp_path / "run" / STEP)
    assert "decoder.layers.0.self_attention.linear_qkv.weight" in stored
    assert not any(name.startswith("decoder.layers.1.self_attention.") for name in stored)
    # the config of the model itself, as Bridge takes it, says widths by their quotients
    theirs = json.loads((tmp_path / "hf/config.json").read_text())
    run = changed(tmp_path / "run", heterogeneous_layers_config_encoded_json=json.dumps(theirs))
    assert fingerprint(run) == fingerprint(tmp_path / "hf")
    blocks[0]["attention"]["replace_with_linear"] = True
    convert(tmp_path / "hf", tmp_path / "other", to="megatron-bridge")
    text = json.dumps({"block_configs": blocks})
    run = changed(tmp_path / "other", heterogeneous_layers_config_encoded_json=text)
    with pytest.raises(CkptError, match="a matrix in place of a block"):
        fingerprint(run)


@pytest.mark.parametrize("golden", HYBRID, ids=str)
def test_an_exaone_4_whose_layers_slide_or_do_not_rotate(golden: Golden, tmp_path: Path) -> None:
    convert(golden.source, tmp_path / "run", to="megatron-bridge", tp=2)
    said = model(tmp_path / "run")
    assert (said["window_attn_skip_freq"], said["no_rope_freq"]) == ([1, 1, 1, 0], [0, 0, 0, 1])
    (tmp_path / "run/ckpt-receipt.json").unlink()
    assert fingerprint(tmp_path / "run") == fingerprint(golden.source)


def test_an_exaone_4_5_has_a_tower_of_megatron_s_layers(tmp_path: Path) -> None:
    made("exaone4_5", WHOLES["exaone4_5"].class_name).save_pretrained(tmp_path / "hf")
    receipt = convert(tmp_path / "hf", tmp_path / "run", to="megatron-bridge")
    assert "the epsilon of norms in the tower" in {loss["subject"] for loss in receipt.losses}
    said = model(tmp_path / "run")
    assert (said["_target_"].rpartition(".")[2], said["vision_config"]["num_key_value_heads"]) == (
        "Exaone45ModelProvider",
        1,
    )
    (tmp_path / "run/ckpt-receipt.json").unlink()
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")
    with open_checkpoint(tmp_path / "hf") as one, open_checkpoint(tmp_path / "run") as two:
        assert one.architecture.vision == two.architecture.vision
        assert one.architecture.decoder == two.architecture.decoder
    with pytest.raises(CkptError, match="1 groups of heads of the tower"):
        convert(tmp_path / "hf", tmp_path / "two", to="megatron-bridge", tp=2)
    path = tmp_path / "hf/config.json"
    config = json.loads(path.read_text())
    config["vision_config"]["window_size"] = 56
    path.write_text(json.dumps(config))
    with pytest.raises(CkptError, match=r"vision\.attention\.chunk"):
        convert(tmp_path / "hf", tmp_path / "other", to="megatron-bridge")
    assert_nothing_at(tmp_path / "other")


@pytest.mark.parametrize("kind", ["mistral3", "mistral3+ministral3"])
def test_a_mistral_3_has_what_its_tower_and_its_queries_need_in_the_config_that_it_holds(
    kind: str, tmp_path: Path
) -> None:
    made(kind, WHOLES["mistral3"].class_name).save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "run", to="megatron-bridge", tp=2)
    said = model(tmp_path / "run")
    rotary = said["hf_config"]["text_config"]["rope_parameters"]
    grows = "+" in kind
    assert said["_target_"].endswith(".Ministral3ModelProvider")
    assert said["position_embedding_type"] == ("yarn" if grows else "rope")
    # without it no query grows, and the class asks for it nevertheless
    assert (rotary["llama_4_scaling_beta"], rotary["original_max_position_embeddings"]) == (
        (0.1, 16) if grows else (0.0, 1)
    )
    (tmp_path / "run/ckpt-receipt.json").unlink()
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")
    with open_checkpoint(tmp_path / "hf") as one, open_checkpoint(tmp_path / "run") as two:
        assert one.architecture.vision == two.architecture.vision
        layers = [each.architecture.decoder.layers[0].attention.temperature for each in (one, two)]
        assert layers[0] == layers[1] and (layers[0] is not None) == grows
    convert(tmp_path / "run", tmp_path / "back", to="hf")
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "hf"))


def test_a_glm_4_5v_has_layers_with_experts_and_without(tmp_path: Path) -> None:
    made("glm4v_moe", WHOLES["glm4v_moe"].class_name).save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "run", to="megatron-bridge", tp=2)
    said = model(tmp_path / "run")
    assert said["_target_"].endswith(".GLM45VModelProvider")
    # a layer that predicts a further token is there where no field says that it is not
    assert (said["moe_layer_freq"], said["mtp_num_layers"], said["mrope_section"]) == ([0, 1], 0, [2, 1, 1])
    (tmp_path / "run/ckpt-receipt.json").unlink()
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")
    convert(tmp_path / "run", tmp_path / "back", to="hf")
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "hf"))
