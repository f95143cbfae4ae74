"""Configs as they are published are read, key by key; a key that says something at another value is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from ckpt_core import convert
from ckpt_core.api import config_architecture, read_checkpoint
from ckpt_core.errors import CkptError
from ckpt_hf.classes import family_of
from ckpt_hf.common import Family
from ckpt_hf.config import FAMILIES
from ckpt_tests.families import LING
from ckpt_tests.of_authors import MADE as OF_AUTHORS
from ckpt_tests.published import COMMON_2, COMMON_4, COMMON_5, PUBLISHED, SENSITIVE


def write(folder: Path, config: dict[str, object]) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


_CLASSES = {family_of(config, model).class_name for model, config in PUBLISHED.items()}
# Sizes without which the defaults of a class are not a model: those of GLM-4.5 and dots.llm1.
_SIZES = {
    "glm4_moe": {"head_dim": 128},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "granitemoehybrid": {"layer_types": [*["mamba"] * 31, "attention"]},
    # the towers and the language models of the defaults do not fit together
    "qwen2_vl": {"vision_config": {"hidden_size": 8192}},
    "qwen2_5_vl": {"vision_config": {"out_hidden_size": 8192}},
    "qwen3_vl": {"vision_config": {"out_hidden_size": 4096}},
    "qwen3_vl_moe": {"vision_config": {"out_hidden_size": 2048}},
    "qwen3_5": {"vision_config": {"out_hidden_size": 4096}},
    "qwen3_5_moe": {"vision_config": {"out_hidden_size": 2048}},
    "gemma3": {"vision_config": {"image_size": 896, "patch_size": 14}},
    "exaone4_5": {"vision_config": {"out_hidden_size": 4096}},
    "glm4v_moe": {"text_config": {"head_dim": 128}},
}
# The classes of MiMo and Ling 2 lie beside their files: Qwen 2's with one key more (configuration_mimo.py), and one of its own.
_OTHER = {
    "mimo": ("qwen2", {"num_nextn_predict_layers": 1}),
    "bailing_moe": ("llama", LING | {"rope_parameters": None}),
}


@pytest.mark.parametrize(
    "family",
    [one for one in FAMILIES if one.class_name not in _CLASSES and not one.like and one.model_type not in OF_AUTHORS],
    ids=lambda one: one.model_type,
)
def test_what_a_class_saves_of_its_defaults_is_read(family: Family, tmp_path: Path) -> None:
    """Of the families that are not among the published, and whose class transformers has."""
    known, more = _OTHER.get(family.model_type, (family.model_type, _SIZES.get(family.model_type, {})))
    AutoConfig.for_model(known).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    inner = {key: saved[key] | value for key, value in more.items() if isinstance(value, dict) and key in saved}
    config = saved | more | inner | {"model_type": family.model_type, "architectures": [family.class_name]}
    assert config_architecture(write(tmp_path, config)).stacks
    assert family_of(config, "config.json") is family


@pytest.mark.parametrize(
    ("family", "saved"),
    [
        ("cohere2", {"_sliding_window_pattern": 4}),
        ("granitemoe", {"position_embedding_type": "rope"}),
        ("granitemoeshared", {"position_embedding_type": "rope"}),
        ("glm4v_moe", {"text_config": {"model_type": "Glm4vMoe_text", "head_dim": 128}}),
    ],
)
def test_what_transformers_4_saves_of_its_own_changes_nothing(
    family: str, saved: dict[str, object], tmp_path: Path
) -> None:
    """Keys and names that the classes of 4.57 write, and those of 5.24 do not."""
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {key: config[key] | value for key, value in _SIZES.get(family, {}).items()}
    expected = config_architecture(write(tmp_path, config))
    inner = {key: config[key] | value for key, value in saved.items() if isinstance(value, dict)}
    assert config_architecture(write(tmp_path, config | saved | inner)) == expected


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_config_is_read(model: str, tmp_path: Path) -> None:
    """As it is, and with what each version of transformers writes besides: the same model."""
    config = PUBLISHED[model]
    expected = config_architecture(write(tmp_path, config))
    for common in (COMMON_2, COMMON_4, COMMON_5):
        assert config_architecture(write(tmp_path, common | config)) == expected
    for key in ("logits_to_keep", "custom_pipelines", "neftune_noise_alpha"):
        assert config_architecture(write(tmp_path, config | {key: 0})) == expected


@pytest.mark.parametrize(("model", "key", "value"), SENSITIVE, ids=lambda part: str(part)[:40])
def test_another_value_is_refused_by_name(model: str, key: str, value: object, tmp_path: Path) -> None:
    config = PUBLISHED[model]
    config_architecture(write(tmp_path, config))
    with pytest.raises(CkptError) as refusal:
        config_architecture(write(tmp_path, config | {key: value}))
    assert repr(key) in str(refusal.value)
    assert "config.json" in str(refusal.value)


def test_qwen3_embedding_is_read_as_it_is_published(tmp_path: Path) -> None:
    """By its config a tied Qwen3ForCausalLM, by the names of its tensors a bare model."""
    config = PUBLISHED["Qwen/Qwen3-0.6B"]
    kinds = {"input_layernorm": (64,), "post_attention_layernorm": (64,), "self_attn.q_norm": (24,), "self_attn.k_norm": (24,),
             "self_attn.q_proj": (96, 64), "self_attn.k_proj": (48, 64), "self_attn.v_proj": (48, 64), "self_attn.o_proj": (64, 96),
             "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)}  # fmt: skip
    shapes = {"embed_tokens.weight": (61, 64), "norm.weight": (64,)}
    shapes |= {f"layers.{layer}.{name}.weight": shape for layer in range(2) for name, shape in kinds.items()}
    write(tmp_path / "hf", config)
    save_file({name: torch.rand(shape) for name, shape in shapes.items()}, tmp_path / "hf" / "model.safetensors")
    assert read_checkpoint(tmp_path / "hf").provenance.hints["names"] == {"left_out": "model."}
    convert(tmp_path / "hf", tmp_path / "out", to="hf")
    assert "names" not in read_checkpoint(tmp_path / "out").provenance.hints
    write(tmp_path / "hf", config | {"architectures": ["Qwen3Model"]})
    assert read_checkpoint(tmp_path / "hf").architecture.head is None  # the same tensors, as a bare model
