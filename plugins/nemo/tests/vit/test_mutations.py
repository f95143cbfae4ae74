"""Nothing of a NeMo ViT is taken on trust: tensors, keys and ranks that are not as they must be are refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from ckpt_core import open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_tests import nemo_vit
from ckpt_tests.damage import tensor_mutations

QUERY = f"{nemo_vit.LAYER}.1.self_attention.query_key_value.weight"
TABLE = "model.backbone.position_embeddings.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = nemo_vit.config()
    return nemo_vit.save(tmp_path_factory.mktemp("nemo") / "vit", nemo_vit.state(config), config, tp=2)


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "vit"))


def edit_rank(folder: Path, change: Callable[[dict], object]) -> None:
    file = folder / "mp_rank_01" / "model_weights.ckpt"
    held = torch.load(file)
    change(held)
    torch.save(held, file)


def edit_config(folder: Path, key: str, value: object) -> None:
    file = folder / "model_config.yaml"
    config = yaml.safe_load(file.read_text())
    config.pop(key, None)
    file.write_text(yaml.safe_dump(config if value is ... else {**config, key: value}))


TENSORS = tensor_mutations(QUERY)


@pytest.mark.parametrize("mutation", TENSORS)
def test_a_tensor_that_is_not_as_it_must_be_is_refused_by_name(mutation: str, copy: Path) -> None:
    edit_rank(copy, TENSORS[mutation])
    with pytest.raises(CkptError) as refusal:
        open_checkpoint(copy)
    parameter = "layers.1.attention."  # where only together with another rank something is wrong
    assert QUERY.removeprefix("model.") in str(refusal.value) or parameter in str(refusal.value)


@pytest.mark.parametrize("name", ["model.backbone.cls_token", "model.head.bias", TABLE])
def test_ranks_that_hold_a_whole_tensor_hold_the_same(name: str, copy: Path) -> None:
    edit_rank(copy, lambda held: held[name].view(-1)[3:4].add_(1))
    with open_checkpoint(copy) as found, pytest.raises(CkptError, match="two copies"):
        for tensor in found.values():
            tensor.numpy()


def test_a_model_with_both_layers_for_patches_or_none_is_refused(copy: Path) -> None:
    both = "model.backbone.conv1.weight"
    edit_rank(copy, lambda held: held.__setitem__(both, torch.zeros(24, 3, 4, 4)))
    with pytest.raises(CkptError, match=r"linear_encoder\.weight or backbone\.conv1\.weight"):
        open_checkpoint(copy)


# key, value, what the error names beside the key
KEYS = [
    ("num_layers", 3, "layers.2"),
    ("num_layers", ..., "missing"),
    ("hidden_size", 48, "position_embeddings"),
    ("num_attention_heads", 5, "hidden_size=24"),
    ("ffn_hidden_size", 44, "dense_h_to_4h"),
    ("kv_channels", 7, "query_key_value"),
    ("img_h", 16, "position_embeddings"),
    ("img_w", 30, "whole patches"),
    ("patch_dim", 8, "position_embeddings"),
    ("num_channels", 1, "linear_encoder"),
    ("num_classes", 6, "head"),
    ("num_classes", ..., "'num_classes' is missing"),
    ("class_token_length", ..., "position_embeddings"),
    ("class_token_length", 0, "positive whole number"),
    ("finetune", False, "dense_in"),
    ("finetune", "yes", "'finetune' is not true or false"),
    ("normalization", "batchnorm", "layernorm1p"),
    ("normalization", "rmsnorm", "bias"),
    ("layernorm_epsilon", "tiny", "not a number"),
    ("preprocess_layernorm", True, "preprocess_layernorm"),
    ("layerscale", True, "layerscale"),
    ("activation", "mish", "approx-gelu"),
    ("activation", "swiglu", "dense_h_to_4h_2"),
    ("position_embedding_type", "rope", "learned_absolute"),
    ("position_embedding_type", "learned_parameters", "position_embeddings"),
    ("bias_gelu_fusion", True, "ignore_keys"),
    ("tensor_model_parallel_size", 4, "2 ranks"),
    ("patch_dimension", 4, "patch_dim"),
    ("target", "nemo.models.MegatronBertModel", "MegatronVitClassificationModel"),
]


@pytest.mark.parametrize(("key", "value", "named"), KEYS, ids=lambda value: str(value))
def test_a_key_that_contradicts_the_tensors_or_is_unknown_is_refused(
    key: str, value: object, named: str, copy: Path
) -> None:
    edit_config(copy, key, value)
    with pytest.raises(CkptError) as refusal:
        open_checkpoint(copy)
    assert named in str(refusal.value), refusal.value


def test_positions_of_another_image_size_are_refused_and_the_error_says_what_to_do(copy: Path) -> None:
    edit_config(copy, "img_w", 64)
    with pytest.raises(CkptError, match="images of another size") as refusal:
        open_checkpoint(copy)
    assert "17 rows" in str(refusal.value) and "image_size" in str(refusal.value)


def test_a_rank_that_is_missing_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "mp_rank_01")
    with pytest.raises(CkptError, match="tensor_model_parallel_size"):
        open_checkpoint(copy)
