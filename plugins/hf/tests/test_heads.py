"""Bare decoders and classifiers: the classes of transformers that put another head on a decoder that is read, or none."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.api import config_architecture, read_checkpoint
from ckpt_core.architecture.examples import example_architectures
from ckpt_core.errors import CkptError
from ckpt_core.reference import Inputs, forward
from ckpt_core.testing import example, write_ir
from ckpt_hf import load_model
from ckpt_hf.config import FAMILIES, classes_with_head_of
from ckpt_hf.heads import SCORED, is_language_model
from ckpt_hf.model import logits
from ckpt_tests.families import CASES
from ckpt_tests.folders import assert_same_bits

ENDINGS = ("Model", "ForSequenceClassification", "ForTokenClassification")
ON_A_DECODER = [family for family in FAMILIES if family.head is not None]
PADDING = 5
LABELS = {0: "bad", 1: "fair", 2: "good"}


# Their heads are of no kind that an architecture says: refused by name.
OF_ANOTHER_KIND = {
    ("distilbert", "DistilBertForSequenceClassification"): "a ReLU between its two layers, where others have tanh",
    (
        "eurobert",
        "EuroBertForSequenceClassification",
    ): "two layers with a GELU between them, on what classifier_pooling says",
}


def test_every_class_of_a_decoder_that_transformers_has_is_read() -> None:
    """All of them but those of another kind, and no other: a family that lists a head too many or too few is named."""
    said = {(family.model_type, family.class_name) for family in ON_A_DECODER if family.class_name.endswith(ENDINGS)}
    there = set()
    for family in FAMILIES:
        stem = family.class_name.removesuffix("ForCausalLM").removesuffix("LMHeadModel").removesuffix("ForMaskedLM")
        if family.head is None and stem != family.class_name:
            for name in (stem + text + ending for text in ("", "Text") for ending in ENDINGS):
                kind = getattr(transformers, name, None)
                if kind is not None and kind.config_class.model_type == family.model_type:
                    there.add((family.model_type, name))
    assert said == there - OF_ANOTHER_KIND.keys() and there > OF_ANOTHER_KIND.keys()


def test_the_classes_of_a_language_model_are_those_without_another_head() -> None:
    """So that those before the first that holds it are looked at, and no others: none of all heads is on such a model."""
    models = [model for model in example_architectures().values() if is_language_model(model)]
    heads = [head for family in FAMILIES for head in (family.head, *family.heads) if head is not None]
    assert len(models) > 5 and not [head.ending for head in heads for model in models if head.holds(model)]
    plain = [family for family in FAMILIES if family.head is None]
    for first in ("", "qwen3", "t5"):
        ordered = sorted(plain, key=lambda family: family.model_type != first)
        assert list(classes_with_head_of(models[0], first)) == ordered


@pytest.mark.parametrize(
    "family", [family for family in ON_A_DECODER if family.head is SCORED], ids=lambda one: one.model_type
)
def test_padding_that_a_config_leaves_out_is_that_of_the_class(family) -> None:
    assert family.padding == transformers.CONFIG_MAPPING[family.model_type]().pad_token_id


# One of each way to name tensors: another prefix, a part of the prefix, a choice of names, experts, a model within one that sees.
NAMED = ("qwen3", "gpt2", "opt", "gpt_neox", "deepseek_v3", "gemma3")
TRIED = [
    pytest.param(name, family.class_name, id=family.class_name)
    for name in NAMED
    for family in ON_A_DECODER
    if family.model_type == CASES[name].model_type
]


def build(name: str, class_name: str, folder: Path, **changes: object) -> transformers.PreTrainedModel:
    """A random model of a class, saved by transformers."""
    kind = getattr(transformers, class_name)
    own = {key: value for key, value in CASES[name].config.items() if key != "pad_token_id"}
    config = {**own, "pad_token_id": PADDING, "id2label": LABELS, "label2id": {label: n for n, label in LABELS.items()}}
    torch.manual_seed(3)
    model = kind(kind.config_class(**copy.deepcopy(config | changes))).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            tensor.copy_(torch.randn_like(tensor) * (1.0 if "norm" in key or "ln_" in key else 0.25))
    model.save_pretrained(folder)
    return model


def padded() -> torch.Tensor:
    """Two rows, the first of which ends in padding, and has one such token within."""
    tokens = torch.randint(PADDING + 1, 61, (2, 23), generator=torch.Generator().manual_seed(11))
    tokens[0, -4:] = tokens[0, 7] = PADDING
    return tokens


@torch.no_grad()
def output(model: transformers.PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    found = model(input_ids=tokens)
    return found.logits if "logits" in found else found.last_hidden_state


@pytest.mark.parametrize(("name", "class_name"), TRIED)
def test_it_comes_back_and_computes_the_same(name: str, class_name: str, tmp_path: Path) -> None:
    expected = output(build(name, class_name, tmp_path / "hf"), padded())
    convert(tmp_path / "hf", tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "back", to="hf")
    assert_same_bits(load_file(tmp_path / "back/model.safetensors"), load_file(tmp_path / "hf/model.safetensors"))
    model, report = getattr(transformers, class_name).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not {kind: names for kind, names in report.items() if names}
    assert torch.equal(output(model.eval(), padded()), expected)
    with open_checkpoint(tmp_path / "hf") as found:
        *_, last = forward(found, Inputs(tokens=padded()))
    assert (last.values - expected).abs().max() < 1e-4
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert config["architectures"] == [class_name]
    assert config["pad_token_id"] == PADDING
    assert ("id2label" in config) == (not class_name.endswith("Model"))
    assert config.get("id2label", {"1": "fair"})["1"] == "fair"


def test_tensors_of_a_bare_model_are_read_with_the_prefix_of_the_other_classes(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    build("qwen3", "Qwen3Model", tmp_path / "hf")
    expected = fingerprint(tmp_path / "hf")
    stored = load_file(tmp_path / "hf/model.safetensors")
    save_file({f"model.{name}": tensor for name, tensor in stored.items()}, tmp_path / "hf/model.safetensors")
    assert fingerprint(tmp_path / "hf") == expected


def test_what_a_config_says_of_a_head_that_is_not_there_stays(tmp_path: Path) -> None:
    from ckpt_tests.models import weights

    kind = transformers.Gemma2Model
    config = {**CASES["gemma2"].config, "final_logit_softcapping": 7.0, "tie_word_embeddings": False}
    kind(kind.config_class(**config)).save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "ir", to="ir")
    receipt = convert(tmp_path / "ir", tmp_path / "back", to="hf")
    back = json.loads((tmp_path / "back/config.json").read_text())
    assert (back["final_logit_softcapping"], back["tie_word_embeddings"]) == (7.0, False)
    assert not receipt.body["losses"]
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "hf"))


def test_two_classes_without_names_and_no_padding_are_what_a_config_without_these_keys_says(tmp_path: Path) -> None:
    build("qwen3", "Qwen3ForSequenceClassification", tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: config[key] for key in config.keys() - {"id2label", "label2id", "pad_token_id"}}))
    classifier = config_architecture(str(path)).classifier
    assert (classifier.classes, classifier.padding, classifier.bias) == (2, None, False)


def test_padding_outside_the_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    build("qwen3", "Qwen3ForSequenceClassification", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": 61}))
    with pytest.raises(CkptError, match=r"classifier\.padding: 61 is not one of 61 tokens"):
        config_architecture(str(path))


def test_a_bias_of_tags_that_the_config_denies_is_not_there(tmp_path: Path) -> None:
    build("qwen3", "Qwen3ForTokenClassification", tmp_path / "hf", token_classification_bias=False)
    assert "score.bias" not in load_file(tmp_path / "hf/model.safetensors")
    convert(tmp_path / "hf", tmp_path / "back", to="hf")
    assert json.loads((tmp_path / "back/config.json").read_text())["token_classification_bias"] is False


def test_a_bias_of_scores_is_refused_by_name(tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example("llama-scored", classifier__bias=True))
    with pytest.raises(CkptError, match=r"classifier\.bias is always False"):
        convert(tmp_path / "ir", tmp_path / "hf", to="hf")


def test_a_judge_gives_rows_one_by_one_to_a_classifier_that_knows_no_padding(tmp_path: Path) -> None:
    """transformers refuses two rows at once there."""
    model = build("qwen3", "Qwen3ForSequenceClassification", tmp_path, pad_token_id=None)
    found = logits(read_checkpoint(tmp_path), {"tokens": padded().numpy()})
    expected = torch.cat([output(model, row) for row in padded().split(1)])
    assert torch.equal(torch.from_numpy(found.logits), expected)


def test_a_classifier_straight_from_the_ir_is_a_model_of_its_class(tmp_path: Path) -> None:
    write_ir(tmp_path, example("llama-scored"))
    model = load_model(tmp_path)
    assert type(model) is transformers.LlamaForSequenceClassification
    assert (model.config.num_labels, model.config.pad_token_id) == (17, 3)


@pytest.mark.parametrize(
    ("of", "lost"),
    [
        ("llama", "head.weight"),
        ("llama-tied", "the head, which is the embedding"),
        ("llama-scored", "classifier.weight"),
        ("llama-tagged", "classifier.bias, classifier.weight"),
    ],
)
def test_a_head_is_left_out_where_that_is_asked_for(of: str, lost: str, tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example(of))
    receipt = convert(tmp_path / "ir", tmp_path / "hf", to="hf", options={"headless": "true"})
    assert [(loss["kind"], loss["subject"]) for loss in receipt.body["losses"]] == [("dropped", lost)]
    assert read_checkpoint(tmp_path / "hf").architecture == example("llama-headless")
    with pytest.raises(CkptError, match=r"LlamaModel"):
        convert(tmp_path / "ir", tmp_path / "no", to="hf", options={"hf_class": "LlamaModel"})


@pytest.mark.parametrize("of", ["llama-headless", "llama-scored", "llama-tagged"])
def test_a_class_of_another_head_is_refused_by_what_the_model_has(of: str, tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example(of))
    with pytest.raises(
        CkptError, match=r"logits over the vocabulary(.|\n)*(head\.tied|classifier\.pooling)(.|\n)*convert to ir"
    ):
        convert(tmp_path / "ir", tmp_path / "hf", to="hf", options={"hf_class": "LlamaForCausalLM"})
