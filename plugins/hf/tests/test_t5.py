"""T5, mT5, UMT5 and Blenderbot, judged by transformers: tensors, logits, configs, and which head a file really has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig

from ckpt_core import convert
from ckpt_core.api import config_architecture, read_checkpoint
from ckpt_core.checkpoint import Provenance
from ckpt_core.config import Ignore, Note
from ckpt_core.errors import CkptError
from ckpt_hf import load_model
from ckpt_hf.config import BY_TYPE
from ckpt_hf.write import choose
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.models import weights
from ckpt_tests.seq2seq import CASES, build, change_config, config_of, load, logits_of

TOLERANCE = 1e-5
MOVED = 1e-3  # what a wrong fact does to logits, at the least
ABLATIONS = {
    "t5_v1.0": {"feed_forward_proj": "gelu"}, "t5_v1.1": {"feed_forward_proj": "gated-gelu_python"}, "ul2": {"feed_forward_proj": "gated-gelu"},
    "mt5": {"relative_attention_max_distance": 30}, "umt5": {"relative_attention_max_distance": 30}, "umt5_own_head": {"layer_norm_epsilon": 0.5},
    "blenderbot": {"scale_embedding": True}, "blenderbot_own_head": {"activation_function": "relu"},
}  # fmt: skip
ERF = 1e-5  # the two GELUs are nearer to each other than any two other functions


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, torch.Tensor]]:
    """A case as transformers saved it (`hf`), through the intermediate representation (`ir`, `back`), and its logits."""
    found: dict[str, tuple[Path, torch.Tensor]] = {}

    def make(name: str) -> tuple[Path, torch.Tensor]:
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            model = build(name, folder / "hf")
            convert(folder / "hf", folder / "ir", to="ir")
            convert(folder / "ir", folder / "back", to="hf")
            found[name] = folder, logits_of(model)
        return found[name]

    return make


@pytest.mark.parametrize("name", CASES)
def test_tensors_come_back_and_compute_the_same(name: str, made: Callable) -> None:
    folder, expected = made(name)
    assert_same_bits(weights(folder / "back"), weights(folder / "hf"))
    model = load(folder / "back")
    assert type(model).__name__ == BY_TYPE[CASES[name][0]].class_name
    assert torch.equal(logits_of(model), expected)
    assert config_of(folder / "back")["decoder_start_token_id"] == 5


@pytest.mark.parametrize("name", CASES)
def test_a_model_straight_from_the_ir_is_the_same(name: str, made: Callable) -> None:
    folder, expected = made(name)
    assert torch.equal(logits_of(load_model(folder / "ir")), expected)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_config_would_show(name: str, made: Callable, tmp_path: Path) -> None:
    folder, expected = made(name)
    shutil.copytree(folder / "back", tmp_path / "wrong")
    change_config(tmp_path / "wrong", **ABLATIONS[name])
    assert (logits_of(load(tmp_path / "wrong")) - expected).abs().max() > (ERF if name == "t5_v1.1" else MOVED)


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5", "blenderbot"])
def test_a_key_left_out_means_what_the_class_says(kind: str, tmp_path: Path) -> None:
    """transformers fills in its class's default: we read the same model as from the config it then writes, or refuse by name."""
    given = next(config for model_type, config, _ in CASES.values() if model_type == kind)
    config = json.loads(json.dumps(CONFIG_MAPPING[kind](**given).to_dict())) | {
        "architectures": [BY_TYPE[kind].class_name]
    }
    inert = {key for entry in BY_TYPE[kind].config.entries if isinstance(entry, Ignore | Note) for key in entry.keys}
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


CHANGES: list[tuple[str, dict[str, object]]] = [
    *(("t5_v1.1", {"feed_forward_proj": name}) for name in ("relu", "gelu", "gelu_new", "gated-gelu_new", "gated-gelu_python", "gated-relu", "gated-mish")),
    ("t5_v1.0", {"layer_norm_epsilon": 0.25}), ("t5_v1.0", {"relative_attention_max_distance": 30}), ("t5_v1.0", {"num_decoder_layers": None}),
    ("t5_v1.0", {"relative_attention_num_buckets": 16}), ("t5_v1.0", {"dropout_rate": 0.5}), ("t5_v1.0", {"is_decoder": True}),
    ("umt5", {"feed_forward_proj": "relu"}), ("umt5", {"d_kv": 6}), ("umt5", {"relative_attention_num_buckets": 16}),
    ("blenderbot", {"activation_function": "relu"}), ("blenderbot", {"encoder_ffn_dim": 32}), ("blenderbot", {"max_position_embeddings": 21}),
    ("blenderbot", {"encoder_attention_heads": 9}), ("blenderbot", {"decoder_layers": 1}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change"), CHANGES, ids=lambda value: value if isinstance(value, str) else json.dumps(value)
)
def test_a_field_survives_or_is_refused_by_name(name: str, change: dict[str, object], tmp_path: Path) -> None:
    model = build(name, tmp_path / "hf", **change)
    try:
        convert(tmp_path / "hf", tmp_path / "ir", to="ir")
        convert(tmp_path / "ir", tmp_path / "back", to="hf")
    except CkptError as refusal:
        assert change.keys() & {"is_decoder"} or "mish" in str(refusal)
        assert any(key in str(refusal) for key in change)
        return
    assert (logits_of(load(tmp_path / "back")) - logits_of(model)).abs().max() < TOLERANCE


def test_every_key_that_no_line_knows_is_an_error(made: Callable, tmp_path: Path) -> None:
    for name in ("t5_v1.0", "blenderbot"):
        shutil.copytree(made(name)[0] / "hf", tmp_path / name)
        change_config(tmp_path / name, layer_norm_eps=1e-3)
        with pytest.raises(CkptError, match="layer_norm_eps"):
            read_checkpoint(tmp_path / name)


# --- which head a file has: versions 4 and 5 of transformers write it differently ------------------------------------------


def as_version_4(folder: Path, target: Path, **changes: object) -> Path:
    """A folder of version 5 as version 4 saved the same model."""
    shutil.copytree(folder, target)
    change_config(target, **{"transformers_version": "4.30.2", "scale_decoder_outputs": None, **changes})
    return target


@pytest.mark.parametrize("name", ["t5_v1.1", "mt5", "umt5"])
def test_files_of_version_4_are_the_same_model(name: str, made: Callable, tmp_path: Path) -> None:
    folder, expected = made(name)
    own_head = CASES[name][2]
    old = as_version_4(folder / "hf", tmp_path / "old", tie_word_embeddings=not own_head)
    tensors = load_file(old / "model.safetensors")
    copies = {f"{stack}.embed_tokens.weight": tensors["shared.weight"].clone() for stack in ("encoder", "decoder")}
    left = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(12, 4)}
    save_file(
        tensors | copies | left | ({} if own_head else {"lm_head.weight": tensors["shared.weight"].clone()}),
        old / "model.safetensors",
    )
    receipt = convert(old, tmp_path / "new", to="hf")
    assert {("dropped", name) for name in left} <= {(loss["kind"], loss["subject"]) for loss in receipt.body["losses"]}
    assert_same_bits(weights(tmp_path / "new"), tensors)
    assert torch.equal(logits_of(load(tmp_path / "new")), expected)


@pytest.mark.parametrize("name", ["t5_v1.1", "mt5"])
def test_a_tied_head_that_version_5_saves_unscaled_is_written_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files say it with a key, or a class, that version 4 takes otherwise; a second matrix means the same to both."""
    config = {**CASES[name][1]}
    monkeypatch.setitem(CASES, "tied", (CASES[name][0], config, False))
    model = build("tied", tmp_path / "hf")
    assert "lm_head.weight" not in weights(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "back", to="hf")
    assert config_of(tmp_path / "back")["tie_word_embeddings"] is False
    assert torch.equal(weights(tmp_path / "back")["lm_head.weight"], weights(tmp_path / "hf")["shared.weight"])
    assert torch.equal(logits_of(load(tmp_path / "back")), logits_of(model))


@pytest.mark.parametrize("name", ["t5_v1.0", "t5_v1.1", "mt5", "umt5"])
def test_version_5_ties_a_stored_head_only_where_it_is_the_embedding(name: str, made: Callable, tmp_path: Path) -> None:
    """Its folders say `tie_word_embeddings: true` of every head; a state dict in memory stores a tied one, too."""
    for place in ("same", "other"):
        shutil.copytree(made(name)[0] / "hf", tmp_path / place)
        tensors = load_file(tmp_path / place / "model.safetensors")
        head = tensors["shared.weight"].clone()
        head[60, 35] += place == "other"
        save_file({**tensors, "lm_head.weight": head}, tmp_path / place / "model.safetensors", {"format": "pt"})
        assert config_of(tmp_path / place)["tie_word_embeddings"] is True
        assert read_checkpoint(tmp_path / place).architecture.head.tied == (place == "same")
        difference = logits_of(load_model(tmp_path / place)) - logits_of(load(tmp_path / place))
        assert difference.abs().max() < TOLERANCE  # a factor of the logits is folded into a head of its own


@pytest.mark.parametrize(("name", "tied"), [("mt5", True), ("umt5", False)])
def test_a_head_that_the_versions_scale_differently_needs_the_version(
    name: str, tied: bool, made: Callable, tmp_path: Path
) -> None:
    shutil.copytree(made(name)[0] / "hf", tmp_path / "hf")
    change_config(tmp_path / "hf", transformers_version=None, tie_word_embeddings=tied)
    with pytest.raises(CkptError, match="which version wrote it"):
        read_checkpoint(tmp_path / "hf")
    for version, scaled in (("4.30.2", tied), ("5.1.0", not tied)):
        change_config(tmp_path / "hf", transformers_version=version, tie_word_embeddings=tied)
        head = config_architecture(str(tmp_path / "hf" / "config.json")).head
        assert (head.tied, head.scale == 1) == (tied, not scaled)


def test_what_is_written_for_one_version_says_which(made: Callable, tmp_path: Path) -> None:
    """A UMT5 with a head of its own can be read again without its receipt."""
    convert(made("umt5_own_head")[0] / "hf", tmp_path / "other", to="hf", options={"hf_class": "umt5"})
    (tmp_path / "other" / "ckpt-receipt.json").unlink()
    head = read_checkpoint(tmp_path / "other").architecture.head
    assert head == read_checkpoint(made("umt5_own_head")[0] / "hf").architecture.head and not head.tied


def test_keys_that_contradict_each_other_are_refused(made: Callable, tmp_path: Path) -> None:
    shutil.copytree(made("t5_v1.1")[0] / "hf", tmp_path / "hf")
    for key, value in (
        ("dense_act_fn", "relu"),
        ("is_gated_act", False),
        ("scale_decoder_outputs", "yes"),
        ("tie_word_embeddings", 1),
    ):
        before = config_of(tmp_path / "hf")
        change_config(tmp_path / "hf", **{key: value})
        with pytest.raises(CkptError, match=key):
            config_architecture(str(tmp_path / "hf" / "config.json"))
        (tmp_path / "hf" / "config.json").write_text(json.dumps(before))


# --- the class is chosen by what can hold the model ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("t5_v1.0", "t5"), ("mt5", "t5"), ("umt5", "umt5"), ("umt5_own_head", "umt5"), ("blenderbot", "blenderbot")],
)
def test_without_a_hint_the_first_exact_class_is_chosen(name: str, chosen: str, made: Callable) -> None:
    checkpoint = replace(read_checkpoint(made(name)[0] / "ir"), provenance=Provenance())
    assert choose(checkpoint).family.model_type == chosen


@pytest.mark.parametrize(("name", "wanted"), [("t5_v1.0", "umt5"), ("t5_v1.0", "mt5"), ("ul2", "umt5"), ("mt5", "t5")])
def test_a_class_that_is_asked_for_gets_what_it_needs(name: str, wanted: str, made: Callable, tmp_path: Path) -> None:
    folder, expected = made(name)
    convert(folder / "hf", tmp_path / "other", to="hf", options={"hf_class": wanted})
    model = load(tmp_path / "other")
    assert type(model).__name__ == BY_TYPE[wanted].class_name
    assert (logits_of(model) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(("name", "wanted", "lacks"), [
    ("umt5", "t5", "attention.relative_bias"), ("blenderbot", "t5", "positions"), ("t5_v1.0", "blenderbot", "relative_bias"), ("t5_v1.0", "llama", "kind"),
])  # fmt: skip
def test_a_class_that_is_not_exact_is_refused_by_what_it_lacks(
    name: str, wanted: str, lacks: str, made: Callable
) -> None:
    with pytest.raises(CkptError, match=lacks):
        choose(read_checkpoint(made(name)[0] / "hf"), wanted)
