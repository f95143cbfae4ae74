"""Models that transformers itself made and computed: read to the recorded logits and back bit for bit, or refused by name."""

from __future__ import annotations

import copy
import json
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_core import convert, open_checkpoint
from ckpt_core.api import config_architecture
from ckpt_core.errors import CkptError
from ckpt_core.reference import forward
from ckpt_core.reference.inputs import Inputs
from ckpt_core.sdk import layouts
from ckpt_hf.config import BY_TYPE
from ckpt_tests import families, forwards
from ckpt_tests.families import build
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.goldens import Golden, beside
from ckpt_tests.models import load, logits_of, weights

TOLERANCE = 1e-4
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
CASES = beside("families", "source_hf/config.json")


each = pytest.mark.parametrize("golden", CASES, ids=str)


@each
def test_it_computes_what_transformers_computed(golden: Golden) -> None:
    with open_checkpoint(golden.source) as model:
        *_, last = forward(model, Inputs(tokens=golden.input_ids.long()))
    assert golden.off_by(last.values) <= TOLERANCE


@each
def test_every_tensor_comes_back(golden: Golden, tmp_path: Path) -> None:
    convert(golden.source, tmp_path / "ir", to="ir")
    with open_checkpoint(golden.source) as model:
        dropped = {loss.subject for loss in model.checkpoint.provenance.losses if loss.kind == "dropped"}
    convert(tmp_path / "ir", tmp_path / "hf", to="hf", dtype=DTYPES[golden.case["dtype"]])
    original = weights(golden.source)
    kept = {name: value for name, value in original.items() if not any(fnmatch(name, one) for one in dropped)}
    assert_same_bits(weights(tmp_path / "hf"), kept)


SIZES = {"hidden_size": 96, "vocab_size": 61, "num_hidden_layers": 2, "num_attention_heads": 16, "num_local_experts": 5}
GPT_OSS = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", **SIZES}


def test_gpt_oss_has_a_yarn_of_its_own_where_none_is_said(tmp_path: Path) -> None:
    """Left out, it is the class's; version 4 of transformers takes null for none, and version 5 for the class's."""
    from transformers import GptOssConfig

    (tmp_path / "config.json").write_text(json.dumps(GPT_OSS))
    left_out = config_architecture(str(tmp_path / "config.json"))
    filled = GptOssConfig(**SIZES).to_dict() | GPT_OSS
    (tmp_path / "config.json").write_text(json.dumps(filled, default=str))
    said = config_architecture(str(tmp_path / "config.json"))
    assert said.decoder.layers[0].attention.rotary.scaling.factor == 32.0
    assert left_out.decoder == said.decoder
    (tmp_path / "config.json").write_text(json.dumps({**GPT_OSS, "rope_scaling": None}))
    with pytest.raises(CkptError, match="rotary scaling is null"):
        config_architecture(str(tmp_path / "config.json"))


@pytest.mark.parametrize(("key", "value"), [("swiglu_limit", 6.0), ("swiglu_alpha", 1.5), ("experts_per_token", 3)])
def test_what_versions_of_transformers_read_otherwise_is_refused(key: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**GPT_OSS, "num_experts_per_tok": 4, key: value}))
    with pytest.raises(CkptError, match=key):
        config_architecture(str(tmp_path / "config.json"))


def test_kimi_linear_is_read_as_published_and_as_transformers_saves_it(tmp_path: Path) -> None:
    """The layers without experts have two names in files; the published one is written, and both sides of the config are."""
    build(families.CASES["kimi_linear"], tmp_path / "saved", mlp_layer_types=["dense", "sparse"])
    convert(tmp_path / "saved", tmp_path / "published", to="hf")
    convert(tmp_path / "published", tmp_path / "again", to="hf")
    saved, published = weights(tmp_path / "saved"), weights(tmp_path / "published")
    dense = "model.layers.0.{}.up_proj.weight"
    assert_same_bits({"up": published[dense.format("mlp")]}, {"up": saved[dense.format("block_sparse_moe")]})
    assert_same_bits(weights(tmp_path / "again"), published)
    config = json.loads((tmp_path / "published" / "config.json").read_text())
    said = config.pop("linear_attn_config")
    assert said == {
        "num_heads": 5,
        "head_dim": 8,
        "short_conv_kernel_size": 3,
        "full_attn_layers": [2],
        "kda_layers": [1],
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    alone = config_architecture(str(path))
    own = ("layer_types", "linear_num_heads", "linear_head_dim", "linear_conv_kernel_dim")
    path.write_text(
        json.dumps({key: value for key, value in config.items() if key not in own} | {"linear_attn_config": said})
    )
    assert config_architecture(str(path)) == alone
    for changed in ({"num_heads": 6}, {"full_attn_layers": [1], "kda_layers": [2]}, {"kda_layers": [1, 2]}):
        path.write_text(json.dumps(config | {"linear_attn_config": said | changed}))
        with pytest.raises(CkptError, match="linear_attn_config"):
            config_architecture(str(path))


def test_the_patterns_of_glm_5_choose_the_layers_with_an_indexer(tmp_path: Path) -> None:
    """As transformers derives them, and as a list says them; the first layer must have an indexer."""
    from transformers import GlmMoeDsaConfig

    path = tmp_path / "config.json"
    sizes = {**families.CASES["glm_moe_dsa"].config, "num_hidden_layers": 7}
    for said in (
        {},
        {"index_topk_freq": 3},
        {"index_topk_freq": 2, "index_skip_topk_offset": 4},
        {"index_topk_pattern": "FSSFFSF"},
    ):
        config = {
            **sizes,
            **said,
            "indexer_types": None,
            "architectures": ["GlmMoeDsaForCausalLM"],
            "model_type": "glm_moe_dsa",
        }
        path.write_text(json.dumps(config))
        layers = config_architecture(str(path)).decoder.layers
        kinds = ["full" if layer.latent_attention.indexer else "shared" for layer in layers]
        assert kinds == GlmMoeDsaConfig(**copy.deepcopy({**sizes, **said, "indexer_types": None})).indexer_types
    path.write_text(json.dumps(config | {"index_topk_pattern": "SFFFFFF"}))
    with pytest.raises(CkptError, match="index_topk_pattern"):
        config_architecture(str(path))


def test_a_layer_after_the_last_of_deepseek_v32_has_an_indexer_of_its_own(tmp_path: Path) -> None:
    build(families.CASES["deepseek_v32"], tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    tensors = weights(tmp_path / "hf")
    last = {name: value for name, value in tensors.items() if name.startswith("model.layers.1.")}
    width = tensors["model.norm.weight"]
    further = {name.replace("layers.1.", "layers.2."): value * 0.5 for name, value in last.items()}
    further |= {f"model.layers.2.{name}.weight": width * 0.25 for name in ("enorm", "hnorm", "shared_head.norm")}
    further["model.layers.2.eh_proj.weight"] = torch.randn(len(width), 2 * len(width))
    further["model.layers.2.embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
    further["model.layers.2.shared_head.head.weight"] = tensors["lm_head.weight"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    save_file(
        {name: value.clone() for name, value in (tensors | further).items()}, tmp_path / "hf" / "model.safetensors"
    )
    convert(tmp_path / "hf", tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "back", to="hf")
    assert_same_bits(weights(tmp_path / "back"), tensors | further)


@pytest.mark.parametrize("name", ["granite_hybrid", "bamba", "mamba2", "falcon_h1", "olmo_hybrid", "apertus", "phimoe"])
def test_the_names_in_memory_are_those_of_the_module(name: str, tmp_path: Path) -> None:
    """What other frameworks save of a module in memory is written under the names, and in the shapes, that it has there."""
    module = build(families.CASES[name], tmp_path / "hf")
    family = BY_TYPE[families.CASES[name].model_type]
    held = layouts.BoundTables(family.spellings({})[-1], config_architecture(str(tmp_path / "hf" / "config.json")))
    expected = {native: tuple(tensor.shape) for native, tensor in module.state_dict().items()}
    assert {native: tuple(one.shape) for native, one in held.natives().items()} == expected


def test_a_bamba_of_which_no_layer_attends_is_read(tmp_path: Path) -> None:
    """The class without the key; transformers runs it without its cache alone, which looks for a layer that attends."""
    module = build(families.CASES["bamba"], tmp_path / "hf", attn_layer_indices=None)
    convert(tmp_path / "hf", tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "back", to="hf")
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "hf"))
    with torch.no_grad():
        expected = module(families.tokens(), use_cache=False).logits
        assert torch.equal(load(tmp_path / "back")(families.tokens(), use_cache=False).logits, expected)
    with open_checkpoint(tmp_path / "back") as model:
        assert forwards.off_by(model, Inputs(tokens=families.tokens()), expected) <= forwards.TOLERANCE


def test_mamba_2_as_its_first_files_call_it_is_read(tmp_path: Path) -> None:
    build(families.CASES["mamba2"], tmp_path / "hf")
    tensors = weights(tmp_path / "hf")
    first = {name.replace("embeddings.", "embedding."): value.clone() for name, value in tensors.items()}
    save_file(first, tmp_path / "hf" / "model.safetensors")
    convert(tmp_path / "hf", tmp_path / "back", to="hf")
    assert_same_bits(weights(tmp_path / "back"), tensors)


def test_olmo_hybrid_whose_keys_and_values_differ_in_width_is_read_as_published(tmp_path: Path) -> None:
    """transformers saves its convolutions as equal thirds, whatever they are, and joins them again when it loads them."""
    model = build(families.CASES["olmo_hybrid"], tmp_path / "saved", linear_value_head_dim=5)
    with pytest.raises(CkptError, match=r"linear_attn\.q_conv1d"):
        convert(tmp_path / "saved", tmp_path / "ir", to="ir")
    tensors = weights(tmp_path / "saved")
    layer = "model.layers.0.linear_attn"
    joined = torch.cat([tensors[f"{layer}.{part}_conv1d.weight"] for part in "qkv"])
    parts = joined.split([18, 18, 30])
    published = tensors | {
        f"{layer}.{part}_conv1d.weight": value.clone() for part, value in zip("qkv", parts, strict=True)
    }
    save_file(published, tmp_path / "saved" / "model.safetensors")
    convert(tmp_path / "saved", tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "back", to="hf")
    names = families.SAVED["olmo_hybrid"]
    assert_same_bits(weights(tmp_path / "back"), {names.get(name, name): value for name, value in published.items()})
    assert torch.equal(logits_of(load(tmp_path / "back"), families.tokens()), logits_of(model, families.tokens()))
