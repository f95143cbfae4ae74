"""Every family, judged by transformers: its tensors and its logits survive hf -> ir -> hf, and its config is not decoration."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel

from ckpt_core import convert
from ckpt_core.api import config_architecture, read_checkpoint
from ckpt_core.checkpoint import Provenance
from ckpt_core.config import Ignore, Note
from ckpt_core.errors import CkptError
from ckpt_hf import load_model
from ckpt_hf.config import BY_TYPE
from ckpt_hf.model import build as model_of
from ckpt_hf.write import choose
from ckpt_tests import tiny
from ckpt_tests.families import CASES, CHANGES, LING, SAVED, build, tokens
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.models import load, logits_of, weights

TOLERANCE = 1e-5
MOVED = 1e-3  # what a wrong fact does to logits, at the least


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor]]:
    return {}


@pytest.fixture(params=CASES)
def case(
    request: pytest.FixtureRequest, made: dict, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, torch.Tensor]:
    """A model as transformers saves it, `hf`, and as ckpt does, `ir` and `back`; with its logits."""
    name = request.param
    if name not in made:
        folder = tmp_path_factory.mktemp(name)
        model = build(CASES[name], folder / "hf")
        convert(folder / "hf", folder / "ir", to="ir")
        convert(folder / "ir", folder / "back", to="hf")
        made[name] = (folder, logits_of(model, tokens()))
    return (name, *made[name])


def off_by(one: PreTrainedModel, other: PreTrainedModel) -> float:
    """By how much the logits of two models differ, in double precision where another class adds in another order."""
    if type(one) is not type(other):
        for model in (one, other):
            model.double().set_experts_implementation("eager")  # torch's grouped product has no float64
    return float((logits_of(one, tokens()) - logits_of(other, tokens())).abs().max())


def test_tensors_come_back_bit_for_bit(case: tuple[str, Path, torch.Tensor]) -> None:
    name, folder, _ = case
    published = SAVED.get(name, {})
    expected = {published.get(native, native): tensor for native, tensor in weights(folder / "hf").items()}
    assert_same_bits(weights(folder / "back"), expected)


def test_logits_are_equal(case: tuple[str, Path, torch.Tensor]) -> None:
    name, folder, expected = case
    model = load(folder / "back")
    assert type(model).__name__ == BY_TYPE[CASES[name].model_type].class_name
    assert torch.equal(logits_of(model, tokens()), expected)


def test_a_model_straight_from_the_ir_is_the_same(case: tuple[str, Path, torch.Tensor]) -> None:
    _, folder, expected = case
    assert (logits_of(load_model(folder / "ir"), tokens()) - expected).abs().max() < TOLERANCE


def test_a_wrong_config_would_show(case: tuple[str, Path, torch.Tensor], tmp_path: Path) -> None:
    name, folder, expected = case
    config = json.loads((folder / "back" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | CASES[name].ablation))
    (tmp_path / "model.safetensors").write_bytes((folder / "back" / "model.safetensors").read_bytes())
    assert (logits_of(load(tmp_path), tokens()) - expected).abs().max() > MOVED


@pytest.mark.parametrize("name", {case.model_type: name for name, case in CASES.items()}.values())
def test_a_key_left_out_means_what_the_class_says(name: str, tmp_path: Path) -> None:
    """transformers fills in its class's default: we read the same model as from the config it then writes, or refuse by name."""
    config = CONFIG_MAPPING[CASES[name].model_type](**copy.deepcopy(CASES[name].config)).to_dict()
    config = json.loads(json.dumps(config)) | {"architectures": [BY_TYPE[CASES[name].model_type].class_name]}
    entries = BY_TYPE[CASES[name].model_type].config.entries
    inert = {key for entry in entries if isinstance(entry, Ignore | Note) for key in entry.keys}
    for key in config.keys() - inert:
        path = tmp_path / key / "config.json"
        path.parent.mkdir()
        path.write_text(json.dumps({other: value for other, value in config.items() if other != key}))
        try:
            found = config_architecture(str(path))
        except CkptError as refusal:
            assert key in str(refusal)
            continue
        filled = AutoConfig.from_pretrained(path.parent).to_dict() | {"architectures": config["architectures"]}
        path.write_text(json.dumps(filled, default=str))
        assert found == config_architecture(str(path)), key


ALL_CHANGES = [(name, change) for name, changes in CHANGES.items() for change in changes]


@pytest.mark.parametrize(
    ("name", "change"), ALL_CHANGES, ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:60]
)
def test_a_field_survives_or_is_refused_by_name(name: str, change: dict[str, object], tmp_path: Path) -> None:
    model = build(CASES[name], tmp_path / "hf", **change)
    try:
        convert(tmp_path / "hf", tmp_path / "back", to="hf")  # by way of ir: `case`, and the laws of ir
    except CkptError as refusal:
        assert any(
            key in str(refusal)
            for key in [*change, *(key for value in change.values() if isinstance(value, dict) for key in value)]
        ), refusal
        return
    back = load(tmp_path / "back")
    assert off_by(back, model) < TOLERANCE


# Other spellings of the same files, older or of a bare state dict, with the keys of their configs.


def respelt(name: str, folder: Path, tensors: dict[str, torch.Tensor], **changes: object) -> Path:
    """The case's config, with keys changed (or removed, by None), beside other tensors."""
    config = json.loads((folder / "hf" / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if key not in changes or value is not None}
    target = folder / "other"
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, target / "model.safetensors")
    return target


def check(name: str, folder: Path, expected: torch.Tensor, path: Path) -> None:
    convert(path, folder / "from_other", to="hf")
    assert_same_bits(weights(folder / "from_other"), weights(folder / "hf"))
    assert torch.equal(logits_of(load(folder / "from_other"), tokens()), expected)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_fused_experts_of_a_state_dict_are_read(name: str, tmp_path: Path) -> None:
    model = build(CASES[name], tmp_path / "hf")
    other = respelt(name, tmp_path, model.state_dict())
    check(name, tmp_path, logits_of(model, tokens()), other)


def test_gpt2_without_prefix_and_with_masks_is_read(tmp_path: Path) -> None:
    model = build(CASES["gpt2"], tmp_path / "hf")
    tensors = {
        key.removeprefix("transformer."): tensor
        for key, tensor in load_file(tmp_path / "hf" / "model.safetensors").items()
    }
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(64, 64).tril().view(1, 1, 64, 64)
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    other = respelt("gpt2", tmp_path, tensors, n_ctx=64)
    check("gpt2", tmp_path, logits_of(model, tokens()), other)


def test_gpt_neox_as_version_4_wrote_it_is_read(tmp_path: Path) -> None:
    model = build(CASES["gpt_neox"], tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors |= {
        f"gpt_neox.layers.{layer}.attention.{name}": torch.zeros(1)
        for layer in range(2)
        for name in ("bias", "masked_bias", "rotary_emb.inv_freq")
    }
    other = respelt(
        "gpt_neox",
        tmp_path,
        tensors,
        rope_parameters=None,
        rotary_pct=0.5,
        rotary_emb_base=10000,
        rope_theta=10000.0,
        partial_rotary_factor=0.5,
    )
    check("gpt_neox", tmp_path, logits_of(model, tokens()), other)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("deepseek_v3", {"quantization_config": {"quant_method": "fp8"}}), ("falcon", {"alibi": True})],
)
def test_what_changes_the_output_and_has_no_fact_is_refused(
    name: str, changes: dict[str, object], tmp_path: Path
) -> None:
    build(CASES[name], tmp_path / "hf")
    other = respelt(name, tmp_path, load_file(tmp_path / "hf" / "model.safetensors"), **changes)
    with pytest.raises(CkptError, match=next(iter(changes))):
        read_checkpoint(other)


def test_phi3_of_the_hub_says_su(tmp_path: Path) -> None:
    model = build(CASES["phi3_longrope"], tmp_path / "hf")
    lists = {key: CASES["phi3_longrope"].config["rope_parameters"][key] for key in ("short_factor", "long_factor")}
    other = respelt(
        "phi3_longrope", tmp_path, load_file(tmp_path / "hf" / "model.safetensors"),
        rope_parameters=None, rope_scaling={"type": "su", **lists}, rope_theta=5000.0, partial_rotary_factor=0.75,
    )  # fmt: skip
    check("phi3_longrope", tmp_path, logits_of(model, tokens()), other)


@pytest.mark.parametrize(
    "said",
    [
        {"hidden_act": "gelu", "hidden_activation": None},
        {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
    ],
)
def test_gemma_says_gelu_and_means_tanh(said: dict[str, object], tmp_path: Path) -> None:
    model = build(CASES["gemma"], tmp_path / "hf")
    other = respelt("gemma", tmp_path, load_file(tmp_path / "hf" / "model.safetensors"), **said)
    check("gemma", tmp_path, logits_of(model, tokens()), other)


# The class is chosen by what can hold the model.


def test_without_a_hint_a_class_is_chosen_that_computes_the_same(case: tuple[str, Path, torch.Tensor]) -> None:
    name, folder, expected = case
    checkpoint = replace(read_checkpoint(folder / "hf"), provenance=Provenance())
    fit = choose(checkpoint)
    # where two classes hold a model exactly, the commoner one is preferred
    simpler = {
        "phi3": "mistral",
        "falcon_in_sequence": "starcoder2",
        "internlm3": "llama",
        "glm4_moe_lite": "deepseek_v3",
        "ernie4_5": "llama",
        "hy_v3": "glm4_moe",
        "qwen3_5_moe": "qwen3_next",
        "exaone": "llama",
        "iquestcoder": "llama",
        "sarvam_moe": "glm4_moe",
        "sarvam_mla": "deepseek_v3",
        "helium": "qwen2",
        "cwm": "ministral",
        "solar_open": "glm4_moe",
        "jais2": "starcoder2",
    }
    assert fit.family.model_type == simpler.get(name, CASES[name].model_type)
    model = model_of(checkpoint)
    if type(model).__name__ == BY_TYPE[CASES[name].model_type].class_name:
        assert (logits_of(model, tokens()) - expected).abs().max() < TOLERANCE
    else:
        assert off_by(model, load(folder / "hf")) < TOLERANCE


def test_a_llama_becomes_a_llama_unless_asked_otherwise(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama")
    checkpoint = replace(read_checkpoint(tmp_path / "hf"), provenance=Provenance())
    assert choose(checkpoint).family.model_type == "llama"
    assert choose(checkpoint, "mistral").family.model_type == "mistral"
    checkpoint = replace(checkpoint, provenance=Provenance({"model_type": "mistral"}))
    assert choose(checkpoint).family.model_type == "mistral"


@pytest.mark.parametrize(("name", "wanted", "lacks"), [
    ("gemma2", "llama", "attention.out_norm"), ("nemotron", "starcoder2", "attention.rotary.fraction"), ("olmo2", "qwen3", "attention.norm"),
    ("deepseek_v2", "deepseek_v3", "mlp.moe.router.score"), ("gpt2", "gpt_neox", "positions"), ("falcon", "gpt_neox", "shared_norm"),
    ("phi3_longrope", "llama", "attention.rotary.fraction"), ("mixtral", "mistral", "mlp.moe"),
])  # fmt: skip
def test_a_class_that_is_not_exact_is_refused_by_what_it_lacks(
    name: str, wanted: str, lacks: str, tmp_path: Path
) -> None:
    build(CASES[name], tmp_path / "hf")
    with pytest.raises(CkptError, match=lacks):
        choose(read_checkpoint(tmp_path / "hf"), wanted)


@pytest.mark.parametrize("name", ["cohere2", "exaone4"])
def test_a_class_that_rotates_where_windows_are_holds_no_other_model(name: str, tmp_path: Path) -> None:
    """Layers without a window that rotate all the same: Cohere 2 has none, EXAONE 4 only where no layer has a window."""
    build(CASES[name], tmp_path / "hf")
    checkpoint = read_checkpoint(tmp_path / "hf")
    decoder = checkpoint.architecture.decoder
    rotary = next(layer.attention.rotary for layer in decoder.layers if layer.attention.rotary)
    for windowed in (True, False):
        layers = tuple(
            replace(
                layer,
                attention=replace(layer.attention, rotary=rotary, window=layer.attention.window if windowed else None),
            )
            for layer in decoder.layers
        )
        other = replace(
            checkpoint, architecture=replace(checkpoint.architecture, decoder=replace(decoder, layers=layers))
        )
        if name == "exaone4" and not windowed:
            assert choose(other, name).config["sliding_window"] is None
            continue
        with pytest.raises(CkptError, match=r"attention\.(rotary|window)"):
            choose(other, name)


@pytest.mark.parametrize(
    ("name", "model_type", "class_name"),
    [("deepseek_v3", "kimi_k2", "DeepseekV3ForCausalLM"), ("qwen2", "mimo", "MiMoForCausalLM")],
)
def test_a_family_that_is_another_under_its_own_name_is_read_as_it(
    name: str, model_type: str, class_name: str, tmp_path: Path
) -> None:
    """transformers has no class of these names: the same weights and keys under the other name are the same model."""
    build(CASES[name], tmp_path / "hf") if name in CASES else tiny.build(tmp_path / "hf", name)
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    other = respelt(name, tmp_path, stored, model_type=model_type, architectures=[class_name])
    one, two = read_checkpoint(tmp_path / "hf"), read_checkpoint(other)
    assert one.architecture == two.architecture
    convert(other, tmp_path / "back", to="hf")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == (model_type, [class_name])
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "hf"))


def test_ling_2_is_sarvam_under_other_keys(tmp_path: Path) -> None:
    """Its class lies beside the files; Sarvam's files have its names, and transformers runs those as GLM-4.5."""
    build(CASES["sarvam_moe"], tmp_path / "hf")
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    ling = tmp_path / "ling"
    ling.mkdir()
    (ling / "config.json").write_text(json.dumps(LING))
    save_file(stored, ling / "model.safetensors")
    assert read_checkpoint(ling).architecture == read_checkpoint(tmp_path / "hf").architecture
    convert(ling, tmp_path / "back", to="hf")
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "hf"))
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bailing_moe", ["BailingMoeV2ForCausalLM"])


def test_ling_2_keeps_the_layers_that_predict_further_tokens(tmp_path: Path) -> None:
    build(CASES["sarvam_moe"], tmp_path / "hf")
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    last = {name: tensor for name, tensor in stored.items() if name.startswith("model.layers.1.")}
    stored |= {name.replace("layers.1.", "layers.2."): tensor + 1.0 for name, tensor in last.items()}
    stored |= {f"model.layers.2.{name}.weight": torch.rand(96) for name in ("enorm", "hnorm", "final_layernorm")}
    stored["model.layers.2.eh_proj.weight"] = torch.rand(96, 192)
    ling = tmp_path / "ling"
    ling.mkdir()
    (ling / "config.json").write_text(json.dumps(LING | {"num_nextn_predict_layers": 1}))
    save_file(stored, ling / "model.safetensors")
    convert(ling, tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "back", to="hf", options={"hf_class": "bailing_moe"})
    assert_same_bits(weights(tmp_path / "back"), stored)


def test_ling_2_takes_the_score_of_a_single_expert_as_it_is(tmp_path: Path) -> None:
    for chosen in (1, 2):
        (tmp_path / "config.json").write_text(json.dumps(LING | {"num_experts_per_tok": chosen}))
        router = config_architecture(str(tmp_path / "config.json")).decoder.layers[-1].mlp.moe.router
        assert router.normalise == (chosen > 1)
