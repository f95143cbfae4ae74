"""torchtitan's own steps: to the tensors and logits of its own export, and written back under its own names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.plugins.discovery import detect
from ckpt_core.reference import forward
from ckpt_core.reference.inputs import Inputs
from ckpt_core.testing import example
from ckpt_core.testing.examples import ABSENT, calm_numbers, write_ir
from ckpt_tests import distributed
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.goldens import Golden, of_2026
from ckpt_tests.models import weights

TOLERANCE = 1e-4
CASES = of_2026("torchtitan")
each = pytest.mark.parametrize("golden", CASES, ids=str)
BIAS = "moe.expert_bias_E"
# fmt: off
MOE = example("moe", layers=2, attention__qk_norm__kind="rms", attention__qk_norm__eps=1e-5, mlp__moe__router__normalise=True,
    mlp__moe__shared__ffn=ABSENT, mlp__moe__shared__gate=ABSENT)
DEEPSEEK = example("latent", layers=2, mlp__norm__eps=1e-6, final_norm__eps=1e-6, mlp__ffn=ABSENT, mlp__moe__experts=10, mlp__moe__ffn=20,
    mlp__moe__router__top_k=3, mlp__moe__router__score="sigmoid", mlp__moe__router__normalise=True, mlp__moe__router__correction_bias=True,
    mlp__moe__shared__ffn=20)
# fmt: on


def config_of(golden: Golden) -> str:
    return str(golden.folder / "config.json")


def options_of(golden: Golden) -> dict[str, str]:
    """A mixture of Qwen 3 has no place for torchtitan's bias, which two steps of training have moved."""
    return {"drop_expert_bias": "true"} if "experts" in golden.case["shape"] else {}


def for_source(options: dict[str, str]) -> dict[str, str]:
    return {f"src.{name}": value for name, value in options.items()}


def step_of(golden: Golden) -> Path:
    (step,) = golden.checkpoint.glob("step-*")
    return step


@each
def test_every_tensor_and_the_logits_are_those_of_its_own_export(golden: Golden, tmp_path: Path) -> None:
    options = options_of(golden)
    convert(golden.checkpoint, tmp_path / "hf", to="hf", config=config_of(golden), options=for_source(options))
    assert_same_bits(weights(tmp_path / "hf"), load_file(golden.folder / "full.safetensors"))
    with open_checkpoint(golden.checkpoint, config=config_of(golden), options=options) as source:
        *_, last = forward(source, Inputs(tokens=golden.input_ids))
        assert golden.off_by(last.values) <= TOLERANCE
        left = {loss.subject.partition(",")[0].partition(":")[0] for loss in source.checkpoint.all_losses}
        assert not {"entries that the reader does not know", "files that the reader does not know"} & left


@each
def test_written_back_every_tensor_has_its_name_and_its_bits(golden: Golden, tmp_path: Path) -> None:
    shutil.copyfile(config_of(golden), tmp_path / "config.json")
    convert(
        golden.checkpoint, tmp_path / "hf", to="hf", config=config_of(golden), options=for_source(options_of(golden))
    )
    convert(tmp_path / "hf", tmp_path / "step", to="torchtitan")
    known = {
        name: tensor
        for name, tensor in distributed.tensors(step_of(golden)).items()
        if not name.startswith(("optimizer.", "lr_scheduler.", "dataloader.", "train_state."))
    }
    written = distributed.tensors(tmp_path / "step")
    biases = {name for name in known if name.endswith(BIAS)}
    assert all(not written.pop(name).any() for name in biases)
    assert_same_bits(written, {name: tensor for name, tensor in known.items() if name not in biases})


@each
def test_it_is_recognised_by_its_names(golden: Golden) -> None:
    for path in (golden.checkpoint, step_of(golden)):
        ((plugin, _),) = detect(str(path))
        assert plugin.name == "torchtitan"


# --- models that it has, and both kinds of names ---------------------------------------------------------------------

MODELS = {
    "llama3": example("llama", layers=2),
    "qwen3": example("llama", layers=1, attention__qk_norm__kind="rms", attention__qk_norm__eps=1e-5, head__tied=True),
    "qwen2": example("qwen", layers=1),
    "mixture": MOE,
    "deepseek_v3": DEEPSEEK,
}


@pytest.mark.parametrize("release", ["0.3", "0.2"])
@pytest.mark.parametrize("model", MODELS)
def test_what_is_written_is_read_again(model: str, release: str, tmp_path: Path) -> None:
    source = write_ir(tmp_path / "ir", MODELS[model], values=calm_numbers)
    convert(source, tmp_path / "step", to="torchtitan", options={"release": release})
    assert fingerprint(tmp_path / "step") == fingerprint(source)
    names = distributed.tensors(tmp_path / "step")
    assert ("output.weight" in names) == (release == "0.2")
    assert any(".qkv_linear." in name for name in names) == (release == "0.3" and model != "deepseek_v3")
    assert any("_EFD" in name for name in names) == (release == "0.3" and model in ("mixture", "deepseek_v3"))
    with open_checkpoint(tmp_path / "step") as read:
        assert read.checkpoint.provenance.hints["release"] == release


def test_llama_rotates_neighbours(tmp_path: Path) -> None:
    """Else every other test here is as content with halves."""
    source = write_ir(tmp_path / "ir", MODELS["llama3"], values=calm_numbers)
    convert(source, tmp_path / "hf", to="hf")
    convert(source, tmp_path / "step", to="torchtitan")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    (q,) = [
        t for n, t in distributed.tensors(tmp_path / "step").items() if n == "layers.0.attention.qkv_linear.wq.weight"
    ]
    held = weights(tmp_path / "hf")["model.layers.0.self_attn.q_proj.weight"]
    heads, size = config["num_attention_heads"], config["head_dim"]
    assert torch.equal(held, q.view(heads, size // 2, 2, -1).transpose(1, 2).reshape(held.shape))
    assert not torch.equal(held, q)


@pytest.mark.parametrize(("model", "fact"), [("gpt2", "positions.count"), ("smollm3", "attention.rotary")])
def test_what_it_has_not_is_refused_by_name(model: str, fact: str, tmp_path: Path) -> None:
    changes = {"hidden": 144, "attention__head_dim": 12, "mlp__ffn": 576} if model == "gpt2" else {}
    source = write_ir(tmp_path / "ir", example(model, **changes), values=calm_numbers)
    with pytest.raises(CkptError, match=rf"none of DeepseekV3ForCausalLM, LlamaForCausalLM[^\0]*{fact}"):
        convert(source, tmp_path / "step", to="torchtitan")


# --- what can be wrong -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture, whose bias is zero."""
    folder = tmp_path_factory.mktemp("made")
    convert(write_ir(folder / "ir", MOE, values=calm_numbers), folder / "step", to="torchtitan")
    return folder / "step"


def saved(step: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The step with other tensors, saved by torch."""
    tensors = distributed.tensors(step)
    change(tensors)
    dcp.save(tensors, checkpoint_id=str(folder), no_dist=True)
    shutil.copyfile(step / "config.json", folder / "config.json")
    return folder


def test_a_bias_of_zero_is_nothing(step: Path) -> None:
    with open_checkpoint(step) as source:
        assert not source.checkpoint.all_losses
        zeros = [entry.key for entry in source.checkpoint.ledger if entry.what == "nothing, as it is zero"]
        assert zeros == [f"layers.{layer}.{BIAS}" for layer in range(2)]


def test_a_bias_that_the_model_has_no_place_for_is_refused_or_named(step: Path, tmp_path: Path) -> None:
    run = saved(step, tmp_path / "run", lambda tensors: tensors[f"layers.1.{BIAS}"].fill_(0.5))
    with pytest.raises(CkptError, match=r"layers\.1\.moe\.expert_bias_E"):
        open_checkpoint(run)
    with open_checkpoint(run, options={"drop_expert_bias": "true"}) as source:
        (loss,) = source.checkpoint.all_losses
        assert "layers.1" in loss.subject and "layers.0" not in loss.subject and "routing changes" in loss.reason
    assert fingerprint(run, options={"drop_expert_bias": "true"}) == fingerprint(step)


def test_what_is_dropped_is_left_and_not_used(step: Path, tmp_path: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({"freqs_cis": torch.zeros(3), "mtp_layers.0.eh_proj.weight": torch.zeros(2, 2)})

    with open_checkpoint(saved(step, tmp_path / "run", add)) as source:
        fates = {entry.key: (entry.fate, entry.bytes) for entry in source.checkpoint.ledger if entry.key}
    assert fates["freqs_cis"] == ("left", 12) and fates["mtp_layers.0.eh_proj.weight"] == ("left", 16)
    assert fates["norm.weight"][0] == "used"


def test_what_the_config_beside_says_of_an_hf_folder_is_kept(step: Path) -> None:
    """Its class, with which the model is written as an HF folder again, and code that an author put beside it."""
    shutil.copytree(step, step.parent / "coded", ignore=shutil.ignore_patterns("ckpt-receipt.json"))
    config = step.parent / "coded/config.json"
    held = json.loads(config.read_text())
    config.write_text(json.dumps({**held, "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}))
    with open_checkpoint(step.parent / "coded") as source:
        assert source.checkpoint.hints_for("hf")["model_type"] == held["model_type"]
        assert any("modeling_own" in str(loss) for loss in source.checkpoint.all_losses)


def test_the_model_that_was_asked_for_is_written_again(tmp_path: Path) -> None:
    source = write_ir(tmp_path / "ir", MODELS["llama3"], values=calm_numbers)
    convert(source, tmp_path / "step", to="torchtitan", options={"model": "qwen3"})
    (tmp_path / "step/ckpt-receipt.json").unlink()
    convert(tmp_path / "step", tmp_path / "again", to="torchtitan", options={"src.model": "qwen3"})
    assert_same_bits(distributed.tensors(tmp_path / "again"), distributed.tensors(tmp_path / "step"))


def test_models_with_names_that_end_as_its_own_are_not_its(tmp_path: Path) -> None:
    tensors = {"model.embeddings.tok_embeddings.weight": torch.zeros(2, 3)}  # as ModernBERT has it
    dcp.save(tensors, checkpoint_id=str(tmp_path / "run"), no_dist=True)
    assert [plugin.name for plugin, _ in detect(str(tmp_path / "run"))] == ["fsdp"]


# fmt: off
WRONG: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "an adapter":              (lambda tensors: tensors.update({"layers.0.attention.qkv_linear.wq.lora_a.weight": torch.zeros(2, 3)}), "trained with LoRA"),
    "a tensor that is missing": (lambda tensors: tensors.pop("layers.0.attention.wo.weight"),                                        r"layers\.0\.attention\.wo\.weight"),
    "a tensor too many":       (lambda tensors: tensors.update({"layers.0.surprise.weight": torch.zeros(2)}),                         r"layers\.0\.surprise\.weight"),
    "another shape":           (lambda tensors: tensors.update({"norm.weight": torch.zeros(7)}),                                     r"norm\.weight"),
}
# fmt: on


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused_by_name(what: str, step: Path, tmp_path: Path) -> None:
    change, words = WRONG[what]
    with pytest.raises(CkptError, match=words):
        open_checkpoint(saved(step, tmp_path / "run", change))


def test_the_last_step_is_read_and_a_config_is_needed(step: Path, tmp_path: Path) -> None:
    for number in (9, 10):
        shutil.copytree(step, tmp_path / f"dump/checkpoint/step-{number}")
    (tmp_path / "dump/checkpoint/step-11").mkdir()  # one that was not finished
    with open_checkpoint(tmp_path / "dump/checkpoint") as source:
        assert all("step-10" in state.path for state in source.checkpoint.files)
    (tmp_path / "dump/checkpoint/step-10/config.json").unlink()
    with pytest.raises(CkptError, match="nothing says what the model is"):
        open_checkpoint(tmp_path / "dump/checkpoint")
    assert fingerprint(tmp_path / "dump/checkpoint", config=str(step / "config.json")) == fingerprint(step)
