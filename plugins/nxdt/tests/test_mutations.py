"""Neuron checkpoints that someone damaged: each is refused by name, and nothing is written."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckpt_core import convert
from ckpt_tests import nxdt, refusals, tiny
from ckpt_tests.goldens import Golden, each
from ckpt_tests.refusals import changed

refused = functools.partial(refusals.refused, format="nxdt")

FILE = "model/dp_rank_00_tp_rank_{:02d}_pp_rank_{:02d}.pt"
LAYER = "model.layers.0."
STYLES = {
    "fused": {"tp": 2, "pp": 2},
    "linear": {"tp": 8, "pp": 2, "options": {"qkv": "linear", "hw_backend": "trn1"}},
    "megatron": {"tp": 2, "pp": 2, "options": {"model_style": "megatron"}},
    "xser": {"tp": 2, "pp": 2, "options": {"xser": "true"}},
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in several arrangements, without receipts."""
    folder = tmp_path_factory.mktemp("originals")
    tiny.build(folder / "hf", "llama", vocab_size=64, num_attention_heads=8, num_key_value_heads=4, num_hidden_layers=2)
    for name, arguments in STYLES.items():
        convert(folder / "hf", folder / name, to="nxdt", **arguments)
        (folder / name / "ckpt-receipt.json").unlink()
    return {name: folder / name for name in (*STYLES, "hf")}


def copied(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def shifted(content: dict, name: str) -> None:
    content[name] = content[name] + 1


CHANGES: dict[str, tuple[str, Callable[[dict], object], int, int, str]] = {
    "drop": ("fused", lambda c: c.pop(f"{LAYER}mlp.down_proj.weight"), 1, 0, "'model.layers.0.mlp.down_proj.weight' is missing"),
    "rename": ("fused", lambda c: c.update({f"{LAYER}mlp.down.weight": c.pop(f"{LAYER}mlp.down_proj.weight")}), 0, 0, "mlp.down.weight' is not part"),
    "add": ("fused", lambda c: c.update({"model.extra.weight": torch.zeros(3)}), 1, 1, "'model.extra.weight' is not part"),
    "a layer too many": ("fused", lambda c: c.update({"model.layers.2.input_layernorm.weight": torch.zeros(96)}), 0, 1, r"layers\.2.*is not part"),
    "reshape": ("fused", lambda c: c.update({f"{LAYER}mlp.down_proj.weight": torch.zeros(28, 96)}), 0, 0, "does not have the shape"),
    "one axis more": ("fused", lambda c: c.update({f"{LAYER}mlp.down_proj.weight": torch.zeros(1, 96, 28)}), 0, 0, "does not have the shape"),
    "other heads": ("fused", lambda c: c.update({f"{LAYER}self_attn.qkv_proj.weight_qkv": torch.zeros(97, 96)}), 0, 0, "does not have the shape"),
    "another dtype": ("fused", lambda c: c.update({f"{LAYER}mlp.down_proj.weight": torch.zeros(96, 28).bfloat16()}), 1, 0, "different dtypes: bf16, fp32"),
    "integers": ("fused", lambda c: c.update({f"{LAYER}input_layernorm.weight": torch.zeros(96, dtype=torch.int64)}), 0, 0, "int64"),
    "no tensor": ("fused", lambda c: c.update({"lm_head.weight": "gone"}), 0, 1, "'lm_head.weight' is not a tensor"),
    "no name": ("fused", lambda c: c.update({7: torch.zeros(3)}), 0, 1, "the entry 7 is not a tensor"),
    "a norm of one rank": ("fused", lambda c: shifted(c, f"{LAYER}input_layernorm.weight"), 1, 0, "two copies of layers.0.attention.norm.weight differ"),
    "copies of a head": ("linear", lambda c: shifted(c, f"{LAYER}self_attn.qkv_proj.weight_k"), 3, 0, "differ, so they are not copies"),
    "a value of a copied head": ("linear", lambda c: shifted(c, "model.layers.1.self_attn.qkv_proj.weight_v"), 3, 1, "two copies of layers.1.attention.v.weight differ"),
    "adapters": ("fused", lambda c: c.update({f"{LAYER}mlp.down_proj.lora_A.weight": torch.zeros(3)}), 0, 0, "LoRA adapters"),
    "an adapters' config": ("fused", lambda c: c.update({"lora_config": {"r": 8}}), 0, 0, "LoRA adapters"),
    "names of nothing": ("fused", lambda c: [c.update({f"x.{name}": c.pop(name)}) for name in list(c)], 0, 0, "is not a matrix on tensor parallel rank 0"),
    "the norm of another style": ("megatron", lambda c: c.update({"model.norm.weight": torch.zeros(96)}), 0, 1, "'model.norm.weight' is not part"),
    "drop q": ("megatron", lambda c: c.pop("language_model.encoder.layers.0.self_attention.query.weight"), 0, 0, "self_attention.query.weight' is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_rank_file_is_refused(name: str, originals: dict[str, Path], tmp_path: Path) -> None:
    style, change, tp, pp, problem = CHANGES[name]
    run = copied(originals[style], tmp_path)
    changed(run / FILE.format(tp, pp), change)
    refused(run, problem=problem)


def swap(one: Path, two: Path) -> None:
    aside = one.with_suffix(".aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


FOLDERS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a missing rank": ("fused", lambda run: (run / FILE.format(1, 1)).unlink(), "no file of rank tp=1 pp=1"),
    "a stale rank": ("fused", lambda run: shutil.copy(run / FILE.format(1, 1), run / FILE.format(2, 1)), "no file of rank tp=2 pp=0"),
    "a rank far off": ("fused", lambda run: shutil.copy(run / FILE.format(1, 1), run / FILE.format(10**15, 1)), "no file of rank tp=2 pp=0"),
    "another data parallel rank": (
        "fused", lambda run: shutil.copy(run / FILE.format(1, 1), run / "model/dp_rank_01_tp_rank_01_pp_rank_01.pt"), "another data parallel rank"),
    "old and new names": ("fused", lambda run: shutil.copy(run / FILE.format(1, 1), run / "model/tp_rank_01_pp_rank_01"), "two files of tp=1 pp=1"),
    "no weights": ("fused", lambda run: shutil.rmtree(run / "model"), "there are no weights here"),
    "an unfinished save": ("fused", lambda run: (run / "done").unlink(), "was not finished"),
    "no dict": ("fused", lambda run: torch.save([1], run / FILE.format(0, 0)), "holds no dict of tensors"),
    "no torch file": ("fused", lambda run: (run / FILE.format(0, 0)).write_bytes(b"nothing"), "not a torch file"),
    "a stage of another rank": (
        "fused", lambda run: shutil.copy(run / FILE.format(0, 0), run / FILE.format(0, 1)), "'model.norm.weight' is missing"),
    "a missing tensor file": ("xser", lambda run: (run / f"{FILE.format(0, 1)}.tensors/tensor_3.pt").unlink(), "is missing"),
    "all tensor files missing": ("xser", lambda run: shutil.rmtree(run / f"{FILE.format(0, 1)}.tensors"), "and of 7 more"),
    "tensors of another rank": (
        "xser", lambda run: swap(run / f"{FILE.format(0, 1)}.tensors/tensor_1.pt", run / f"{FILE.format(0, 1)}.tensors/tensor_2.pt"), "not what the info file says"),
    "an attack": ("fused", lambda run: (run / FILE.format(0, 0)).write_bytes(attack()), "os.*system|system"),
}  # fmt: skip


def attack() -> bytes:
    import io
    import os

    class Attack:
        def __reduce__(self):
            return os.system, ("true",)

    out = io.BytesIO()
    torch.save({"model.norm.weight": Attack()}, out)
    return out.getvalue()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_changed_folder_is_refused(name: str, originals: dict[str, Path], tmp_path: Path) -> None:
    style, change, problem = FOLDERS[name]
    run = copied(originals[style], tmp_path)
    change(run)
    refused(run, problem=problem)


CONFIGS: dict[str, tuple[dict, str]] = {
    "fewer layers": ({"num_hidden_layers": 1}, r"layers\.1.*is not part of this architecture"),
    "more layers": ({"num_hidden_layers": 3}, r"layers\.2.*is missing"),
    "other heads": ({"num_attention_heads": 4, "head_dim": 24}, "does not have the shape"),
    "other groups": ({"num_key_value_heads": 2}, "2 times the 2 key-value heads of the model"),
    "a wider model": ({"hidden_size": 112, "head_dim": 14}, "does not have the shape"),
    "another width": ({"intermediate_size": 64}, "does not have the shape"),
    "a larger vocabulary": ({"vocab_size": 65}, "does not have the shape|does not divide"),
    "a head_dim of its own": ({"head_dim": 16}, "head_dim is not what NxDT computes with"),
    "biases": ({"attention_bias": True}, "'attention_bias' has a value that is not supported"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act"),
    "another model": ({"model_type": "gpt2"}, "no job has a model of this type"),
    "a scaling that nobody has proven": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'rope_scaling.rope_type' has a value that is not supported"),
    "half a scaling": ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "'low_freq_factor' is missing"),
    "a base for transformers 5 alone": ({"rope_parameters": {"rope_theta": 5e5}}, "unknown config key 'rope_parameters'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_does_not_fit_is_refused(name: str, originals: dict[str, Path], tmp_path: Path) -> None:
    keys, problem = CONFIGS[name]
    run = copied(originals["fused"], tmp_path)
    body = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**body, **keys}))
    refused(run, problem=problem)


def test_two_configs_must_agree(originals: dict[str, Path], tmp_path: Path) -> None:
    run = copied(originals["fused"], tmp_path)
    body = json.loads((originals["hf"] / "config.json").read_text())
    body |= {"rms_norm_eps": 1e-3}
    (tmp_path / "config.json").write_text(json.dumps(body))
    refused(
        run,
        problem="norm.eps is 1e-06 in the checkpoint, 0.001 in --config",
        config=str(tmp_path / "config.json"),
    )


@pytest.mark.parametrize(
    ("style", "options", "problem"),
    [
        ("fused", {"model_style": "megatron"}, "contradict -o model_style=megatron"),
        ("fused", {"qkv": "linear"}, "contradict -o qkv=linear"),
        ("linear", {"kv_size_multiplier": "4"}, "contradict -o kv_size_multiplier=4"),
        ("linear", {"hw_backend": "trn2"}, "trn2 job has the 2 copies of every key-value head on neighbouring ranks"),
    ],
)
def test_options_that_the_files_contradict(
    style: str, options: dict, problem: str, originals: dict[str, Path], tmp_path: Path
) -> None:
    refused(copied(originals[style], tmp_path), problem=problem, options=options)


# --- masters -------------------------------------------------------------------------------------------------------


def has_masters(golden: Golden) -> bool:
    return bool(golden.case.get("master_weights_saved"))


def optimizer(run: Path, dp: int, tp: int) -> Path:
    return next(run.glob("*/optim")) / f"dp_rank_{dp:02d}_tp_rank_{tp:02d}_pp_rank_00.pt"


def on_optimizer(run: Path, change: Callable[[dict], object], ranks: list[tuple[int, int]]) -> None:
    for dp, tp in ranks:
        path = optimizer(run, dp, tp)
        with nxdt.torch_xla():
            content = torch.load(path, weights_only=False)
            change(content)
            torch.save(content, path)


MASTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "shards of one rank alone": (lambda run: [optimizer(run, dp, tp).unlink() for dp in (1, 2, 3) for tp in (0, 1)], "is not one of 1 shards"),
    "a shard too few": (lambda run: optimizer(run, 3, 1).unlink(), "is not one of 3 shards"),
    "no file of a rank": (lambda run: [optimizer(run, dp, 1).unlink() for dp in range(4)], "no fp32 masters of rank tp=1 pp=0"),
    "a rank between others": (lambda run: [optimizer(run, 1, tp).unlink() for tp in (0, 1)], "data parallel ranks of tp=0 pp=0 are missing"),
    "numbers that are none": (lambda run: on_optimizer(run, lambda c: c.update(shape_info={str(key): value for key, value in c["shape_info"].items()}), [(0, 0)]), "shape_info does not describe"),
    "no masters": (lambda run: on_optimizer(run, lambda c: c.pop("sharded_master_weights"), [(0, 0)]), "no fp32 masters"),
    "no shapes": (lambda run: on_optimizer(run, lambda c: c.pop("shape_info"), [(0, 0)]), "shape_info does not describe"),
    "another order": (lambda run: on_optimizer(run, lambda c: c["shape_info"].update({0: c["shape_info"][8], 8: c["shape_info"][0]}), [(0, 0)]), "order of the fp32 masters"),
    "shapes that are none": (lambda run: on_optimizer(run, lambda c: c["shape_info"].update({0: 7}), [(0, 0)]), "order of the fp32 masters"),
    "a shard that is none": (lambda run: on_optimizer(run, lambda c: c["sharded_master_weights"].update({2: "gone"}), [(1, 0)]), "is not one of 4 shards"),
}  # fmt: skip


@each("nxdt", has_masters)
@pytest.mark.parametrize("name", MASTERS)
def test_masters_that_are_not_complete_are_refused(golden: Golden, name: str, tmp_path: Path) -> None:
    change, problem = MASTERS[name]
    run = Path(shutil.copytree(golden.checkpoint, tmp_path / "run"))
    change(run)
    refused(run, problem=problem, config=str(golden.folder / "config/config.json"), weights="master")


@each("nxdt", has_masters)
def test_masters_stand_in_for_weights_that_were_not_saved(golden: Golden, tmp_path: Path) -> None:
    """avoid_saving_lower_precision_weights: references and info files, and no tensors."""
    config = str(golden.folder / "config/config.json")
    run = Path(shutil.copytree(golden.checkpoint, tmp_path / "run"))
    for folder in run.glob("*/model/*.tensors"):
        shutil.rmtree(folder)
    expected = convert(golden.checkpoint, tmp_path / "masters", to="ir", config=config, weights="master")
    assert convert(run, tmp_path / "ir", to="ir", config=config).fingerprint == expected.fingerprint
    shutil.rmtree(tmp_path / "ir")
    refused(run, problem="the file of tensor .* is missing", config=config, weights="model")
