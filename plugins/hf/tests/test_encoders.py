"""BERT, its kin and ModernBERT: every class comes back as it was, and computes what transformers computes, of types and padding too."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ckpt_core import convert, open_checkpoint
from ckpt_core.api import config_architecture, read_checkpoint
from ckpt_core.architecture import Architecture
from ckpt_core.errors import CkptError
from ckpt_core.reference import Inputs, forward
from ckpt_core.testing import example, write_ir
from ckpt_tests import judged
from ckpt_tests.folders import assert_same_bits

PADDING = 5
LABELS = {0: "bad", 1: "fair", 2: "good"}
SHARED = {
    "vocab_size": 61, "hidden_size": 96, "num_attention_heads": 12, "intermediate_size": 56, "max_position_embeddings": 44,
    "pad_token_id": PADDING, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BERT = {"num_hidden_layers": 2, "type_vocab_size": 3, "layer_norm_eps": 1e-3, "hidden_act": "relu"}
MODERN = {
    "num_hidden_layers": 4, "local_attention": 10, "norm_eps": 1e-3, "hidden_activation": "relu", "classifier_activation": "silu",
    "rope_parameters": {"full_attention": {"rope_theta": 900.0, "rope_type": "default"}, "sliding_attention": {"rope_theta": 40.0, "rope_type": "default"}},
}  # fmt: skip
BIASED = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True) | {"decoder_bias": False, "local_attention": 11, "layer_types": ["sliding_attention"] + ["full_attention"] * 3}  # fmt: skip
DISTILLED = {"dim": 96, "n_heads": 12, "n_layers": 2, "hidden_dim": 56, "activation": "relu", "intermediate_size": None}
OWN = {
    "Modern": MODERN, "DistilBert": DISTILLED, "EuroBert": {"num_hidden_layers": 2, "rms_norm_eps": 1e-3, "hidden_act": "relu"},
}  # fmt: skip
_BEHIND = ("ForMaskedLM", "Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
CASES: dict[str, tuple[str, dict[str, object]]] = {
    **{f"Bert{end}": (f"Bert{end}", {}) for end in (*_BEHIND, "ForPreTraining")},
    **{f"Roberta{end}": (f"Roberta{end}", {}) for end in _BEHIND},
    **{
        name: (name, {})
        for name in (
            *(f"MegatronBert{end}" for end in ("ForPreTraining", "Model", "ForSequenceClassification")),
            *(f"Ernie{end}" for end in ("ForMaskedLM", "ForPreTraining")),
            *(f"Data2VecText{end}" for end in ("ForMaskedLM", "ForSequenceClassification")),
            *(f"RobertaPreLayerNorm{end}" for end in ("ForMaskedLM", "Model", "ForSequenceClassification")),
            "XLMRobertaForMaskedLM",
            "CamembertForMaskedLM",
        )
    },
    **{f"ModernBert{end}": (f"ModernBert{end}", {}) for end in _BEHIND},
    **{
        f"DistilBert{end}": (f"DistilBert{end}", {})
        for end in ("ForMaskedLM", "Model", "ForTokenClassification", "ForQuestionAnswering")
    },
    **{f"EuroBert{end}": (f"EuroBert{end}", {}) for end in ("ForMaskedLM", "Model")},
    "EuroBERT, biased": ("EuroBertForMaskedLM", {"mlp_bias": True, "attention_bias": True, "num_key_value_heads": 4}),
    "ModernBert, biased": ("ModernBertForMaskedLM", BIASED),
    "ModernBert, mean": ("ModernBertForSequenceClassification", BIASED | {"classifier_pooling": "mean"}),
}


def build(class_name: str, folder: Path, **changes: object) -> transformers.PreTrainedModel:
    """A random model of a class, saved by transformers."""
    kind = getattr(transformers, class_name)
    own = next((sizes for kin, sizes in OWN.items() if class_name.startswith(kin)), BERT)
    if "Answering" not in class_name:
        own = own | {"id2label": LABELS, "label2id": {label: number for number, label in LABELS.items()}}
    torch.manual_seed(3)
    keys = {key: value for key, value in {**SHARED, **own, **changes}.items() if value is not None}
    model = kind(kind.config_class(**copy.deepcopy(keys))).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                norm = key.lower().endswith(("norm.weight", ".ln.weight"))
                tensor.copy_(torch.randn_like(tensor) * 0.2 + float(norm))
    model.tie_weights()
    model.save_pretrained(folder)
    return model


def inputs(model: transformers.PreTrainedModel) -> Inputs:
    """Two rows of tokens of all types. The end of the first is masked, and padding, which is also among what is not masked."""
    random = torch.Generator().manual_seed(11)
    tokens = torch.randint(PADDING + 1, 61, (2, 23), generator=random)
    types = torch.randint(0, 3, (2, 23), generator=random)
    tokens[0, -4:] = tokens[0, 1:3] = tokens[1, 7] = PADDING
    mask = torch.ones_like(tokens)
    mask[0, -4:] = 0
    return Inputs(tokens=tokens, mask=mask, types=types if hasattr(model.config, "type_vocab_size") else None)


@torch.no_grad()
def output(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a model computes of these inputs, by the names of the reference's steps."""
    given = inputs(model)
    types = {} if given.types is None else {"token_type_ids": given.types}
    found = model(input_ids=given.tokens, attention_mask=given.mask, **types)
    if "start_logits" in found:
        return {"logits": torch.cat([found.start_logits, found.end_logits], -1)}
    if "prediction_logits" in found:
        return {"logits": found.prediction_logits, "classifier.logits": found.seq_relationship_logits}
    return {"logits": next(found[name] for name in ("logits", "pooler_output", "last_hidden_state") if name in found)}


def apart(one: torch.Tensor, two: torch.Tensor, mask: torch.Tensor) -> float:
    """The largest difference at positions that are not masked."""
    if one.shape[1] == mask.shape[1] or one.shape[1] == 2 * mask.shape[1]:
        real = mask.repeat(1, one.shape[1] // mask.shape[1]).bool()
        one, two = one[real], two[real]
    return float((one - two).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_it_comes_back_and_computes_the_same(case: str, tmp_path: Path) -> None:
    class_name, changes = CASES[case]
    model = build(class_name, tmp_path / "hf", **changes)
    expected, given = output(model), inputs(model)
    convert(tmp_path / "hf", tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "back", to="hf")
    assert_same_bits(load_file(tmp_path / "back/model.safetensors"), load_file(tmp_path / "hf/model.safetensors"))
    back, report = getattr(transformers, class_name).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not {kind: names for kind, names in report.items() if names}
    assert all(torch.equal(values, expected[name]) for name, values in output(back.eval()).items())
    with open_checkpoint(tmp_path / "hf") as found:
        steps = {step.name: step.values for step in forward(found, given)}
    assert {name for name in steps if name.endswith("logits")} == set(expected)
    for name, values in expected.items():
        assert apart(steps[name], values, given.mask) < 1e-4, name
    assert json.loads((tmp_path / "back/config.json").read_text())["architectures"] == [class_name]


def test_names_of_2018_and_what_was_trained_beside_the_model_are_read(tmp_path: Path) -> None:
    """As in bert-base-uncased: norms with gamma and beta, and under the name of a class without them a pooler and a second head."""
    build("BertForPreTraining", tmp_path / "hf")
    stored = load_file(tmp_path / "hf/model.safetensors")
    old = {
        key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): value
        for key, value in stored.items()
    }
    save_file(old, tmp_path / "hf/model.safetensors")
    config = json.loads((tmp_path / "hf/config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    receipt = convert(tmp_path / "hf", tmp_path / "back", to="hf")
    beside = {key for key in stored if "pooler" in key or "seq_relationship" in key}
    kept = {key: value for key, value in stored.items() if key not in beside}
    assert_same_bits(load_file(tmp_path / "back/model.safetensors"), kept)
    dropped = {loss["subject"]: loss["reason"] for loss in receipt.body["losses"]}
    assert "bert.pooler.*" in dropped
    assert "read_as=BertForPreTraining" in dropped["cls.seq_relationship.*"]
    convert(tmp_path / "hf", tmp_path / "whole", to="hf", options={"read_as": "BertForPreTraining"})
    assert_same_bits(load_file(tmp_path / "whole/model.safetensors"), stored)


def test_a_bare_encoder_may_lack_its_pooler(tmp_path: Path) -> None:
    build("BertModel", tmp_path / "hf")
    stored = {key: value for key, value in load_file(tmp_path / "hf/model.safetensors").items() if "pooler" not in key}
    save_file(stored, tmp_path / "hf/model.safetensors")
    assert read_checkpoint(tmp_path / "hf").architecture.classifier is None
    receipt = convert(tmp_path / "hf", tmp_path / "back", to="hf")
    assert_same_bits(load_file(tmp_path / "back/model.safetensors"), stored)
    assert "that there is no pooler" in {loss["subject"] for loss in receipt.body["losses"]}


def test_a_head_that_is_not_tied_has_its_bias_where_transformers_looks_for_it(tmp_path: Path) -> None:
    model = build("BertForMaskedLM", tmp_path / "hf", tie_word_embeddings=False)
    with pytest.raises(CkptError, match=r"two copies of head\.bias differ"):
        convert(tmp_path / "hf", tmp_path / "no", to="hf")
    with torch.no_grad():
        model.cls.predictions.bias.copy_(model.cls.predictions.decoder.bias)
    model.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "back", to="hf")
    back, report = transformers.BertForMaskedLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(output(back.eval())["logits"], output(model)["logits"])


@pytest.mark.parametrize("format", ["megatron", "nemo", "nanotron"])
def test_what_trains_decoders_refuses_it_by_name(format: str, tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example("bert", hidden=216))
    with pytest.raises(CkptError, match=r"decoder|kind|norm_after_sum|tokens\.types"):
        convert(tmp_path / "ir", tmp_path / "out", to=format)


@pytest.mark.parametrize(
    ("model_type", "class_name"),
    [
        ("bert", "BertForNextSentencePrediction"),
        ("bert", "BertForMultipleChoice"),
        ("bert", "BertLMHeadModel"),
        ("roberta", "RobertaForCausalLM"),
        ("modernbert", "ModernBertForMultipleChoice"),
        ("modernbert-decoder", "ModernBertDecoderForCausalLM"),
        ("megatron-bert", "MegatronBertForCausalLM"),
        ("electra", "ElectraForMaskedLM"),
        ("distilbert", "DistilBertForSequenceClassification"),
        ("eurobert", "EuroBertForSequenceClassification"),
    ],
)
def test_other_classes_are_refused_by_name(model_type: str, class_name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": model_type, "architectures": [class_name]}))
    with pytest.raises(CkptError) as raised:
        config_architecture(str(path))
    assert class_name in str(raised.value) or model_type in str(raised.value)


def modern(folder: Path, **changes: object) -> Architecture:
    """What a config of ModernBERT says with some keys changed; None leaves a key out."""
    path = folder / "config.json"
    config = transformers.ModernBertConfig(**SHARED).to_dict() | {"architectures": ["ModernBertForMaskedLM"]} | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return config_architecture(str(path))


def test_a_config_of_version_4_says_what_one_of_version_5_says(tmp_path: Path) -> None:
    """Version 4 has a number in place of `layer_types`, and a key for each theta."""
    four = modern(
        tmp_path, layer_types=None, rope_parameters=None, global_attn_every_n_layers=4, global_rope_theta=900.0,
        local_rope_theta=40.0,
    )  # fmt: skip
    kinds = ["sliding_attention" if index % 4 else "full_attention" for index in range(22)]
    thetas = {
        kind: {"rope_type": "default", "rope_theta": theta}
        for kind, theta in (("full_attention", 900.0), ("sliding_attention", 40.0))
    }
    assert four == modern(tmp_path, layer_types=kinds, rope_parameters=thetas)
    assert [layer.attention.window for layer in four.encoder.layers[:5]] == [None, 65, 65, 65, None]
    assert [layer.attention.rotary.theta for layer in four.encoder.layers[:2]] == [900.0, 40.0]
    assert [layer.attention.norm is None for layer in four.encoder.layers[:2]] == [True, False]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"global_attn_every_n_layers": 2}, "'layer_types' and 'global_attn_every_n_layers' disagree"),
        ({"global_attn_every_n_layers": 0, "layer_types": None}, "'global_attn_every_n_layers' is not a number"),
        ({"local_rope_theta": 50.0}, "rope_parameters and global_rope_theta/local_rope_theta disagree"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "reads no 'rope_scaling'"),
    ],
)
def test_what_versions_read_otherwise_is_refused(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=said):
        modern(tmp_path, **changes)


@pytest.mark.parametrize(
    ("class_name", "becomes"),
    [
        ("BertForPreTraining", "BertModel"),
        ("BertForMaskedLM", "BertModel"),
        ("RobertaForSequenceClassification", "RobertaModel"),
        ("ModernBertForSequenceClassification", "ModernBertModel"),
    ],
)
def test_without_its_head_it_is_the_bare_class(class_name: str, becomes: str, tmp_path: Path) -> None:
    build(class_name, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "bare", to="hf", options={"headless": True})
    assert json.loads((tmp_path / "bare/config.json").read_text())["architectures"] == [becomes]


def test_a_pooler_beside_a_head_for_masked_tokens_is_left_by_name(tmp_path: Path) -> None:
    """As in the published files of RoBERTa, which were saved with one."""
    build("RobertaForMaskedLM", tmp_path / "hf")
    stored = load_file(tmp_path / "hf/model.safetensors")
    hidden = stored["lm_head.bias"].new_zeros(stored["lm_head.dense.weight"].shape[0])
    save_file({**stored, "roberta.pooler.dense.bias": hidden}, tmp_path / "hf/model.safetensors")
    receipt = convert(tmp_path / "hf", tmp_path / "back", to="hf")
    assert_same_bits(load_file(tmp_path / "back/model.safetensors"), stored)
    assert "roberta.pooler.*" in {loss["subject"] for loss in receipt.body["losses"]}


def test_a_model_without_types_of_tokens_is_no_bert(tmp_path: Path) -> None:
    """BERT of transformers looks types up in a table even of no rows, and fails: DistilBERT is the class that runs."""
    judged.build("distilbert", tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "ir", to="ir")
    (tmp_path / "ir/ckpt-receipt.json").unlink()
    convert(tmp_path / "ir", tmp_path / "out", to="hf")
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["DistilBertForMaskedLM"]
    with pytest.raises(CkptError, match=r"type_vocab_size is a positive whole number[^\0]*tokens.types = 0"):
        convert(tmp_path / "ir", tmp_path / "bert", to="hf", options={"hf_class": "BertForMaskedLM"})
