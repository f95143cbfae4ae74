"""Layers that predict further tokens: kept bit for bit, computed as their frameworks compute them, dropped only when asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.errors import CkptError, Refusal
from ckpt_core.reference import Inputs, forward
from ckpt_core.testing import example, write_ir
from ckpt_hf import load_model
from ckpt_tests.families import CASES as FAMILIES
from ckpt_tests.families import build
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.goldens import Golden, beside
from ckpt_tests.models import load, logits_of, weights

TOLERANCE = 1e-4
KEY = "num_nextn_predict_layers"
DROP = {"predictors": "drop"}
CASES = [golden for golden in beside("families", "source_hf/config.json") if "mtp_logits" in golden.case["expected"]]
(DEEPSEEK,) = (golden for golden in CASES if golden.case["family"] == "deepseek_v3")

each = pytest.mark.parametrize("golden", CASES, ids=str)


def further(folder: Path, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The logits of the layers that predict further tokens."""
    with open_checkpoint(folder) as model:
        steps = list(forward(model, Inputs(tokens=tokens)))
    return [step.values for step in steps if step.name.startswith("predictors.") and step.name.endswith("logits")]


@each
def test_they_compute_what_megatron_computed(golden: Golden) -> None:
    expected = load_file(golden.folder / "expected.safetensors")["mtp_logits"]
    (found,) = further(golden.source, golden.input_ids.long())
    # after the last position there is no token to read; Megatron takes token 0
    assert found.shape[1] == expected.shape[1] - 1
    assert (found - expected[:, :-1]).abs().max() <= TOLERANCE


@each
def test_from_hf_to_hf_every_bit_stays_and_the_config_counts_them(golden: Golden, tmp_path: Path) -> None:
    convert(golden.source, tmp_path / "hf", to="hf")
    assert_same_bits(weights(tmp_path / "hf"), weights(golden.source))
    assert json.loads((tmp_path / "hf/config.json").read_text())[KEY] == 1


def changed(folder: Path, config: dict[str, object], change: Callable[[dict], dict] = dict) -> Path:
    """A copy of DeepSeek's golden with keys of its config, and its tensors, changed."""
    shutil.copytree(DEEPSEEK.source, folder)
    body = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(body))
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return folder


def without(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("model.layers.2.")}


def losses(checkpoint: Checkpoint) -> list[str]:
    return [str(loss) for loss in checkpoint.all_losses]


@pytest.mark.parametrize("through", ["hf", "ir"])
def test_they_are_dropped_when_asked_for_and_named(through: str, tmp_path: Path) -> None:
    source = DEEPSEEK.source
    if through == "ir":
        convert(source, tmp_path / "ir", to="ir")
        source = tmp_path / "ir"
    receipt = convert(source, tmp_path / "hf", to="hf", options=DROP)
    assert_same_bits(weights(tmp_path / "hf"), without(weights(DEEPSEEK.source)))
    assert json.loads((tmp_path / "hf/config.json").read_text())[KEY] == 0
    named = [loss for loss in receipt.losses if loss["kind"] == "dropped" and "predictors" in loss["subject"]]
    named += [loss for loss in receipt.losses if loss["kind"] == "dropped" and "layers.2" in loss["subject"]]
    assert len(named) == 1
    assert torch.equal(
        logits_of(load(tmp_path / "hf"), DEEPSEEK.input_ids), logits_of(load_model(source), DEEPSEEK.input_ids)
    )


def test_a_config_that_counts_layers_which_the_files_do_not_have_is_of_a_model_without(tmp_path: Path) -> None:
    """As transformers saves it: it has left them out, and keeps the key."""
    folder = changed(tmp_path / "hf", {}, without)
    with open_checkpoint(folder) as model:
        assert model.architecture.decoder.predictors is None
        (entry,) = (entry for entry in model.checkpoint.ledger if entry.key == KEY)
    assert entry.fate == "left"
    assert "do not have the layers" in entry.why
    assert fingerprint(folder) == fingerprint(DEEPSEEK.source, options=DROP)


def test_a_config_that_does_not_count_the_layers_in_the_files_is_of_a_model_with_them(tmp_path: Path) -> None:
    assert fingerprint(changed(tmp_path / "hf", {KEY: 0})) == fingerprint(DEEPSEEK.source)


def test_a_config_that_counts_others_than_the_files_have_is_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path / "hf", {KEY: 3})
    with pytest.raises(CkptError, match=KEY) as refusal:
        open_checkpoint(folder)
    assert "predictors=drop" in str(refusal.value)
    open_checkpoint(folder, options=DROP).close()


def test_a_copy_that_is_none_is_refused(tmp_path: Path) -> None:
    name = "model.layers.2.shared_head.head.weight"
    folder = changed(tmp_path / "hf", {}, lambda tensors: tensors | {name: tensors[name] + 1})
    with pytest.raises(CkptError, match="copies of head"):
        convert(folder, tmp_path / "ir", to="ir")


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    name = "model.layers.2.hnorm.weight"
    folder = changed(tmp_path / "hf", {}, lambda tensors: {key: tensors[key] for key in tensors if key != name})
    with pytest.raises(CkptError, match=r"model\.layers\.2\.hnorm\.weight"):
        open_checkpoint(folder)


def test_two_of_them_are_numbered_on(tmp_path: Path) -> None:
    names = {"model.layers.2.": "model.layers.3."}
    more = lambda tensors: {  # noqa: E731
        name.replace(*pair): tensor.clone() + 0.01 * ("embed" not in name and "head.head" not in name)
        for pair in names.items()
        for name, tensor in tensors.items()
        if name.startswith(pair[0])
    }
    folder = changed(tmp_path / "hf", {KEY: 2}, lambda tensors: tensors | more(tensors))
    convert(folder, tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "back", to="hf")
    assert_same_bits(weights(tmp_path / "back"), weights(folder))
    one, two = further(folder, DEEPSEEK.input_ids.long())
    assert one.shape[1] == two.shape[1] + 1


@pytest.mark.parametrize("to", ["hf", "deepspeed", "nanotron"])
def test_what_has_none_refuses_and_says_what_to_do(to: str, tmp_path: Path) -> None:
    source = write_ir(tmp_path / "ir", example("predicting", hidden=216))
    with pytest.raises(CkptError) as refusal:
        convert(source, tmp_path / "out", to=to, options={"hf_class": "llama"} if to == "hf" else {})
    assert "predictors.count = 2" in str(refusal.value)
    assert "-o predictors=drop" in str(refusal.value)
    assert_nothing_at(tmp_path / "out")
    convert(source, tmp_path / "out", to=to, options=DROP)


# MiMo, whose code lies beside its files: Qwen 2, and layers whose projection reads the hidden state first.


@pytest.fixture(scope="module")
def mimo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Qwen2ForCausalLM, Qwen2ForCausalLM]:
    """A folder of MiMo's, the Qwen 2 in it, and a Qwen 2 of one layer, which is that of its predictor with its last norm."""
    torch.manual_seed(7)
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=62, num_hidden_layers=2, rms_norm_eps=1e-5, tie_word_embeddings=False, **sizes)
    model = Qwen2ForCausalLM(config).eval()
    one = Qwen2ForCausalLM(
        Qwen2Config(**{**config.to_dict(), "num_hidden_layers": 1, "layer_types": ["full_attention"]})
    )
    for parameter in (*model.parameters(), *one.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("mimo") / "hf"
    model.save_pretrained(folder)
    body = json.loads((folder / "config.json").read_text())
    body |= {"architectures": ["MiMoForCausalLM"], "model_type": "mimo", KEY: 1}
    (folder / "config.json").write_text(json.dumps(body))
    layer = {f"model.mtp_layers.0.{name}": value for name, value in one.model.layers[0].state_dict().items()}
    layer |= {
        "model.mtp_layers.0.token_layernorm.weight": torch.randn(48),
        "model.mtp_layers.0.hidden_layernorm.weight": torch.randn(48),
        "model.mtp_layers.0.input_proj.weight": torch.randn(48, 96) / 7,
        "model.mtp_layers.0.final_layernorm.weight": one.model.norm.weight.detach(),
    }
    save_file(load_file(folder / "model.safetensors") | layer, folder / "model.safetensors", {"format": "pt"})
    return folder, model, one.eval()


def test_mimo_reads_the_hidden_state_first(mimo: tuple[Path, Qwen2ForCausalLM, Qwen2ForCausalLM]) -> None:
    folder, model, one = mimo
    tensors, tokens = load_file(folder / "model.safetensors"), torch.randint(0, 62, (2, 17))
    named = {name.removeprefix("model.mtp_layers.0."): value for name, value in tensors.items()}

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * named[f"{name}.weight"]

    with torch.no_grad():
        hidden = model.model(tokens).last_hidden_state[:, :-1]
        token = model.model.embed_tokens(tokens)[:, 1:]
        both = torch.cat([normed(hidden, "hidden_layernorm"), normed(token, "token_layernorm")], -1)
        u = both @ named["input_proj.weight"].T
        expected = model.lm_head(one.model(inputs_embeds=u).last_hidden_state)
    (found,) = further(folder, tokens)
    assert (found - expected).abs().max() <= TOLERANCE


def test_mimo_comes_back(mimo: tuple[Path, Qwen2ForCausalLM, Qwen2ForCausalLM], tmp_path: Path) -> None:
    convert(mimo[0], tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "hf", to="hf")
    assert_same_bits(weights(tmp_path / "hf"), weights(mimo[0]))
    with pytest.raises(Refusal, match="predict further tokens"):
        convert(mimo[0], tmp_path / "qwen", to="hf", options={"hf_class": "qwen2"})
    convert(mimo[0], tmp_path / "qwen", to="hf", options={"hf_class": "qwen2", **DROP})
    assert (
        logits_of(load(tmp_path / "qwen"), DEEPSEEK.input_ids) - logits_of(mimo[1], DEEPSEEK.input_ids)
    ).abs().max() < TOLERANCE


# Families of transformers whose published files have such layers, which transformers leaves out: the last layer of a model of one layer is theirs.

_FULL = {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
_QWEN = ("mtp.layers.0.", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.fc", "mtp.norm")
_HY = ("model.layers.2.", *(f"model.layers.2.{name}" for name in ("enorm", "hnorm", "eh_proj", "final_layernorm")))
FURTHER = {
    "qwen3_next": (_FULL, _QWEN),
    "qwen3_5": (_FULL, _QWEN),
    "qwen3_5_moe": (_FULL, _QWEN),
    "hy_v3": ({"num_hidden_layers": 1, "mlp_layer_types": ["sparse"]}, _HY),
}


def with_layer(name: str, folder: Path, packed: bool = False) -> torch.Tensor:
    """A family's model with one layer more; what that layer should say of `TOKENS`."""
    sizes, (prefix, embed_norm, hidden_norm, merge, out_norm) = FURTHER[name]
    model = build(FAMILIES[name], folder).float()
    one = AutoModelForCausalLM.from_config(type(model.config)(**{**model.config.to_dict(), **sizes})).float().eval()
    for parameter in one.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    one.save_pretrained(folder.with_name("one"))
    stored = dict(one.named_parameters()) if packed else load_file(folder.with_name("one") / "model.safetensors")
    layer = {key.replace("model.layers.0.", prefix): tensor for key, tensor in stored.items() if ".layers.0." in key}
    hidden = model.config.hidden_size
    more = {
        embed_norm: torch.randn(hidden),
        hidden_norm: torch.randn(hidden),
        merge: torch.randn(hidden, 2 * hidden) / 9,
    }
    layer |= {f"{key}.weight": tensor for key, tensor in {**more, out_norm: one.model.norm.weight}.items()}
    layer = {key: tensor.detach().contiguous() for key, tensor in layer.items()}
    weight_file = folder / "model.safetensors"
    save_file(
        {key: tensor.float() for key, tensor in load_file(weight_file).items()} | layer, weight_file, {"format": "pt"}
    )
    norm = type(model.model.norm)(hidden, eps=model.config.rms_norm_eps)

    def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        norm.weight.data = weight
        return norm(x)

    with torch.no_grad():
        f = model.model(TOKENS).last_hidden_state[:, :-1]
        e = model.model.embed_tokens(TOKENS)[:, 1:]
        u = torch.cat([normed(e, more[embed_norm]), normed(f, more[hidden_norm])], -1) @ more[merge].T
        return model.lm_head(one.model(inputs_embeds=u).last_hidden_state)


TOKENS = torch.randint(0, 61, (2, 17), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", FURTHER)
def test_a_layer_of_published_files_is_kept_and_computed(name: str, tmp_path: Path) -> None:
    source = tmp_path / "hf"
    expected = with_layer(name, source)
    (found,) = further(source, TOKENS)
    assert (found - expected).abs().max() <= TOLERANCE
    convert(source, tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "back", to="hf")
    assert_same_bits(weights(tmp_path / "back"), weights(source))
    assert fingerprint(tmp_path / "back") == fingerprint(source)
    with open_checkpoint(source, options=DROP) as model:
        assert model.architecture.decoder and model.architecture.decoder.predictors is None
        assert any("predict" in loss for loss in losses(model.checkpoint))


def test_its_experts_may_be_in_one_tensor(tmp_path: Path) -> None:
    """As the files of Qwen 3.6 have them, beside layers whose experts have tensors of their own."""
    expected = with_layer("qwen3_5_moe", tmp_path / "hf", packed=True)
    assert "mtp.layers.0.mlp.experts.gate_up_proj" in weights(tmp_path / "hf")
    (found,) = further(tmp_path / "hf", TOKENS)
    assert (found - expected).abs().max() <= TOLERANCE
    convert(tmp_path / "hf", tmp_path / "back", to="hf")
    assert "mtp.layers.0.mlp.experts.0.up_proj.weight" in weights(tmp_path / "back")
    assert fingerprint(tmp_path / "back") == fingerprint(tmp_path / "hf")
