"""BLOOM and its relatives: what decides the reading, what no transformers class holds, and the size of the real one."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.api import plan_conversion
from ckpt_core.errors import CkptError
from ckpt_core.testing import example
from ckpt_core.testing.examples import ABSENT, small_numbers, write_ir
from ckpt_tests import deepspeed
from ckpt_tests.folders import assert_same_bits

TO = "megatron-deepspeed"
UNPADDED = {"make_vocab_size_divisible_by": "1"}
STEP = "global_step0"


def source(folder: Path, name: str = "bloom", dtype: str = "fp32", **facts: object) -> Path:
    """A small model in `ir`: 12 heads of 18, three layers."""
    small = {"hidden": 144, "layers": 3, **facts}
    write_ir(folder, example(name, **small), values=small_numbers, dtype=dtype)
    return folder


def written(folder: Path, tp: int, pp: int = 1, **facts: object) -> Path:
    """The model as Megatron-DeepSpeed keeps it, without the receipt."""
    convert(source(folder / "ir", **facts), folder / "run", to=TO, tp=tp, pp=pp, options=UNPADDED)
    (folder / "run" / "ckpt-receipt.json").unlink()
    return folder / "run"


def change(run: Path, pattern: str, **values: object) -> None:
    """Set entries of the files that match; of `args` where a file has them."""
    for path in run.glob(f"{STEP}/{pattern}"):
        content = deepspeed.load(path)
        (vars(content["args"]) if "args" in content else content).update(values)
        deepspeed.save(content, path)


# --- what decides the reading ----------------------------------------------------------------------------------------


def test_older_checkpoints_have_q_k_and_v_in_other_orders(tmp_path: Path) -> None:
    run = written(tmp_path, tp=2)
    expected = fingerprint(run)
    heads, width = 12 // 2, 18
    for version, order in ((0.0, (1, 0, 2)), (1.0, (0, 2, 1))):
        for path in run.glob(f"{STEP}/layer_0[345]-*"):
            content = deepspeed.load(path)
            for kind in ("weight", "bias"):
                name = f"self_attention.query_key_value.{kind}"
                rows = content[name].reshape(heads, 3, width, -1)
                content[name] = rows.permute(*order, 3).reshape(content[name].shape).clone()
            deepspeed.save(content, path)
        for path in run.glob(f"{STEP}/mp_rank_*"):
            content = deepspeed.load(path)
            deepspeed.save({**content, "checkpoint_version": version}, path)
        assert fingerprint(run) == expected
        break_and_restore(run, heads, width, order)


def break_and_restore(run: Path, heads: int, width: int, order: tuple[int, int, int]) -> None:
    """Put q, k and v back into the order of version 3.0."""
    sizes = (heads, 3, width)
    for path in run.glob(f"{STEP}/layer_0[345]-*"):
        content = deepspeed.load(path)
        for kind in ("weight", "bias"):
            name = f"self_attention.query_key_value.{kind}"
            rows = content[name].reshape(*(sizes[axis] for axis in order), -1)
            back = [order.index(axis) for axis in range(3)]
            content[name] = rows.permute(*back, 3).reshape(content[name].shape).clone()
        deepspeed.save(content, path)


def test_the_gate_is_the_second_half_on_every_rank(tmp_path: Path) -> None:
    run = written(tmp_path, tp=2, tokens__norm=ABSENT, mlp__gated=True, mlp__activation="silu")
    with open_checkpoint(run) as found:
        for part, half in (("up", 0), ("gate", 1)):
            ranks = [
                deepspeed.load(run / STEP / f"layer_03-model_{rank:02d}-model_states.pt")[
                    "mlp.dense_h_to_4h.weight"
                ].chunk(2)
                for rank in range(2)
            ]
            expected = torch.cat([halves[half] for halves in ranks])
            assert np.array_equal(found[f"layers.0.mlp.{part}.weight"].numpy(), expected.numpy())


def test_a_universal_checkpoint_of_gated_ranks_is_read(tmp_path: Path) -> None:
    """What the converter puts one after the other are the ranks' tensors, each with both halves."""
    facts = {"tokens__norm": ABSENT, "mlp__gated": True, "mlp__activation": "silu"}
    ir = source(tmp_path / "ir", **facts)
    run, universal = tmp_path / "run", tmp_path / "universal"
    convert(ir, run, to=TO, tp=2, options=UNPADDED)
    convert(ir, universal, to=TO, tp=2, options={**UNPADDED, "universal": "true", "moments": "false"})
    file = universal / f"{STEP}_universal/zero/3.mlp.dense_h_to_4h.weight/fp32.pt"
    ranks = [deepspeed.load(run / STEP / f"layer_03-model_{rank:02d}-model_states.pt") for rank in range(2)]
    assert torch.equal(deepspeed.load(file)["param"], torch.cat([rank["mlp.dense_h_to_4h.weight"] for rank in ranks]))
    assert fingerprint(universal) == fingerprint(ir)


def test_another_rotary_base_is_told_by_the_buffer(tmp_path: Path) -> None:
    run = written(tmp_path, tp=1, name="gpt2", positions__count=ABSENT, attention__rotary__theta=10000.0)
    buffer = deepspeed.load(run / STEP / "layer_03-model_00-model_states.pt")["self_attention.rotary_emb.inv_freq"]
    assert torch.allclose(buffer, 1 / (10000 ** (torch.arange(0, 18, 2) / 18)))
    change(run, "layer_04*", **{"self_attention.rotary_emb.inv_freq": buffer.bfloat16()})
    with open_checkpoint(run) as found:
        (loss,) = found.checkpoint.provenance.losses
        assert loss.subject == "rotary frequencies" and "off" in loss.reason
    change(run, "layer_04*", **{"self_attention.rotary_emb.inv_freq": 1 / (500000 ** (torch.arange(0, 18, 2) / 18))})
    with pytest.raises(CkptError, match="other frequencies than the base of 10000"):
        fingerprint(run)


@pytest.mark.parametrize(
    ("args", "fact", "value"),
    [
        ({"bias_gelu_fusion": False}, "mlp.activation", "gelu_erf"),
        ({"bias_gelu_fusion": False, "openai_gelu": True}, "mlp.activation", "gelu_tanh"),
        ({"bias_gelu_fusion": False, "onnx_safe": True}, "mlp.activation", "gelu_erf"),
        ({"apply_residual_connection_post_layernorm": True}, "residual_from_norm", True),
        ({"layernorm_epsilon": 1e-6}, "attention.norm.eps", 1e-6),
        ({"embed_layernorm": False, "use_bnb_optimizer": True}, "tokens.norm.eps", 1e-5),
        ({"kv_channels": None}, "attention.head_dim", None),
    ],
)
def test_args_that_say_what_the_model_is(args: Mapping[str, object], fact: str, value: object, tmp_path: Path) -> None:
    from ckpt_core.architecture import facts_of

    run = written(tmp_path, tp=1)
    change(run, "mp_rank_*", **args)
    if value is None:  # hidden / heads is 12, and the tensors are of 18
        with pytest.raises(CkptError, match="does not have the shape"):
            fingerprint(run)
    else:
        with open_checkpoint(run) as found:
            assert facts_of(found.architecture)[fact] == value


def test_without_args_the_config_says_what_the_model_is(tmp_path: Path) -> None:
    run = written(tmp_path, tp=2)
    for path in run.glob(f"{STEP}/mp_rank_*"):
        content = deepspeed.load(path)
        deepspeed.save({key: value for key, value in content.items() if key not in ("args", "checkpoint_info")}, path)
    with pytest.raises(CkptError, match="--config"):
        fingerprint(run)
    config = str(tmp_path / "ir" / "architecture.json")
    assert fingerprint(run, config=config) == fingerprint(tmp_path / "ir")


def test_written_states_are_what_a_loader_compares(tmp_path: Path) -> None:
    """check_checkpoint_args of checkpointing.py, and the keys that DeepSpeed takes without asking whether they are there."""
    run = written(tmp_path, tp=2, pp=3)
    for number in range(6):
        states = deepspeed.load(run / STEP / f"mp_rank_{number:02d}_model_states.pt")
        args = states["args"]
        assert isinstance(args, argparse.Namespace)
        assert (args.num_layers, args.hidden_size, args.num_attention_heads) == (3, 144, 12)
        assert (args.tensor_model_parallel_size, args.pipeline_model_parallel_size) == (2, 3)
        assert type(args.position_embedding_type).__name__ == "PositionEmbeddingType"
        needed = {
            "module",
            "global_steps",
            "global_samples",
            "skipped_steps",
            "dp_world_size",
            "mp_world_size",
            "iteration",
        }
        assert needed <= states.keys() and states["checkpoint_version"] == 3.0
        assert states["lr_scheduler"].keys() == {
            "max_lr", "warmup_steps", "num_steps", "warmup_tokens", "num_tokens", "decay_style", "decay_steps", "min_lr",
        }  # fmt: skip
    assert (run / "latest").read_text() == STEP


def test_biases_become_zeros(tmp_path: Path) -> None:
    """GPTModelPipe has a bias everywhere; a bias of zero changes nothing."""
    absent = {f"attention__{part}_bias": False for part in ("q", "k", "v", "out")}
    ir = source(tmp_path / "ir", **absent, attention__norm__bias=False, final_norm__bias=False)
    receipt = convert(ir, tmp_path / "run", to=TO, options=UNPADDED)
    assert "zero biases added" in str(receipt.body["target"]["decisions"])
    layer = deepspeed.load(tmp_path / "run" / STEP / "layer_03-model_00-model_states.pt")
    for name in ("self_attention.query_key_value.bias", "self_attention.dense.bias", "input_layernorm.bias"):
        assert not layer[name].any()
    assert layer["mlp.dense_4h_to_h.bias"].any()


# --- masters of several ranks ----------------------------------------------------------------------------------------


def shard(run: Path, tp: int, pp: int, dp: int, spoil: Mapping[tuple[int, str], float] | None = None) -> None:
    """bf16 optimizer files for the layer files of a run, with masters near the weights, as DeepSpeed 0.7 cuts them.

    The last stage has the embedding once more. `spoil` adds to the master of (tp rank, name).
    """
    step, generator = run / STEP, torch.Generator().manual_seed(1)
    noise: dict[str, torch.Tensor] = {}
    for rank in range(tp):
        places = {
            int(path.name[6:8]): deepspeed.load(path) for path in sorted(step.glob(f"layer_*-model_{rank:02d}-*"))
        }
        last = max(places)
        for stage in range(pp):
            layers = range(3 + stage * (last - 4) // pp, 3 + (stage + 1) * (last - 4) // pp)
            here = [*([1] if stage in (0, pp - 1) else []), *layers, *([last] if stage == pp - 1 else [])]
            masters: dict[str, torch.Tensor] = {}
            for place in here:
                for name, weight in places[place].items():
                    full = f"tied_modules.embed.{name}" if place == 1 else f"{place}.{name}"
                    if place == 1 and stage and name != "word_embeddings.weight":
                        continue
                    key = (
                        full
                        if weight.dim() == 1 and "query" not in name and "h_to_4h.bias" not in name
                        else f"{rank}{full}"
                    )
                    if key not in noise:
                        noise[key] = (torch.rand(weight.shape, generator=generator) - 0.5) * 2**-12
                    masters[full] = weight.float() * (1 + noise[key]) + (spoil or {}).get((rank, full), 0.0)
            _save_shard(step, stage * tp + rank, dp, masters, tp * pp)


def _save_shard(step: Path, mp: int, dp: int, masters: Mapping[str, torch.Tensor], world: int) -> None:
    groups = [{n: t for n, t in masters.items() if (t.dim() > 1) == decayed} for decayed in (True, False)]
    parts: list[list[torch.Tensor]] = [[] for _ in range(dp)]
    for group in groups:
        flat = torch.cat([tensor.flatten() for tensor in group.values()])
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % (2 * dp)))
        for part, piece in zip(parts, flat.chunk(dp), strict=True):
            part.append(piece.clone())
    for rank, part in enumerate(parts):
        body = {"single_partition_of_fp32_groups": part, "partition_count": [dp] * 2}
        deepspeed.save(
            {"optimizer_state_dict": body}, step / f"bf16_zero_pp_rank_{rank}_mp_rank_{mp:02d}_optim_states.pt"
        )
    path = step / f"mp_rank_{mp:02d}_model_states.pt"
    shapes = [{name: tensor.shape for name, tensor in group.items()} for group in groups]
    deepspeed.save({**deepspeed.load(path), "param_shapes": shapes, "dp_world_size": dp, "mp_world_size": world}, path)


@pytest.mark.parametrize(("tp", "pp", "dp"), [(1, 1, 2), (2, 3, 1), (2, 1, 11)])
def test_masters_of_all_ranks_round_to_the_weights(tp: int, pp: int, dp: int, tmp_path: Path) -> None:
    run = written(tmp_path, tp=tp, pp=pp, dtype="bf16")
    shard(run, tp, pp, dp)
    convert(run, tmp_path / "masters", to=TO, tp=tp, pp=pp, weights="master", options=UNPADDED)
    masters, weights = deepspeed.tensors(tmp_path / "masters"), deepspeed.tensors(run)
    assert_same_bits({name: tensor.to(torch.bfloat16) for name, tensor in masters.items()}, weights)
    assert {tensor.dtype for tensor in masters.values()} == {torch.float32}
    assert all(not torch.equal(masters[name], weights[name].float()) for name in weights if weights[name].any())


def test_masters_that_drifted_are_averaged(tmp_path: Path) -> None:
    run = written(tmp_path, tp=2, dtype="bf16")
    name = "4.input_layernorm.weight"
    shard(run, 2, 1, 2, spoil={(1, name): 0.5})
    with open_checkpoint(run, weights="master") as found, open_checkpoint(run) as weights:
        drift = found["layers.1.attention.norm.weight"].numpy() - weights["layers.1.attention.norm.weight"].numpy()
        assert np.allclose(drift, 0.25, atol=2e-3)
        (loss, *_) = [loss for loss in found.checkpoint.provenance.losses if loss.subject == "input_layernorm.weight"]
        assert "differ by up to 0.5" in loss.reason


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        ({(1, "4.mlp.dense_4h_to_h.weight"): 0.5}, "do not round to the weights"),
        ({(0, "tied_modules.embed.word_embeddings.weight"): 0.5}, "do not round to the weights"),
    ],
)
def test_masters_of_another_step_are_refused(spoil: dict, problem: str, tmp_path: Path) -> None:
    run = written(tmp_path, tp=2, dtype="bf16")
    shard(run, 2, 1, 2, spoil=spoil)
    with pytest.raises(CkptError, match=problem):
        fingerprint(run, weights="master")


def test_a_weight_without_its_master_is_refused_and_the_other_way_round(tmp_path: Path) -> None:
    run = written(tmp_path, tp=2, dtype="bf16")
    file, name = run / STEP / "layer_04-model_01-model_states.pt", "mlp.dense_4h_to_h.bias"
    whole = deepspeed.load(file)
    without = {other: tensor for other, tensor in whole.items() if other != name}
    for trained, stored, problem in (
        (whole, without, f"tensor 'layers.1.{name}', whose fp32 master is there, is missing"),
        (without, whole, f"the fp32 master of 'layers.1.{name}' is missing"),
    ):
        deepspeed.save(trained, file)
        shard(run, 2, 1, 2)
        deepspeed.save(stored, file)
        with pytest.raises(CkptError, match=problem):
            fingerprint(run, weights="master")


# --- to transformers, and refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"mlp__activation": "gelu_erf"}, "mlp.activation"),
        (
            {"attention__norm__eps": 1e-6, "mlp__norm__eps": 1e-6, "final_norm__eps": 1e-6},
            "tokens.norm.eps|layer_norm_epsilon",
        ),
        ({"tokens__norm": ABSENT}, "tokens.norm|layer_norm_epsilon"),
        ({"attention__head_dim": 18}, "head_dim"),
        ({"mlp__ffn": 56}, "mlp.ffn"),
    ],
)
def test_what_bloom_of_transformers_cannot_say_is_refused(facts: Mapping, named: str, tmp_path: Path) -> None:
    run = source(tmp_path / "ir", **{"attention__head_dim": 12, "mlp__ffn": 576, **facts})
    with pytest.raises(CkptError, match=named):
        convert(run, tmp_path / "hf", to="hf", options={"hf_class": "BloomForCausalLM"})


def test_slow_but_exact_is_never_written_and_refused_by_name(tmp_path: Path) -> None:
    ir = source(tmp_path / "ir", attention__head_dim=12, mlp__ffn=576)
    convert(ir, tmp_path / "hf", to="hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    assert config["slow_but_exact"] is False
    path.write_text(json.dumps({**config, "slow_but_exact": True, "pretraining_tp": 4}))
    with pytest.raises(CkptError, match="leaves out two biases"):
        fingerprint(tmp_path / "hf")
    assert fingerprint(tmp_path / "hf", options={"ignore_keys": "slow_but_exact"}) == fingerprint(ir)
    path.write_text(json.dumps({**config, "slow_but_exact": True, "pretraining_tp": 1}))  # of no effect
    assert fingerprint(tmp_path / "hf") == fingerprint(ir)


def test_partial_sums_are_the_same_function_but_for_rounding(tmp_path: Path) -> None:
    from ckpt_core.reference import random_inputs
    from ckpt_core.verify.row_parallel import compare_row_parallel

    with open_checkpoint(source(tmp_path / "ir")) as model:
        inputs = random_inputs((model.architecture, model.architecture), 8)
        report = compare_row_parallel(model.checkpoint, inputs, 4, 1 << 26)
    fp32, bf16 = report.by_dtype["fp32"], report.by_dtype["bf16"]
    assert 0 < fp32.relative < 1e-5 < bf16.relative < 0.5


# --- the real one ----------------------------------------------------------------------------------------------------


def test_bloom_176b_is_planned_in_seconds_and_bounded_memory(tmp_path: Path) -> None:
    """70 layers on 4 tensor parallel ranks, 353 GB, from files that hold headers alone."""
    bloom = example(
        "bloom", layers=70, hidden=14336, attention__heads=112, attention__groups=112, attention__head_dim=128, mlp__ffn=57344,
        tokens__vocabulary=250680, tokens__padded_vocabulary=250880,
    )  # fmt: skip
    write_ir(tmp_path / "ir", bloom, dtype="bf16", sparse=True)
    plan = plan_conversion(tmp_path / "ir", tmp_path / "run", to=TO, tp=4, pp=10)
    for file in plan.target.files:
        path = tmp_path / "run" / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            out.truncate(file.size)
            for offset, data in file.literals:
                out.seek(offset)
                out.write(data)
    for name, data in plan.target.documents.items():
        (tmp_path / "run" / name).write_bytes(data)
    start = time.process_time()
    back = plan_conversion(tmp_path / "run", tmp_path / "hf", to="hf", workers=2)
    assert time.process_time() - start < 10
    assert back.source.parallel == {"tp": 4, "pp": 10, "dp": 1}
    assert back.bytes_read > 350e9 and len(back.source.files) == 4 * 72 + 40
    assert back.peak_memory < 128 << 20
