"""DeepSpeed checkpoints that someone damaged: each is refused by name, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckpt_core import convert
from ckpt_core.testing import example
from ckpt_core.testing.examples import small_numbers, write_ir
from ckpt_tests import deepspeed
from ckpt_tests.deepspeed import Zero
from ckpt_tests.refusals import changed, refused

STEP = "global_step7"
NORM, UP = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"


# --- ZeRO ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zero_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """One model under ZeRO-2 and ZeRO-3 over three ranks, with a frozen parameter."""
    generator = torch.Generator().manual_seed(3)
    layer = "model.layers.0."
    matrices = {
        "model.embed_tokens.weight": (31, 20), f"{layer}self_attn.q_proj.weight": (30, 20), f"{layer}self_attn.k_proj.weight": (6, 20),
        f"{layer}self_attn.v_proj.weight": (6, 20), f"{layer}self_attn.o_proj.weight": (20, 30), f"{layer}mlp.gate_proj.weight": (28, 20),
        UP: (28, 20), f"{layer}mlp.down_proj.weight": (20, 28), "lm_head.weight": (31, 20),
    }  # fmt: skip
    vectors = {f"{layer}input_layernorm.weight": (20,), f"{layer}post_attention_layernorm.weight": (20,), NORM: (20,)}
    groups = [
        {name: torch.randn(shape, generator=generator) for name, shape in group.items()}
        for group in (matrices, vectors)
    ]
    frozen = {f"{layer}self_attn.k_proj.weight": groups[0].pop(f"{layer}self_attn.k_proj.weight")}
    zero = Zero(groups, frozen=frozen)
    config = {
        "model_type": "llama", "vocab_size": 31, "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 1, "num_attention_heads": 5,
        "num_key_value_heads": 1, "head_dim": 6, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
    }  # fmt: skip
    found = {}
    for stage in (2, 3):
        found[stage] = tmp_path_factory.mktemp("zero") / "run"
        step = found[stage] / STEP
        if stage == 2:
            deepspeed.write_partitioned_groups(step, zero, 3)
        else:
            deepspeed.write_partitioned_parameters(step, zero, 3, 1000)
        deepspeed.finish(found[stage], STEP, config)
    return found


def optimizer(rank: int) -> str:
    return f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


STATES = {2: "mp_rank_00_model_states.pt", 3: "zero_pp_rank_0_mp_rank_00_model_states.pt"}


def of_optimizer(change: Callable[[dict], object]) -> Callable[[dict], object]:
    return lambda content: change(content["optimizer_state_dict"])


def spoil(groups: list, number: int) -> None:
    groups[number] = groups[number].clone()
    groups[number].view(-1)[len(groups[number]) // 2] += 1


def shorten(groups: list, number: int) -> None:
    groups[number] = groups[number][:-40].clone()


def swap(shapes: list) -> None:
    names = list(shapes[0])
    shapes[0] = {name: shapes[0][name] for name in [names[1], names[0], *names[2:]]}


FLAT, SUBGROUPS = "single_partition_of_fp32_groups", "fp32_flat_groups"
ZERO: dict[str, tuple[int, str, Callable[[dict], object], str]] = {
    "a master": (2, optimizer(1), of_optimizer(lambda o: spoil(o[FLAT], 0)), "does not round to its copy in bf16|do not round"),
    "elements are missing": (2, optimizer(2), of_optimizer(lambda o: shorten(o[FLAT], 0)), "does not have the elements of its parameters"),
    "a group too many": (2, optimizer(0), of_optimizer(lambda o: o[FLAT].append(torch.zeros(4))), "different numbers of parameter groups"),
    "groups are not tensors": (2, optimizer(0), of_optimizer(lambda o: o.update({FLAT: "gone"})), "not a list of flat tensors"),
    "other ranks": (2, optimizer(1), of_optimizer(lambda o: o.update(partition_count=[4, 4])), "divided over another number of ranks"),
    "no shapes": (2, STATES[2], lambda c: c.pop("param_shapes"), "param_shapes is missing"),
    "shapes of None": (2, STATES[2], lambda c: c.update(param_shapes=None), "param_shapes is missing.*(.|\\n)*None, beside zero_stage 2"),
    "no shapes of stage 3": (3, STATES[3], lambda c: c.pop("param_shapes"), "param_shapes is missing"),
    "shapes of None of stage 3": (3, STATES[3], lambda c: c.update(param_shapes=None), "param_shapes is missing"),
    "another stage": (2, optimizer(1), of_optimizer(lambda o: o.update(zero_stage=3)), "zero_stage is 3, and the masters are kept"),
    "no such stage": (2, optimizer(0), of_optimizer(lambda o: o.update(zero_stage=7)), "zero_stage is 7"),
    "another stage than 3": (3, optimizer(2), of_optimizer(lambda o: o.update(zero_stage=1)), "zero_stage is 1, and the masters are kept"),
    "another stage in the config": (2, STATES[2], lambda c: c.update(ds_config={"zero_optimization": {"stage": 1}}), "zero_stage is 2 in the optimizer's file, and 1"),
    "masters of another stage": (2, optimizer(1), of_optimizer(lambda o: [o.pop("zero_stage"), o.update({SUBGROUPS: o.pop(FLAT)})]), "of another stage than the model states"),
    "no optimizer state": (2, optimizer(1), lambda c: c.pop("optimizer_state_dict"), "not a list of flat tensors"),
    "a shape": (2, STATES[2], lambda c: c["param_shapes"][0].update({UP: (28, "x")}), "is not a shape"),
    "a parameter of another size": (2, STATES[2], lambda c: c["param_shapes"][0].update({UP: (28, 2000)}), "does not have the elements"),
    "a parameter is missing": (2, STATES[2], lambda c: [c["param_shapes"][1].pop(NORM), c["module"].pop(NORM)], rf"does not have the elements|{NORM}' is missing"),
    "a parameter is renamed": (2, STATES[2], lambda c: c["module"].update({"surprise": c["module"].pop(NORM)}), "'surprise' is not part"),
    "a frozen parameter": (2, STATES[2], lambda c: c.update(frozen_param_fragments={}), "frozen parameter .*k_proj.weight' is missing"),
    "a weight": (2, STATES[2], lambda c: c["module"][UP].view(-1)[300].add_(1), f"does not round|{UP}"),
    "a tied parameter of nobody": (2, STATES[2], lambda c: c.update(shared_params={"lm_head.weight": "nobody"}), "nobody"),
    "another world": (2, STATES[2], lambda c: c.update(dp_world_size=4), "dp_world_size is 4"),
    "no module": (2, STATES[2], lambda c: c.update(module=7), "module is not a dict"),
    "no pipeline module": (2, STATES[2], lambda c: c.update(module={"language_model": {}}), "without a pipeline module"),
    "no tensor": (2, STATES[2], lambda c: c["module"].update({NORM: "gone"}), "is not a tensor"),
    "the order of shapes": (3, STATES[3], lambda c: c["param_shapes"][1].update({UP: (27, 20)}), "does not have the elements of the parameters"),
    "a subgroup": (3, optimizer(1), of_optimizer(lambda o: o[SUBGROUPS].pop()), "does not have the elements of the parameters"),
    "a subgroup in a rank": (3, optimizer(2), of_optimizer(lambda o: shorten(o[SUBGROUPS], 1)), "does not have the elements of the parameters"),
}  # fmt: skip


@pytest.mark.parametrize("name", ZERO)
def test_a_changed_file_of_zero_is_refused(name: str, zero_runs: dict[int, Path], tmp_path: Path) -> None:
    stage, file, change, problem = ZERO[name]
    run = shutil.copytree(zero_runs[stage], tmp_path / "run")
    changed(run / STEP / file, change, deepspeed.load, deepspeed.save)
    refused(run, problem=problem)


def test_the_untouched_runs_are_read(zero_runs: dict[int, Path], tmp_path: Path) -> None:
    """Else the refusals above prove nothing."""
    for stage, run in zero_runs.items():
        convert(run, tmp_path / str(stage), to="ir")


FILES: dict[str, tuple[int, Callable[[Path], object], str]] = {
    "a rank's optimizer is missing": (2, lambda step: (step / optimizer(1)).unlink(), "data parallel rank 1"),
    "the last optimizer is missing": (2, lambda step: (step / optimizer(2)).unlink(), "divided over another number of ranks"),
    "two optimizers of one rank": (2, lambda step: shutil.copy(step / optimizer(1), step / optimizer(1)[5:]), "two files are of the same ranks"),
    "ranks are swapped": (2, lambda step: _swapped(step / optimizer(0), step / optimizer(1)), "do not round|does not round"),
    "truncated": (2, lambda step: _truncated(step / optimizer(0)), "bf16_zero_pp_rank_0"),
    "a model rank is missing": (3, lambda step: (step / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink(), "data parallel rank 1"),
    "tensor parallel": (2, lambda step: shutil.copy(step / STATES[2], step / "mp_rank_01_model_states.pt"), "tensor parallel ranks of DeepSpeed"),
    "another step": (2, lambda step: (step.parent / "latest").write_text("global_step9"), "is not there"),
    "a step elsewhere": (2, lambda step: (step.parent / "latest").write_text("../global_step7"), "names no folder"),
    "a config of another model": (2, lambda step: _config(step, hidden_size=24), "shape"),
    "a config with more layers": (2, lambda step: _config(step, num_hidden_layers=2), "is missing"),
    "an unknown key": (2, lambda step: _config(step, surprise=1), "surprise"),
    "expert files": (2, lambda step: (step / "layer_0_expert_1_mp_rank_00_model_states.pt").write_bytes(b""), "expert layers"),
}  # fmt: skip


def _swapped(one: Path, two: Path) -> None:
    one.rename(one.with_suffix(".aside"))
    two.rename(one)
    one.with_suffix(".aside").rename(two)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _config(step: Path, **keys: object) -> None:
    path = step.parent / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize("name", FILES)
def test_other_files_of_zero_are_refused(name: str, zero_runs: dict[int, Path], tmp_path: Path) -> None:
    stage, change, problem = FILES[name]
    run = shutil.copytree(zero_runs[stage], tmp_path / "run")
    change(run / STEP)
    refused(run, problem=problem, format="deepspeed")


def test_empty_weights_are_refused(zero_runs: dict[int, Path]) -> None:
    refused(zero_runs[3], problem="no weights but the fp32 masters", weights="model")


# --- the pipeline module -------------------------------------------------------------------------------------------

LAYER, RANK = "layer_{:02d}-model_{:02d}-model_states.pt", "mp_rank_{:02d}_model_states.pt"
QKV, NORMED = "self_attention.query_key_value.weight", "input_layernorm.weight"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BLOOM in two by three ranks."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_ir(folder / "ir", example("bloom", hidden=144, layers=3), values=small_numbers)
    options = {"make_vocab_size_divisible_by": "1"}
    convert(folder / "ir", folder / "run", to="megatron-deepspeed", tp=2, pp=3, options=options)
    (folder / "run" / "ckpt-receipt.json").unlink()
    return folder / "run"


def on_args(**values: object) -> Callable[[dict], object]:
    return lambda content: vars(content["args"]).update(values)


PIPELINE: dict[str, tuple[str, Callable[[dict], object], str]] = {
    "drop": (LAYER.format(4, 1), lambda c: c.pop(QKV), f"'layers.1.{QKV}' is missing"),
    "rename": (LAYER.format(4, 0), lambda c: c.update({"surprise": c.pop(QKV)}), "'layers.1.surprise' is not part"),
    "add": (LAYER.format(7, 0), lambda c: c.update(surprise=torch.zeros(3)), "'final_norm.surprise' is not part"),
    "reshape": (LAYER.format(3, 0), lambda c: c.update({QKV: c[QKV].t().clone()}), "does not have the shape"),
    "another dtype": (LAYER.format(3, 1), lambda c: c.update({QKV: c[QKV].half()}), "different dtypes: fp16, fp32"),
    "a norm in another dtype": (LAYER.format(3, 1), lambda c: c.update({NORMED: c[NORMED].long()}), "int64"),
    "no tensor": (LAYER.format(3, 1), lambda c: c.update({NORMED: None}), "is not a tensor"),
    "fewer layers": (RANK.format(0), on_args(num_layers=2), "layer_07 too many|num_layers"),
    "more layers": (RANK.format(0), on_args(num_layers=4), "missing layer_0[678]|num_layers"),
    "other ranks": (RANK.format(0), on_args(tensor_model_parallel_size=4), "tensor_model_parallel_size is 4"),
    "other stages": (RANK.format(0), on_args(pipeline_model_parallel_size=1), "6 mp_rank files"),
    "one rank's args": (RANK.format(4), on_args(layernorm_epsilon=0.5), "args.layernorm_epsilon is 0.5"),
    "an unknown arg": (RANK.format(0), on_args(surprise=True), "surprise"),
    "another mask": (RANK.format(0), on_args(pretrain_causal_attention=False), "pretrain_causal_attention"),
    "another activation": (RANK.format(0), on_args(glu_activation="liglu", bias_gelu_fusion=False), "liglu"),
    "a strange position": (RANK.format(0), on_args(position_embedding_type=7), "position_embedding_type"),
    "a wrong kind of value": (RANK.format(0), on_args(hidden_size="wide"), "hidden_size"),
    "no args": (RANK.format(0), lambda c: c.update(args=7), "not a Namespace"),
    "another vocabulary": (RANK.format(0), lambda c: c["checkpoint_info"].update(padded_vocab_size=999), "disagree"),
    "another world": (RANK.format(3), lambda c: c.update(mp_world_size=8), "mp_world_size is 8"),
}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINE)
def test_a_changed_file_of_a_pipeline_is_refused(name: str, pipeline: Path, tmp_path: Path) -> None:
    file, change, problem = PIPELINE[name]
    run = shutil.copytree(pipeline, tmp_path / "run")
    changed(run / "global_step0" / file, change, deepspeed.load, deepspeed.save)
    refused(run, problem=problem)


LAYER_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a layer is missing": (lambda step: [path.unlink() for path in step.glob("layer_04-*")], "missing layer_04"),
    "a rank's layer is missing": (lambda step: (step / LAYER.format(4, 1)).unlink(), "layer 04, tensor parallel rank 1"),
    "a layer of GPT-NeoX": (lambda step: shutil.copy(step / LAYER.format(1, 0), step / LAYER.format(2, 0)), "GPT-NeoX"),
    "one layer twice": (lambda step: shutil.copy(step / LAYER.format(3, 0), step / "layer_3-model_00-model_states.pt"), "two files"),
    "no states of a rank": (lambda step: (step / RANK.format(5)).unlink(), "5 mp_rank files|mp_world_size"),
    "no states of a rank between": (lambda step: (step / RANK.format(1)).unlink(), "model parallel rank 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYER_FILES)
def test_other_files_of_a_pipeline_are_refused(name: str, pipeline: Path, tmp_path: Path) -> None:
    change, problem = LAYER_FILES[name]
    run = shutil.copytree(pipeline, tmp_path / "run")
    change(run / "global_step0")
    refused(run, problem=problem)


def test_the_untouched_pipeline_is_read(pipeline: Path, tmp_path: Path) -> None:
    convert(pipeline, tmp_path / "ir", to="ir")
