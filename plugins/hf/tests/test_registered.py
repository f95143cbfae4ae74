"""The order in which classes register their parameters, and which of them the Trainer decays, judged by transformers."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.trainer_pt_utils import get_parameter_names

from ckpt_core.errors import NotCarried
from ckpt_core.sdk import architecture_of, layouts
from ckpt_hf.config import BY_TYPE
from ckpt_hf.registered import _ORDERS, is_decayed, registered
from ckpt_tests.families import CASES, SIZES

_NOT_DECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]  # trainer.py, 5.24
MODELS = {
    **{name: (name, SIZES) for name in ("llama", "mistral", "qwen2", "smollm3")},
    **{name: (case.model_type, case.config) for name, case in CASES.items() if case.model_type in _ORDERS},
}


def test_every_order_is_judged() -> None:
    assert {model_type for model_type, _ in MODELS.values()} == _ORDERS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_the_order_and_the_groups_are_those_of_transformers(name: str) -> None:
    model_type, given = MODELS[name]
    config = CONFIG_MAPPING[model_type](**given)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = [name for name, _ in model.named_parameters()]
    family = BY_TYPE[model_type]
    body = json.loads(config.to_json_string(use_diff=False)) | {"model_type": model_type}
    facts, _ = family.config.read(family.as_stored(body, set(names), lambda one, other: False), "config.json")
    tables = family.spellings(family.arranged_by(body))[-1]
    natives = layouts.BoundTables(tables, architecture_of(facts, "config.json")).natives()
    assert registered(model_type, family.class_name, natives) == names
    decayed = get_parameter_names(model, [torch.nn.LayerNorm], _NOT_DECAYED)
    assert [name for name in names if is_decayed(name)] == [name for name in names if name in decayed]


def test_a_class_whose_order_is_not_known_is_refused() -> None:
    for model_type, class_name in (("gpt2", "GPT2LMHeadModel"), ("llama", "LlamaForSequenceClassification")):
        with pytest.raises(NotCarried, match=f"the order in which {class_name} registers them is not known"):
            registered(model_type, class_name, {})
