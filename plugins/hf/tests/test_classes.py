"""The class that a config names is the one that is read; others are refused by name, and code beside the weights is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ckpt_core import convert, fingerprint
from ckpt_core.api import config_architecture, read_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.testing import example, write_ir


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_ir(tmp_path / "ir", example("llama"))
    convert(tmp_path / "ir", tmp_path / "hf", to="hf")
    (tmp_path / "hf" / "ckpt-receipt.json").unlink()
    return tmp_path / "hf"


def change(folder: Path, **keys: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return path


REFUSED = {
    "LlamaForRewardModel": "reward model",
    "LlamaForQuestionAnswering": "answer",
    "LlamaBidirectionalModel": "bare model",
    "LlamaEncoderModel": "encoder",
    "LlamaForScoring": "none of transformers'",
    "MistralForCausalLM": "another model_type",
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_class_is_refused_by_name(name: str, folder: Path) -> None:
    expected = fingerprint(folder)
    path = change(folder, architectures=[name])
    for refused in (lambda: read_checkpoint(folder), lambda: config_architecture(str(path))):
        with pytest.raises(CkptError) as refusal:
            refused()
        for word in (name, REFUSED[name], "config.json", "LlamaForCausalLM", "read_as="):
            assert word in str(refusal.value)
    assert fingerprint(folder, options={"read_as": "LlamaForCausalLM"}) == expected


def test_a_reward_model_is_one_problem_and_not_one_per_tensor(folder: Path) -> None:
    held = load_file(folder / "model.safetensors")
    save_file({"score.weight": held.pop("lm_head.weight"), **held}, folder / "model.safetensors")
    change(folder, architectures=["LlamaForRewardModel"])
    with pytest.raises(CkptError) as refusal:
        read_checkpoint(folder)
    assert "score.weight" not in str(refusal.value)
    with pytest.raises(CkptError, match=r"lm_head\.weight"):  # insisting does not make a head
        read_checkpoint(folder, options={"read_as": "LlamaForCausalLM"})


@pytest.mark.parametrize("named", [["LlamaForCausalLM"], ["LLaMAForCausalLM"], ["FSDPLlamaForCausalLM"], [], None])
def test_names_of_the_class_itself_are_read(named: object, folder: Path) -> None:
    expected = fingerprint(folder)
    change(folder, architectures=named)
    assert fingerprint(folder) == expected


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("LlamaForSequenceClassification", r"score\.weight"),
        ("LlamaForTokenClassification", r"score\.bias"),
        ("LlamaModel", ""),
    ],
)
def test_a_class_that_the_tensors_are_not_of_is_refused_by_the_tensors(name: str, lacks: str, folder: Path) -> None:
    """A config may name the class of another head than the one beside it."""
    change(folder, architectures=[name])
    with pytest.raises(CkptError, match=r"lm_head\.weight") as refusal:
        read_checkpoint(folder)
    assert lacks.replace("\\", "") in str(refusal.value)


@pytest.mark.parametrize("named", ["LlamaForCausalLM", [3], {"a": 1}, ["LlamaForCausalLM", "LlamaModel"]])
def test_what_names_no_one_class_is_refused(named: object, folder: Path) -> None:
    change(folder, architectures=named)
    with pytest.raises(CkptError, match="architectures"):
        read_checkpoint(folder)


def test_a_class_to_insist_on_overrules_the_type_too(folder: Path) -> None:
    expected = fingerprint(folder)
    change(folder, model_type="of_our_own", architectures=["OurForCausalLM"])
    with pytest.raises(CkptError, match="of_our_own"):
        read_checkpoint(folder)
    assert fingerprint(folder, options={"read_as": "LlamaForCausalLM"}) == expected
    with pytest.raises(CkptError, match="did you mean 'LlamaForCausalLM'"):
        read_checkpoint(folder, options={"read_as": "LlamaForCausalLm"})


def test_code_beside_the_weights_is_an_assumption_that_names_the_file(folder: Path) -> None:
    auto = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModel": "modeling_own.OwnModel",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        "AutoModelForSequenceClassification": "someone/else--modeling_other.OtherClassifier",
        "AutoTokenizer": ["tokenization_own.OwnTokenizer", None],
    }
    change(folder, auto_map=auto)
    losses = {loss.subject: loss for loss in read_checkpoint(folder).provenance.losses}
    assert losses.keys() == {"configuration_own.py", "modeling_own.py", "modeling_other.py of someone/else"}
    for loss in losses.values():
        assert loss.kind == "assumed"
        assert "LlamaForCausalLM" in loss.reason
        assert "not looked at" in loss.reason


def test_code_of_a_tokenizer_alone_is_none_of_the_model(folder: Path) -> None:
    change(folder, auto_map={"AutoTokenizer": "Xenova/gpt-4o"})
    assert not read_checkpoint(folder).provenance.losses


@pytest.mark.parametrize(
    ("name", "usual"),
    [
        *(("llama-headless", False), ("llama-scored", False), ("llama-tagged", False), ("vit-pooled", False)),
        *(("gpt2", True), ("moe", True)),
    ],
)
def test_a_config_that_names_no_class_is_told_which_one_fits(name: str, usual: bool, tmp_path: Path) -> None:
    """The usual class of the type is read where its tensors are there; else the class that fits is proposed, and it works."""
    write_ir(tmp_path / "ir", example(name, hidden=216))
    convert(tmp_path / "ir", tmp_path / "hf", to="hf")
    expected, folder = fingerprint(tmp_path / "hf"), tmp_path / "hf"
    class_name = json.loads((folder / "config.json").read_text())["architectures"][0]
    change(folder, architectures=None)
    if usual:
        assert fingerprint(folder) == expected
        return
    with pytest.raises(CkptError) as refusal:
        fingerprint(folder)
    assert refusal.value.fix == f"if that is right, say so: -o read_as={class_name}"
    assert fingerprint(folder, options={"read_as": class_name}) == expected


@pytest.mark.parametrize("name", ["llama-headless", "llama-scored", "llama"])
def test_another_class_is_answered_with_the_one_whose_tensors_these_are(name: str, tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example(name, hidden=216))
    convert(tmp_path / "ir", tmp_path / "hf", to="hf")
    expected, folder = fingerprint(tmp_path / "hf"), tmp_path / "hf"
    (class_name,) = json.loads((folder / "config.json").read_text())["architectures"]
    change(folder, architectures=["LlamaForScoring"])
    with pytest.raises(CkptError, match=f"insist with -o read_as={class_name}$"):
        read_checkpoint(folder)
    assert fingerprint(folder, options={"read_as": class_name}) == expected
    held = load_file(folder / "model.safetensors")
    save_file({f"{name}.other": tensor for name, tensor in held.items()}, folder / "model.safetensors")
    with pytest.raises(CkptError) as refusal:
        read_checkpoint(folder)
    assert "'LlamaForScoring'" in str(refusal.value) and refusal.value.fix is None


def test_where_no_class_fits_what_is_missing_is_named(folder: Path) -> None:
    held = load_file(folder / "model.safetensors")
    save_file(
        {name: held[name] for name in held if "lm_head" not in name and "embed" not in name},
        folder / "model.safetensors",
    )
    change(folder, architectures=None)
    with pytest.raises(CkptError, match=r"lm_head\.weight(.|\n)*embed_tokens\.weight"):
        read_checkpoint(folder)


def test_another_framework_is_told_to_write_the_class_into_the_config(tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example("llama-headless"))
    convert(tmp_path / "ir", tmp_path / "fsdp", to="fsdp", options={"layout": "flat"})
    expected = fingerprint(tmp_path / "fsdp")
    change(tmp_path / "fsdp", architectures=None)
    with pytest.raises(CkptError, match=r'add to the config: "architectures": \["LlamaModel"\]'):
        read_checkpoint(tmp_path / "fsdp")
    change(tmp_path / "fsdp", architectures=["LlamaModel"])
    assert fingerprint(tmp_path / "fsdp") == expected
