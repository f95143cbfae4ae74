"""ZeRO's partitions, written here as DeepSpeed cuts them, for any number of ranks, groups and subgroups."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.storage.dtypes import FP32
from ckpt_core.storage.tensor import StoredTensor
from ckpt_deepspeed.flat import Flat, shards_of
from ckpt_tests import deepspeed
from ckpt_tests.deepspeed import Zero
from ckpt_tests.families import CASES, build
from ckpt_tests.models import weights

VOCABULARY, HIDDEN, FFN, HEADS, GROUPS, WIDTH = 31, 20, 28, 5, 1, 6
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": FFN,
    "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "head_dim": WIDTH, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DP = (1, 2, 3, 5, 11)  # ten ranks and more: rank 10 comes after rank 9


def model(tied: bool = False, seed: int = 5) -> dict[str, torch.Tensor]:
    """The fp32 masters of a tiny Llama, matrices first."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in ("model.layers.0.", "model.layers.1."):
        shapes |= {
            f"{layer}self_attn.q_proj.weight": (HEADS * WIDTH, HIDDEN),
            f"{layer}self_attn.k_proj.weight": (GROUPS * WIDTH, HIDDEN),
            f"{layer}self_attn.v_proj.weight": (GROUPS * WIDTH, HIDDEN),
            f"{layer}self_attn.o_proj.weight": (HIDDEN, HEADS * WIDTH),
            f"{layer}mlp.gate_proj.weight": (FFN, HIDDEN),
            f"{layer}mlp.up_proj.weight": (FFN, HIDDEN),
            f"{layer}mlp.down_proj.weight": (HIDDEN, FFN),
        }
    shapes |= {} if tied else {"lm_head.weight": (VOCABULARY, HIDDEN)}
    for layer in ("model.layers.0.", "model.layers.1."):
        shapes |= {f"{layer}input_layernorm.weight": (HIDDEN,), f"{layer}post_attention_layernorm.weight": (HIDDEN,)}
    shapes["model.norm.weight"] = (HIDDEN,)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def under_zero(tied: bool = False, frozen: tuple[str, ...] = (), **more: object) -> Zero:
    """The model in two parameter groups, with and without weight decay."""
    masters = model(tied)
    kept = {name: tensor for name, tensor in masters.items() if name not in frozen}
    groups = [{name: t for name, t in kept.items() if (t.dim() > 1) == decayed} for decayed in (True, False)]
    shared = {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}
    return Zero(groups, frozen={name: masters[name] for name in frozen}, shared=shared, **more)


def saved(root: Path, write: Callable[[Path], None], **config: object) -> Path:
    write(root / "global_step7")
    deepspeed.finish(root, "global_step7", {**CONFIG, **config})
    return root


def values(root: Path, **arguments: object) -> dict[str, torch.Tensor]:
    """What ckpt reads, by transformers' names."""
    out = root.parent / f"{root.name}-hf"
    convert(root, out, to="hf", **arguments)
    return weights(out)


def assert_masters(found: dict[str, torch.Tensor], zero: Zero) -> None:
    expected = zero.masters | {name: tensor.to(zero.dtype) for name, tensor in zero.frozen.items()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


FROZEN = ("model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight")


@pytest.mark.parametrize("dp", DP)
def test_groups_cut_over_ranks_are_put_together(dp: int, tmp_path: Path) -> None:
    zero = under_zero(frozen=FROZEN)
    root = saved(tmp_path / "run", lambda step: deepspeed.write_partitioned_groups(step, zero, dp))
    assert_masters(values(root), zero)


@pytest.mark.parametrize("dp", DP)
@pytest.mark.parametrize("subgroup", [1, 900, 10**9])
def test_parameters_cut_over_ranks_are_put_together(dp: int, subgroup: int, tmp_path: Path) -> None:
    zero = under_zero(frozen=FROZEN)
    root = saved(tmp_path / "run", lambda step: deepspeed.write_partitioned_parameters(step, zero, dp, subgroup))
    assert_masters(values(root), zero)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_tied_head_has_the_master_of_its_owner(stage: int, tmp_path: Path) -> None:
    """Also where the config does not say that it is tied: then the head is a copy."""
    zero = under_zero(tied=True)
    write = {
        2: lambda step: deepspeed.write_partitioned_groups(step, zero, 2),
        3: lambda step: deepspeed.write_partitioned_parameters(step, zero, 2, 500),
    }[stage]
    assert_masters(values(saved(tmp_path / "tied", write, tie_word_embeddings=True)), zero)
    found = values(saved(tmp_path / "untied", write))
    assert torch.equal(found["lm_head.weight"], zero.masters["model.embed_tokens.weight"])


def test_slice_mappings_serve_where_no_shapes_are_stored(tmp_path: Path) -> None:
    zero = under_zero()
    root = saved(tmp_path / "run", lambda step: deepspeed.write_partitioned_groups(step, zero, 3, shapes=False))
    assert_masters(values(root), zero)


def test_round_robin_mappings_are_not_believed(tmp_path: Path) -> None:
    """DeepSpeed 0.19.8 writes them in an order that the tensors are not in; the shapes are right."""
    zero = under_zero()
    right = saved(tmp_path / "right", lambda step: deepspeed.write_partitioned_groups(step, zero, 3, robin=True))
    assert_masters(values(right), zero)
    alone = saved(
        tmp_path / "alone", lambda step: deepspeed.write_partitioned_groups(step, zero, 3, robin=True, shapes=False)
    )
    with pytest.raises(CkptError, match="do not round to the weights"):
        values(alone)


def test_wrong_shapes_give_way_to_mappings_that_fit(tmp_path: Path) -> None:
    zero = under_zero()

    def write(step: Path) -> None:
        deepspeed.write_partitioned_groups(step, zero, 2)
        reverse = [
            dict(list(group.items())[::-1])
            for group in deepspeed.load(step / "mp_rank_00_model_states.pt")["param_shapes"]
        ]
        deepspeed.save(zero.states(2, param_shapes=reverse), step / "mp_rank_00_model_states.pt")

    root = saved(tmp_path / "run", write)
    with open_checkpoint(root) as source:
        assert any("param_slice_mappings" in line for line in source.checkpoint.provenance.evidence)
    assert_masters(values(root), zero)


def test_masters_of_plain_bf16_are_matched_by_their_values(tmp_path: Path) -> None:
    """Stage 0 keeps whole masters without names (0.19.8), of which zero_to_fp32.py makes nothing."""
    zero = under_zero(tied=True)
    groups = [list(group.values()) for group in zero.groups]
    states = zero.states(1, optimizer={"fp32_groups": groups}, param_shapes=None)
    root = saved(
        tmp_path / "run",
        lambda step: deepspeed.save(states, step / "mp_rank_00_model_states.pt"),
        tie_word_embeddings=True,
    )
    assert_masters(values(root), zero)
    module = values(root.rename(tmp_path / "again"), weights="model")
    assert {tensor.dtype for tensor in module.values()} == {torch.bfloat16}


def test_without_an_optimizer_the_module_is_read(tmp_path: Path) -> None:
    zero = under_zero(dtype=torch.float32)
    root = saved(tmp_path / "run", lambda step: deepspeed.save(zero.states(1), step / "mp_rank_00_model_states.pt"))
    assert_masters(values(root), zero)
    with open_checkpoint(root, weights="master") as source:  # trained in fp32, the weights are the masters
        assert source.checkpoint.provenance.masters
    half = saved(
        tmp_path / "half", lambda step: deepspeed.save(under_zero().states(1), step / "mp_rank_00_model_states.pt")
    )
    with pytest.raises(CkptError, match="no fp32 masters"):
        values(half, weights="master")


def test_fp16_is_as_good(tmp_path: Path) -> None:
    zero = under_zero(dtype=torch.float16)
    root = saved(tmp_path / "run", lambda step: deepspeed.write_partitioned_groups(step, zero, 2))
    assert_masters(values(root), zero)


def test_the_config_may_be_given(tmp_path: Path) -> None:
    zero = under_zero()
    root = saved(tmp_path / "run", lambda step: deepspeed.write_partitioned_groups(step, zero, 2))
    config = (root / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(CkptError, match="--config"):
        values(root)
    assert_masters(values(root, config=str(config)), zero)
    (root / "config.json").write_text(json.dumps({**CONFIG, "rms_norm_eps": 1e-5}))
    with pytest.raises(CkptError, match=r"rms_norm_eps|norm.eps is 1e-05 in the checkpoint"):
        convert(root, tmp_path / "ir", to="ir", config=str(config))


# --- ranges of flattened tensors -------------------------------------------------------------------------------------


@given(st.data())
def test_pieces_are_the_tensor(data: st.DataObject) -> None:
    """Any way to cut a tensor into ranges gives boxes that hold each of its elements once, at its place."""
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    elements = torch.Size(shape).numel()
    cuts = sorted({0, elements, *data.draw(st.lists(st.integers(0, elements), max_size=4))})
    pieces = [StoredTensor("file", FP32, (stop - start,), 4 * start, (1,)) for start, stop in itertools.pairwise(cuts)]
    found = torch.full(shape, -1)
    for shard in shards_of(Flat(tuple(pieces)), shape):
        box = tuple(slice(start, start + size) for start, size in zip(shard.origin, shard.stored.shape, strict=True))
        assert (found[box] == -1).all()
        first = shard.stored.offset // 4
        found[box] = torch.arange(first, first + shard.stored.elements).reshape(shard.stored.shape)
    assert torch.equal(found, torch.arange(elements).reshape(shape))


def test_a_number_without_axes_is_written_and_read(tmp_path: Path) -> None:
    """Those of xIELU, which Apertus learns: its masters are compared with the module's copies."""
    build(CASES["apertus"], tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "run", to="deepspeed")
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")
