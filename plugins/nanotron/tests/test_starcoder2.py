"""Nanotron's two kinds of Starcoder2 attention: which there is follows from a flag, and not from the number of heads.

The checkpoints are made here, in the layout of release 0.4: what a fused weight holds is taken out of it by the
expressions of that release's forward passes (models/starcoder2.py, CausalSelfGQA and CausalSelfMQA).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_core import convert, fingerprint
from ckpt_tests import nanotron
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.models import weights
from ckpt_tests.program import assert_refused

HEADS, HEAD_DIM, FFN, VOCABULARY, LAYERS = 6, 8, 30, 36, 2
HIDDEN = HEADS * HEAD_DIM


def run_of(folder: Path, groups: int, *, grouped: bool, tp: int = 1) -> dict[str, torch.Tensor]:
    """A run of release 0.4 at step 0; returns its parameters, whole."""
    config = {
        "activation_function": "gelu_pytorch_tanh", "attention_softmax_in_fp32": True, "attn_pdrop": 0.0, "bos_token_id": 1,
        "embd_pdrop": 0.0, "eos_token_id": 2, "global_attn_layers": [], "grouped_query": grouped, "hidden_size": HIDDEN,
        "initializer_range": 0.02, "intermediate_size": FFN, "is_starcoder2_config": True, "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 12, "multi_query": not grouped, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
        "num_kv_heads": groups if grouped else None, "resid_pdrop": 0.0, "rope_theta": 10000,
        "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True, "sliding_window_size": None,
        "use_position_embeddings": False, "use_rotary_embeddings": True, "vocab_size": VOCABULARY,
    }  # fmt: skip
    torch.manual_seed(groups)
    step = folder / "0"
    step.mkdir(parents=True)
    (folder / "latest.txt").write_text("0")
    (step / "model_config.json").write_text(json.dumps(config))
    found: dict[str, torch.Tensor] = {}

    def save(name: str, *shape: int, dim: int | None = None) -> None:
        found[f"model.{name}"] = whole = torch.randn(shape)
        *folders, leaf = name.split(".")
        place = step.joinpath("model", "model", *folders)
        place.mkdir(parents=True, exist_ok=True)
        if dim is None:
            save_file({"data": whole}, place / f"model_{leaf}.safetensors", metadata={})
            return
        size = shape[dim] // tp
        for rank, part in enumerate(whole.split(size, dim)):
            here, there = (["None,None,None"] * len(shape) for _ in range(2))
            there[dim] = f"{rank * size},{(rank + 1) * size},None"
            metadata = {
                "version": "1.2",
                "unsharded_shape": str(tuple(shape)),
                "local_global_slices_pairs": "|".join(here) + "#" + "|".join(there),
            }
            file = place / f"model_{leaf}_pp-rank-0-of-1_tp-rank-{rank}-of-{tp}.safetensors"
            save_file({"data": part.contiguous()}, file, metadata=metadata)

    save("token_embeddings.pp_block.token_embedding.weight", VOCABULARY, HIDDEN, dim=0)
    for kind in ("weight", "bias"):
        inner = (HIDDEN,) if kind == "weight" else ()
        for layer in range(LAYERS):
            block = f"decoder.{layer}.pp_block"
            for norm in ("ln_1", "ln_2"):
                save(f"{block}.{norm}.{kind}", HIDDEN)
            save(f"{block}.ff.c_fc.{kind}", FFN, *inner, dim=0)
            if grouped:
                save(f"{block}.attn.query_key_value.{kind}", (HEADS + 2 * groups) * HEAD_DIM, *inner, dim=0)
            else:
                save(f"{block}.attn.qkv.q.{kind}", HIDDEN, *inner, dim=0)
                save(f"{block}.attn.qkv.kv.{kind}", 2 * HEAD_DIM, *inner)
            for name, width in (("ff.c_proj", FFN), ("attn.dense" if grouped else "attn.o", HIDDEN)):
                if kind == "weight":
                    save(f"{block}.{name}.weight", HIDDEN, width, dim=1)
                else:
                    save(f"{block}.{name}.bias", HIDDEN)
        save(f"final_layer_norm.pp_block.{kind}", HIDDEN)
    return found


def projections(parameters: dict[str, torch.Tensor], layer: int, kind: str, groups: int) -> dict[str, torch.Tensor]:
    """q, k and v of a layer, each head after head, by the released forward passes."""
    attention = f"model.decoder.{layer}.pp_block.attn"
    fused = parameters.get(f"{attention}.query_key_value.{kind}")
    if fused is None:
        key, value = parameters[f"{attention}.qkv.kv.{kind}"].split([HEAD_DIM, HEAD_DIM])
        return {"q": parameters[f"{attention}.qkv.q.{kind}"], "k": key, "v": value}
    repeats = HEADS // groups
    parts = fused.view(groups, repeats + 2, HEAD_DIM, -1).split([repeats, 1, 1], dim=1)
    shape = (-1, HIDDEN) if kind == "weight" else (-1,)
    return {name: part.reshape(shape) for name, part in zip("qkv", parts, strict=True)}


# groups, whether they are called so, ranks
KINDS = [(1, True, 1), (2, True, 2), (3, True, 1), (HEADS, True, 3), (1, False, 1), (1, False, 2)]


@pytest.mark.parametrize(("groups", "grouped", "tp"), KINDS, ids=str)
def test_projections_are_those_of_the_released_forward(tmp_path: Path, groups: int, grouped: bool, tp: int) -> None:
    parameters = run_of(tmp_path / "run", groups, grouped=grouped, tp=tp)
    convert(tmp_path / "run", tmp_path / "hf", to="hf")
    held = weights(tmp_path / "hf")
    for layer in range(LAYERS):
        for kind in ("weight", "bias"):
            for part, expected in projections(parameters, layer, kind, groups).items():
                assert torch.equal(held[f"model.layers.{layer}.self_attn.{part}_proj.{kind}"], expected)
            out = parameters[f"model.decoder.{layer}.pp_block.attn.{'dense' if grouped else 'o'}.{kind}"]
            assert torch.equal(held[f"model.layers.{layer}.self_attn.o_proj.{kind}"], out)


@pytest.mark.parametrize(("groups", "grouped", "tp"), KINDS, ids=str)
def test_through_hf_and_back_the_files_are_the_same(tmp_path: Path, groups: int, grouped: bool, tp: int) -> None:
    run_of(tmp_path / "run", groups, grouped=grouped, tp=tp)
    convert(tmp_path / "run", tmp_path / "hf", to="hf")
    convert(tmp_path / "hf", tmp_path / "back", to="nanotron", tp=tp)
    ours, theirs = nanotron.parameter_files(tmp_path / "back"), nanotron.parameter_files(tmp_path / "run")
    assert_same_bits(nanotron.tensors(tmp_path / "back"), nanotron.tensors(tmp_path / "run"))
    assert {name: nanotron.metadata_of(path) for name, path in ours.items()} == {
        name: nanotron.metadata_of(path) for name, path in theirs.items()
    }
    said = [json.loads((tmp_path / run / "0/model_config.json").read_text()) for run in ("run", "back")]
    for key in ("grouped_query", "multi_query", "num_kv_heads"):
        assert said[0][key] == said[1][key]


def test_one_head_called_grouped_is_multi_query_over_several_ranks(tmp_path: Path) -> None:
    """CausalSelfGQA asserts that there are as many key-value heads as ranks; CausalSelfMQA gives each rank the one."""
    run_of(tmp_path / "run", 1, grouped=True)
    convert(tmp_path / "run", tmp_path / "two", to="nanotron", tp=2)
    said = json.loads((tmp_path / "two/0/model_config.json").read_text())
    assert (said["grouped_query"], said["multi_query"], said["num_kv_heads"]) == (False, True, None)
    assert fingerprint(tmp_path / "two") == fingerprint(tmp_path / "run")


def test_more_ranks_than_grouped_heads_are_refused(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 2, grouped=True)
    named = "tp=3 must divide the 2 key-value heads"
    assert_refused(tmp_path / "run", named, to="nanotron", arguments=("--tp", "3"))


def test_both_flags_are_refused(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 2, grouped=True)
    file = tmp_path / "run/0/model_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"multi_query": True}))
    assert_refused(tmp_path / "run", "'grouped_query' and 'multi_query' exclude each other", to="hf")


@pytest.mark.parametrize("grouped", [True, False])
def test_without_a_config_the_names_tell_which_attention_it_is(tmp_path: Path, grouped: bool) -> None:
    parameters = run_of(tmp_path / "run", 1, grouped=grouped)
    convert(tmp_path / "run", tmp_path / "hf", to="hf")
    (tmp_path / "run/0/model_config.json").unlink()
    convert(tmp_path / "run", tmp_path / "again", to="hf", config=str(tmp_path / "hf/config.json"))
    key = weights(tmp_path / "again")["model.layers.0.self_attn.k_proj.weight"]
    assert torch.equal(key, projections(parameters, 0, "weight", 1)["k"])
