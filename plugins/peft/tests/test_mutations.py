"""Adapters that are damaged, of another base, or more than a merge: each refused by name, and nothing written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration

from ckpt_core import convert, open_checkpoint
from ckpt_core.cli.main import main
from ckpt_core.errors import CkptError
from ckpt_tests import adapters
from ckpt_tests.adapters import PREFIX, embedding_pair, pair
from ckpt_tests.folders import assert_nothing_at

Q, V = (f"model.layers.1.self_attn.{part}_proj" for part in "qv")
EMBED = "model.embed_tokens"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted") / "base"
    adapters.base(folder, tie_word_embeddings=True)
    return folder


@pytest.fixture(scope="module")
def tensors(base: Path) -> Tensors:
    before = load_file(base / "model.safetensors")
    return pair(Q, before[f"{Q}.weight"]) | pair(V, before[f"{V}.weight"])


def key(module: str, side: str) -> str:
    return f"{PREFIX}{module}.lora_{side}.weight"


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace(old, new): tensor for key, tensor in tensors.items()}


def more(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.ones(shape).to(dtype)}


def reshaped(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.ones(shape)}


def same(tensors: Tensors) -> Tensors:
    return tensors


# What is done to the tensors and to the config, and the words that name it.
DAMAGED: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, object], tuple[str, ...]]] = {
    "B is missing": (without(key(Q, "B")), {}, (f"the matrix B of {Q} is missing",)),
    "A is missing": (without(key(V, "A")), {}, (f"the matrix A of {V} is missing",)),
    "a pair of one of the layers is missing": (
        lambda t: without(key(V, "A"))(without(key(V, "B"))(t)),
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 1, "layers_pattern": "lay(?:ers)"}, (f"target_modules names {V}",),
    ),
    "a pair is missing": (lambda t: without(key(V, "A"))(without(key(V, "B"))(t)), {}, (f"target_modules names {V}", "no tensors of it")),
    "a module that the base lacks": (renamed(Q, "model.layers.9.self_attn.q_proj"), {}, ("the base has no model.layers.9.self_attn.q_proj",)),
    "a misspelt module": (renamed("v_proj", "v_prj"), {}, ("v_prj", "did you mean", "v_proj")),
    "another prefix": (renamed(PREFIX, "model."), {}, ("is not of an adapter", PREFIX)),
    "a tensor of no known kind": (more(f"{PREFIX}{Q}.lora_C.weight", 4, 4), {}, ("the base has no", "lora_C")),
    "a tensor twice": (more(f"{PREFIX}{Q}.lora_A.default.weight", 4, 96), {}, ("two tensors are",)),
    "another rank than the config's": (same, {"r": 8}, ("the rank of", Q, "4", "8")),
    "A of another width": (reshaped(key(Q, "A"), 4, 95), {}, (f"the shapes of {Q} do not fit", "(4, 95)")),
    "B of another height": (reshaped(key(Q, "B"), 95, 4), {}, (f"the shapes of {Q} do not fit", "(95, 4)")),
    "ranks of A and B that differ": (reshaped(key(Q, "B"), 96, 3), {}, (f"the shapes of {Q} do not fit",)),
    "a vector for a matrix": (reshaped(key(Q, "A"), 96), {}, (f"the shapes of {Q} do not fit",)),
    "whole numbers": (lambda t: {**t, key(Q, "A"): torch.ones(4, 96, dtype=torch.int32)}, {}, (key(Q, "A"), "int32")),
    "float64": (lambda t: {**t, key(Q, "A"): torch.ones(4, 96, dtype=torch.float64)}, {}, (key(Q, "A"), "fp64")),
    "a magnitude without DoRA": (more(f"{PREFIX}{Q}.lora_magnitude_vector", 96), {}, (Q, "magnitude", "use_dora")),
    "DoRA without magnitudes": (same, {"use_dora": True}, (Q, "no magnitude", "use_dora")),
    "a magnitude of another length": (more(f"{PREFIX}{Q}.lora_magnitude_vector", 95), {"use_dora": True}, (Q, "do not fit")),
    "a bias of B without lora_bias": (more(f"{PREFIX}{Q}.lora_B.bias", 96), {}, (Q, "bias of B", "lora_bias")),
    "a bias of B where the base has none": (
        lambda t: more(f"{PREFIX}{V}.lora_B.bias", 32)(more(f"{PREFIX}{Q}.lora_B.bias", 96)(t)), {"lora_bias": True}, ("lora_B.bias", "no bias in the base")
    ),
    "a saved tensor of another shape": (more(f"{PREFIX}model.norm.weight", 95), {}, ("model.norm.weight", "shape (95,)", "shape (96,)")),
    "a saved module that is not there": (same, {"modules_to_save": ["lm_head"]}, ("modules_to_save names 'lm_head'",)),
    "a target parameter that is not there": (same, {"target_parameters": ["mlp.experts.down_proj"]}, ("target_parameters names 'mlp.experts.down_proj'",)),
    "more tokens, of the norm": (more(f"{PREFIX}{EMBED}.weight", 67, 95), {}, (EMBED, "(67, 95)")),
    "a part of what modules_to_save means": (
        more(f"{PREFIX}model.layers.0.input_layernorm.weight", 96), {"modules_to_save": ["input_layernorm"]},
        ("modules_to_save means model.layers.1.input_layernorm.weight",),
    ),
    "a part of what target_parameters means": (same, {"target_parameters": ["q_proj.weight"]}, ("target_parameters means model.layers.0.self_attn.q_proj.weight",)),
    "a tensor that is saved twice and differs": (
        lambda t: {**t, f"{PREFIX}model.norm.weight": torch.ones(96), f"{PREFIX}model.norm.modules_to_save.weight": torch.zeros(96)},
        {"modules_to_save": ["model.norm"]}, (f"{PREFIX}model.norm.modules_to_save.weight", "differ"),
    ),
    "what was replaced, by nothing": (more(f"{PREFIX}model.norm.original_module.weight", 96), {}, ("original_module", "was replaced")),
    "no tensors": (lambda t: {}, {"target_modules": None}, ("the adapter has no tensors",)),
}  # fmt: skip

# Config keys that ask for what a merge is not, or say nothing known.
REFUSED: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "another method": ({"peft_type": "IA3"}, ("peft_type 'IA3'",)),
    "no rank": ({"r": None}, ("'r'", "rank")),
    "a rank of text": ({"r": "8"}, ("'r'", "'8'")),
    "an infinite alpha": ({"lora_alpha": 1e999}, ("Infinity is not a number",)),
    "a pattern of text": ({"rank_pattern": {"q_proj": "6"}}, ("rank_pattern",)),
    "a pattern that is none": ({"alpha_pattern": {"(": 6}}, ("not a regular expression", "(")),
    "a repeat of repeats": ({"target_modules": r"(model\.?)+q_proj!"}, ("may take for ever", "several ways")),
    "a repeat of alternatives": ({"exclude_modules": r"(?:mo|del|m)*!"}, ("may take for ever", "several ways")),
    "too many repeats": ({"alpha_pattern": {".*" * 9: 6}}, ("may take for ever", "one after the other")),
    "a pattern of layers that may never end": ({"layers_to_transform": [1], "layers_pattern": "(.+)+"}, ("may take for ever",)),
    "a pattern of layers that is none": ({"layers_to_transform": [1], "layers_pattern": ["("]}, ("not a regular expression",)),
    "a pattern of layers with a group": ({"layers_to_transform": [1], "layers_pattern": "(layers)"}, ("layers_pattern", "(?:...)")),
    "a pattern of layers that fits none": ({"layers_to_transform": [1], "layers_pattern": "h"}, ("no module of the base is in one", "'h'")),
    "a long pattern": ({"target_modules": "q" * 5000}, ("too long a pattern",)),
    "a flag of text": ({"use_rslora": "yes"}, ("use_rslora",)),
    "an unknown key": ({"use_dorra": True}, ("unknown config key 'use_dorra'", "use_dora")),
    "modules of Megatron": ({"megatron_config": {"tp": 2}}, ("megatron_config",)),
    "repeated layers": ({"layer_replication": [[0, 2]]}, ("layer_replication",)),
    "rows of the embedding": ({"trainable_token_indices": [1]}, ("trainable_token_indices",)),
    "aLoRA": ({"alora_invocation_tokens": [1]}, ("alora_invocation_tokens",)),
    "QALoRA": ({"use_qalora": True}, ("use_qalora",)),
    "PiSSA": ({"init_lora_weights": "pissa_niter_16"}, ("PiSSA", "residual_base")),
    "OLoRA": ({"init_lora_weights": "olora"}, ("OLoRA", "residual_base")),
    "CorDA": ({"init_lora_weights": "corda"}, ("CorDA", "residual_base")),
    "LoftQ": ({"init_lora_weights": "loftq"}, ("LoftQ", "residual_base")),
    "an unknown start": ({"init_lora_weights": "fancy"}, ("init_lora_weights", "fancy")),
}  # fmt: skip


def saved(folder: Path, tensors: Tensors, **config: object) -> Path:
    return adapters.save(folder, tensors, **{"target_modules": r"model\.layers\.1\.self_attn\.[qv]_proj", **config})


@pytest.mark.parametrize("name", [*DAMAGED, *REFUSED])
def test_it_is_refused_by_name(name: str, base: Path, tensors: Tensors, tmp_path: Path) -> None:
    change, config, words = DAMAGED[name] if name in DAMAGED else (same, *REFUSED[name])
    adapter = saved(tmp_path / "adapter", change(dict(tensors)), **config)
    with pytest.raises(CkptError) as refusal:
        convert(adapter, tmp_path / "out", to="hf", options={"base": str(base)})
    for word in words:
        assert word in str(refusal.value)
    assert_nothing_at(tmp_path / "out")


def test_a_pair_that_is_refused_is_not_called_missing(base: Path, tensors: Tensors, tmp_path: Path) -> None:
    adapter = saved(tmp_path / "adapter", reshaped(key(Q, "A"), 4, 95)(dict(tensors)))
    with pytest.raises(CkptError, match="do not fit") as refusal:
        open_checkpoint(adapter, options={"base": str(base)})
    assert "no tensors of it" not in str(refusal.value)


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"])
def test_a_pattern_that_is_none_is_one_of_the_config(name: str, base: Path, tensors: Tensors, tmp_path: Path) -> None:
    adapter = saved(tmp_path / "adapter", tensors, **{name: {"(": 6} if name.endswith("pattern") else "("})
    with pytest.raises(CkptError, match=rf"'{name}': .* is not a regular expression") as refusal:
        open_checkpoint(adapter, options={"base": str(base)})
    assert refusal.value.file == str(adapter / "adapter_config.json")


@pytest.mark.parametrize(("bias", "key"), [("all", "mlp.c_fc.bias"), ("lora_only", "self_attn.q_proj.base_layer.bias")])
def test_biases_that_were_trained_are_there(bias: str, key: str, tmp_path: Path) -> None:
    before = adapters.base(tmp_path / "base", "starcoder2")
    modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
    pairs = {name: one for module in modules for name, one in pair(module, before[f"{module}.weight"]).items()}
    some = {
        f"{PREFIX}model.layers.0.{key}": torch.ones(before[f"model.layers.0.{key.replace('.base_layer', '')}"].shape)
    }
    adapter = saved(tmp_path / "adapter", pairs | some, target_modules=["q_proj"], bias=bias)
    with pytest.raises(CkptError, match=rf"bias={bias} means model\..*bias"):
        open_checkpoint(adapter, options={"base": str(tmp_path / "base")})
    adapter = saved(tmp_path / "adapter", pairs, target_modules=["q_proj"], bias="lora_only")
    with open_checkpoint(adapter, options={"base": str(tmp_path / "base")}) as opened:
        assert any(loss.subject == "biases of the base" for loss in opened.checkpoint.provenance.losses)


def test_one_pair_for_head_and_embedding_is_one(tmp_path: Path) -> None:
    before = adapters.base(tmp_path / "base", dtype=torch.float32, tie_word_embeddings=True)
    table = before[f"{EMBED}.weight"]
    two = embedding_pair(EMBED, table) | pair("lm_head", table)
    adapter = saved(tmp_path / "adapter", two, target_modules=["embed_tokens"], ensure_weight_tying=True)
    with pytest.raises(CkptError, match=r"(?s)are not those of the embedding.*ensure_weight_tying"):
        open_checkpoint(adapter, options={"base": str(tmp_path / "base")})


@pytest.mark.parametrize("saves", [False, True])
def test_an_embedding_that_the_model_does_not_use_is_refused(saves: bool, tmp_path: Path) -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 11}
    model = T5ForConditionalGeneration(T5Config(**sizes))
    model.save_pretrained(tmp_path / "base")
    table = model.shared.weight.detach()
    tensors = {f"{PREFIX}shared.weight": table + 1} if saves else embedding_pair("shared", table)
    adapter = saved(tmp_path / "adapter", tensors, target_modules=None, modules_to_save=["shared"] if saves else None)
    with pytest.raises(CkptError, match=r"(?s)shared.* does not use.*encoder\.embed_tokens"):
        open_checkpoint(adapter, options={"base": str(tmp_path / "base")})


def test_inspect_explains_methods_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "adapter"
    adapter = adapters.save(folder, {"prompt_embeddings": torch.ones(4, 4)}, peft_type="PROMPT_TUNING")
    assert main(["inspect", str(adapter)]) == 0
    shown = capsys.readouterr().out
    assert "PROMPT_TUNING" in shown and "are not merged" in shown and "saved whole" not in shown


def test_what_is_not_refused_is_what_the_cases_start_from(base: Path, tensors: Tensors, tmp_path: Path) -> None:
    silent = {
        "lora_dropout": 0.5,
        "task_type": "CAUSAL_LM",
        "init_lora_weights": "eva",
        "eva_config": {"rho": 2},
        "unknown": None,
    }
    adapter = saved(tmp_path / "adapter", tensors, **silent)
    convert(adapter, tmp_path / "out", to="ir", options={"base": str(base)})
    start = {"init_lora_weights": "pissa"}
    adapter = saved(tmp_path / "residual", tensors, **start)
    convert(adapter, tmp_path / "out2", to="ir", options={"base": str(base), "residual_base": True})
    adapter = saved(tmp_path / "ignored", tensors, use_dorra=True)
    convert(adapter, tmp_path / "out3", to="ir", options={"base": str(base), "ignore_keys": "use_dorra"})


def test_without_a_base_the_error_says_what_to_give(tensors: Tensors, tmp_path: Path) -> None:
    adapter = saved(tmp_path / "adapter", tensors, base_model_name_or_path="org/model", revision="v2")
    with pytest.raises(CkptError) as refusal:
        open_checkpoint(adapter)
    for word in ("org/model", "v2", "-o base=FOLDER"):
        assert word in str(refusal.value)


def test_a_base_that_cannot_be_read_is_named(tensors: Tensors, tmp_path: Path) -> None:
    adapter = saved(tmp_path / "adapter", tensors)
    with pytest.raises(CkptError, match=r"-o base=.*nowhere: there is no such file"):
        open_checkpoint(adapter, options={"base": str(tmp_path / "nowhere")})


def test_a_base_of_another_revision_is_refused(base: Path, tensors: Tensors, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--model/snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(base)
    adapter = saved(tmp_path / "adapter", tensors, base_model_name_or_path="org/model", revision="b" * 40)
    with pytest.raises(CkptError) as refusal:
        open_checkpoint(adapter, options={"base": str(snapshot)})
    for word in ("a" * 40, "b" * 40, "revision"):
        assert word in str(refusal.value)
    adapter = saved(tmp_path / "adapter", tensors, base_model_name_or_path="org/model", revision="a" * 40)
    with open_checkpoint(adapter, options={"base": str(snapshot)}) as opened:
        assert not any(loss.kind == "assumed" for loss in opened.checkpoint.provenance.losses)


def test_a_base_that_the_adapter_does_not_name_is_assumed(base: Path, tensors: Tensors, tmp_path: Path) -> None:
    adapter = saved(tmp_path / "adapter", tensors, base_model_name_or_path="org/model", revision="main")
    with open_checkpoint(adapter, options={"base": str(base)}) as opened:
        said = [str(loss) for loss in opened.checkpoint.provenance.losses if loss.kind == "assumed"]
    assert any("org/model" in one for one in said) and any("main" in one for one in said)


def test_a_doubled_key_of_the_config_is_an_error(base: Path, tensors: Tensors, tmp_path: Path) -> None:
    adapter = saved(tmp_path / "adapter", tensors)
    file = adapter / "adapter_config.json"
    file.write_text(file.read_text().replace('"r": 4', '"r": 4, "r": 8'))
    with pytest.raises(CkptError, match="'r'"):
        open_checkpoint(adapter, options={"base": str(base)})


def test_a_merged_value_that_fp16_cannot_hold_is_refused(tmp_path: Path) -> None:
    before = adapters.base(tmp_path / "base", dtype=torch.float16)
    large = {name: tensor * 300 for name, tensor in pair(Q, before[f"{Q}.weight"]).items()}
    adapter = saved(tmp_path / "adapter", large, target_modules=["layers.1.self_attn.q_proj"])
    with pytest.raises(CkptError, match="does not fit fp16"):
        convert(adapter, tmp_path / "out", to="hf", options={"base": str(tmp_path / "base")})
    assert_nothing_at(tmp_path / "out")


def test_inspect_explains_an_adapter(
    tensors: Tensors, tmp_path: Path, base: Path, capsys: pytest.CaptureFixture
) -> None:
    adapter = saved(tmp_path / "adapter", tensors, base_model_name_or_path="org/model", megatron_config={"tp": 2})
    assert main(["inspect", str(adapter)]) == 0
    shown = capsys.readouterr().out
    count = sum(tensor.numel() for tensor in tensors.values())
    for word in ("LoRA", "org/model", f"{count:,}", "self_attn.q_proj", "-o base=FOLDER", "megatron_config"):
        assert word in shown
    assert main(["inspect", str(adapter), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fragment"]["parameters"] == count and len(said["fragment"]["adapted"]) == 2
    adapter = saved(tmp_path / "adapter", tensors)
    assert main(["inspect", str(adapter), "--all"]) == 0
    assert "none yet: give the config.json of the base with --config" in capsys.readouterr().out
    config = str(base / "config.json")
    assert main(["inspect", str(adapter), "--all", "--config", config]) == 0
    assert re.search(r"ledger +2 files: .*used", capsys.readouterr().out)
    assert main(["inspect", str(adapter), "--json", "--config", config]) == 0
    assert {entry["fate"] for entry in json.loads(capsys.readouterr().out)["ledger"]} >= {"used"}
    assert main(["inspect", str(adapter), "--all", "-o", f"base={base}"]) == 0
    assert "merged: LoRA of 2 modules" in capsys.readouterr().out
