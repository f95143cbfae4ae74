"""Every key of every HF config class: it survives, or it is refused by name; and left out it means what the class says."""

from __future__ import annotations

import copy
import importlib
import json
import pkgutil
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING, AutoConfig

from ckpt_core.api import config_architecture
from ckpt_core.architecture import facts_of
from ckpt_core.config import Ignore
from ckpt_core.errors import CkptError
from ckpt_hf import families as modules
from ckpt_hf.config import BY_TYPE, classes_of
from ckpt_hf.config import FAMILIES as CLASSES
from ckpt_tests import tiny

FAMILIES = list(tiny.CONFIGS)
WINDOWS = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 30000.0}

# Other values of every key, alone or with the keys that give it a meaning. A dict holds several keys at once.
# fmt: off
OTHERS: dict[str, list[object]] = {
    "vocab_size": [60, 64], "hidden_size": [120], "intermediate_size": [57], "num_hidden_layers": [2, 5], "num_attention_heads": [24],
    "num_key_value_heads": [1, 12], "head_dim": [10], "hidden_act": ["gelu", "gelu_pytorch_tanh", "relu", "silu", "swoosh"],
    "rms_norm_eps": [1e-5], "norm_epsilon": [1e-6], "tie_word_embeddings": [True, False],
    "rope_parameters": [LINEAR, {"rope_type": "default", "rope_theta": 5e5}, {"rope_type": "spiral", "rope_theta": 1e4}, {**LINEAR, "wobble": 3}],
    "rope_theta": [5e5], "rope_scaling": [{"rope_type": "linear", "factor": 2.0}],
    "partial_rotary_factor": [0.5],
    "attention_bias": [True], "mlp_bias": [True], "use_bias": [False], "qkv_bias": [False],
    "sliding_window": [7], "use_sliding_window": [WINDOWS], "max_window_layers": [WINDOWS, WINDOWS | {"max_window_layers": 2}],
    "layer_types": [WINDOWS | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, ["linear_attention"] * 3],
    "no_rope_layers": [[1, 0, 1]], "no_rope_layer_interval": [3],
    "num_experts": [7], "num_experts_per_tok": [3], "moe_intermediate_size": [25], "shared_expert_intermediate_size": [41],
    "norm_topk_prob": [True], "decoder_sparse_step": [2, 3], "mlp_only_layers": [[1]],
    "max_position_embeddings": [128], "initializer_range": [0.5], "bos_token_id": [5, None], "eos_token_id": [6, [6, 7]], "pad_token_id": [7],
    "is_decoder": [True], "is_encoder_decoder": [True], "add_cross_attention": [True], "tie_encoder_decoder": [True], "quantization_config": [{"bits": 4}],
}
# fmt: on


# a wrong value is named by its key, a contradiction by the facts it follows from
SAID_AS = {
    "hidden_size": ["hidden", "head_dim"], "num_hidden_layers": ["layers"], "num_attention_heads": ["heads", "head_dim"],
    "num_key_value_heads": ["groups"], "vocab_size": ["vocabulary"], "intermediate_size": ["ffn"], "sliding_window": ["window"],
    "tie_word_embeddings": ["head.tied"], "rms_norm_eps": ["norm.eps"], "rope_parameters": ["'wobble'"],
    "rope_scaling": ["'wobble'"], "rope_theta": ["rotary.theta"], "partial_rotary_factor": ["rotary.fraction"], "norm_epsilon": ["norm.eps"],
    "attention_bias": ["_bias"], "mlp_bias": ["_bias"], "use_bias": ["_bias"], "qkv_bias": ["_bias"], "num_experts": ["experts", "mlp.moe"],
    "num_experts_per_tok": ["top_k"], "moe_intermediate_size": ["moe.ffn"], "shared_expert_intermediate_size": ["shared.ffn"],
    "norm_topk_prob": ["normalise"], "use_sliding_window": ["attention.window"],
}  # fmt: skip


def test_every_family_of_a_module_is_found_by_its_type() -> None:
    """The table of types, by which a module is imported, knows every family that some module says."""
    names = [f"{modules.__name__}.{module.name}" for module in pkgutil.iter_modules(modules.__path__)]
    said = [family for name in names for family in getattr(importlib.import_module(name), "FAMILIES", ())]
    assert {id(family) for family in said} == {
        id(family) for family in CLASSES if family.head is None or not family.like
    }
    assert list(dict.fromkeys(family.model_type for family in CLASSES)) == list(BY_TYPE)
    for kind in BY_TYPE:
        assert classes_of(kind) == [family for family in CLASSES if family.model_type == kind]


def names(problem: CkptError, key: str) -> bool:
    return any(name in str(problem) for name in [key, *SAID_AS.get(key, [])])


def base(family: str) -> dict[str, object]:
    """The config.json that transformers writes for the tiny model of a family."""
    config = tiny.config_of(family).to_dict()
    config["architectures"] = [BY_TYPE[family].class_name]
    return json.loads(json.dumps(config))


def with_key(family: str, key: str, value: object) -> dict[str, object]:
    """The family's config with another value of a key, and without what would say otherwise."""
    config = base(family)
    changes = value if isinstance(value, dict) and key in value else {key: value}
    if key in ("use_sliding_window", "max_window_layers", "sliding_window") and config.get("layer_types"):
        del config["layer_types"]  # it follows from these
    if key in ("num_hidden_layers", "no_rope_layer_interval"):
        config.pop("layer_types", None)
        config.pop("no_rope_layers", None)
    if key in ("rope_theta", "rope_scaling"):
        config.pop("rope_parameters", None)
    if key in ("hidden_size", "num_attention_heads"):
        config.pop("head_dim", None)
    return config | changes


def write(config: dict[str, object], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def by_way_of_ir(config: dict[str, object], folder: Path) -> dict[str, object]:
    """config.json -> architecture -> config.json, as a conversion to ir and back does."""
    path = write(config, folder)
    family = BY_TYPE[str(config["model_type"])]
    _, notes = family.config.read(config, str(path))
    architecture = config_architecture(str(path))
    assert architecture is not None
    return {"model_type": family.model_type, **family.config.write(facts_of(architecture), notes)}


def ignored(family: str) -> set[str]:
    return {key for entry in BY_TYPE[family].config.entries if isinstance(entry, Ignore) for key in entry.keys}


KEYS = [
    (family, key, value)
    for family in FAMILIES
    for key, values in OTHERS.items()
    for value in values
    if key in BY_TYPE[family].config.keys - ignored(family)
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_has_every_key_of_the_class(family: str) -> None:
    assert set(base(family)) - ignored(family) <= set(OTHERS)


@pytest.mark.parametrize(
    ("family", "key", "value"), KEYS, ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:40]
)
def test_a_key_survives_or_is_refused_by_name(family: str, key: str, value: object, tmp_path: Path) -> None:
    config = with_key(family, key, value)
    try:
        back = by_way_of_ir(copy.deepcopy(config), tmp_path / "a")
    except CkptError as refusal:
        said = str(refusal)
        assert key in said or (isinstance(value, dict) and any(str(part) in said for part in value.values())), said
        assert "config.json" in said
        return
    write(config, tmp_path / "a")
    write(back, tmp_path / "b")
    assert tiny.auto_config(tmp_path / "b") == tiny.auto_config(tmp_path / "a")


@pytest.mark.parametrize(
    ("family", "key"),
    [(family, key) for family in FAMILIES for key in base(family) if key in BY_TYPE[family].config.keys],
)
def test_a_key_left_out_means_what_the_class_says(family: str, key: str, tmp_path: Path) -> None:
    """transformers fills in its class's default: we read the same model as from the config it then writes, or refuse."""
    if key in ignored(family):
        return
    config = base(family)
    del config[key]
    path = write(config, tmp_path / "without")
    try:
        found = config_architecture(str(path))
    except CkptError as refusal:
        assert names(refusal, key), refusal
        return
    filled = write(AutoConfig.from_pretrained(tmp_path / "without").to_dict(), tmp_path / "with")
    assert found == config_architecture(str(filled))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_key_is_refused_with_the_nearest(family: str, tmp_path: Path) -> None:
    with pytest.raises(CkptError) as caught:
        config_architecture(str(write(base(family) | {"num_atention_heads": 12}, tmp_path / "hf")))
    assert "unknown config key 'num_atention_heads'" in caught.value.problem
    assert caught.value.fix == "did you mean 'num_attention_heads'?"
    assert caught.value.file.endswith("config.json")


def test_a_theta_beside_the_parameters_of_version_5_is_theirs(tmp_path: Path) -> None:
    """Who writes `rope_parameters` and no `rope_scaling` writes for version 5, which takes a theta from beside them."""
    linear = {"rope_type": "linear", "factor": 2.0}
    plain = {key: value for key, value in base("llama").items() if key not in ("rope_theta", "rope_scaling")}
    inside = write(plain | {"rope_parameters": linear | {"rope_theta": 5000.0}}, tmp_path / "inside")
    beside = plain | {"rope_parameters": linear, "rope_theta": 5000.0}
    assert config_architecture(str(write(beside, tmp_path / "beside"))) == config_architecture(str(inside))
    with pytest.raises(CkptError, match="disagree"):
        config_architecture(str(write(beside | {"rope_scaling": None}, tmp_path / "null")))


def test_a_kind_of_layer_can_not_say_that_yarn_is_not_truncated(tmp_path: Path) -> None:
    """transformers looks for `truncate` beside the kinds of layers, where it can't be (modeling_rope_utils.py, 5.24)."""
    config = CONFIG_MAPPING["gemma3_text"](num_hidden_layers=6).to_dict()
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e6}
    config |= {
        "architectures": ["Gemma3ForCausalLM"],
        "rope_parameters": config["rope_parameters"] | {"full_attention": yarn},
    }
    architecture = config_architecture(str(write(config, tmp_path / "hf")))
    assert architecture is not None
    facts = facts_of(architecture)
    facts["attention.rotary.scaling.truncate"] = False
    with pytest.raises(CkptError, match="whatever is said of a kind of layer"):
        BY_TYPE["gemma3_text"].config.write(facts, {})
    yarn["truncate"] = False
    with pytest.raises(CkptError, match="reads no 'truncate' of a kind of layer"):
        config_architecture(str(write(config, tmp_path / "hf")))


def test_all_problems_of_a_config_are_reported_at_once(tmp_path: Path) -> None:
    config = base("llama") | {"wobble": 1, "hidden_act": "swoosh"}
    del config["hidden_size"]
    with pytest.raises(CkptError) as caught:
        config_architecture(str(write(config, tmp_path / "hf")))
    for name in ("wobble", "swoosh", "hidden_size"):
        assert name in str(caught.value)


def test_an_unknown_model_type_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(CkptError) as caught:
        config_architecture(str(write(base("llama") | {"model_type": "lama"}, tmp_path / "hf")))
    assert caught.value.expected.split(", ") == list(BY_TYPE)
    assert caught.value.fix == "did you mean 'llama'?"


WRONG = ["many", [3], [None, {}], {"wobble": 1}, 1.5, -4, 0, True, None, 10**30]
NOTES = {
    "max_position_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}  # carried, never computed with


@pytest.mark.parametrize(("family", "key"), sorted({(family, key) for family, key, _ in KEYS}))
def test_a_wrong_value_is_an_error_that_names_the_key(family: str, key: str, tmp_path: Path) -> None:
    """Never a crash; and what is accepted is a value of the right type, or of a key that nothing asks for."""
    same = config_architecture(str(write(base(family), tmp_path / "same")))
    for value in WRONG:
        path = write(with_key(family, key, value), tmp_path / "hf")
        try:
            architecture = config_architecture(str(path))
        except CkptError as problem:
            assert names(problem, key), (value, problem)
            assert "config.json" in str(problem)
        else:
            right = value is None or isinstance(value, int | float)
            assert right or key in NOTES or architecture == same, value
