"""What each version of NeMo wants of the files, and what is said of the version that a model needs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_nemo.gpt.template import TEMPLATE
from ckpt_nemo.gpt.versions import SINCE, needs
from ckpt_tests import nemo, tiny
from ckpt_tests.families import made

MODULES = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")


def losses(receipt) -> list[str]:
    return [f"{loss['kind']}: {loss['subject']} ({loss['reason']})" for loss in receipt.body["losses"]]


def test_rank_files_of_core_have_the_extra_states_that_a_strict_load_wants(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama", num_hidden_layers=4)
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", tp=2, pp=2, options={"names": "mcore", "backend": "ranks"})
    ranks = {name: data for name, data in nemo.members(tmp_path / "x.nemo").items() if name.endswith(".ckpt")}
    assert len(ranks) == 4
    for data in ranks.values():
        state = nemo.load(data)
        expected = {f"model.decoder.layers.{n}.{module}._extra_state" for n in range(2) for module in MODULES}
        assert {name for name in state if name.endswith("_extra_state")} == expected
        assert all(state[name] is None for name in expected)
    (tmp_path / "x.nemo.ckpt-receipt.json").unlink()
    assert fingerprint(tmp_path / "x.nemo", options={"vocab": "61"}) == fingerprint(tmp_path / "hf")
    with open_checkpoint(tmp_path / "x.nemo") as source:
        assert not [loss for loss in source.checkpoint.provenance.losses if "_extra_state" in loss.subject]


def test_rank_files_before_core_have_none(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama", num_key_value_heads=4, num_attention_heads=4)
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", options={"names": "legacy"})
    assert not [name for name in nemo.load(nemo.members(tmp_path / "x.nemo")["model_weights.ckpt"]) if "_extra" in name]


@pytest.mark.parametrize("container", ["ckpt", "folder", "nemo"])
def test_a_tokenizer_is_named_as_its_container_finds_it(container: str, tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama")
    (tmp_path / "hf/tokenizer.model").write_bytes(nemo.sentencepiece(61))
    convert(tmp_path / "hf", tmp_path / "run", to="nemo", options={"container": container, "backend": "ranks"})
    files = nemo.members(tmp_path / "run")
    if container != "ckpt":
        named = yaml.safe_load(files["model_config.yaml"])["tokenizer"]["model"]
        assert named.startswith("nemo:") and files[named[5:]] == nemo.sentencepiece(61)
        return
    named = yaml.safe_load(files["hparams.yaml"])["cfg"]["tokenizer"]["model"]
    assert os.path.isabs(named) and Path(named).read_bytes() == nemo.sentencepiece(61)
    assert Path(named).parent == tmp_path / "run"
    (step,) = (data for name, data in files.items() if name.endswith(".ckpt"))
    assert nemo.load(step)["hyper_parameters"]["cfg"]["tokenizer"]["model"] == named
    (tmp_path / "run").rename(tmp_path / "moved")  # the reader takes the file of that name beside the checkpoint
    (tmp_path / "moved/ckpt-receipt.json").unlink()
    convert(tmp_path / "moved", tmp_path / "back", to="hf")
    assert (tmp_path / "back/tokenizer.model").read_bytes() == nemo.sentencepiece(61)


def test_no_kernel_is_asked_for_that_may_be_absent() -> None:
    assert TEMPLATE["use_flash_attention"] is False


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_objects_of_two_axes_are_called_as_the_core_of_the_version_calls_them(family: str, tmp_path: Path) -> None:
    """Mixtral is for NeMo 1.23, whose core replaces the size of the last axis by the suffix; biases of q, k, v take NeMo 2."""
    made(family, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo")
    names = {name for name in nemo.members(tmp_path / "x.nemo") if ".experts.linear_fc1._extra_state/" in name}
    config = nemo.config_of(tmp_path / "x.nemo")
    layers, experts = config["num_layers"], config["num_moe_experts"]
    ends = {name.rpartition("/shard_")[2] for name in names}
    sizes = f"{layers}" if family == "mixtral" else f"{layers}.{experts}"
    assert ends == {f"{layer}.{expert}_{sizes}.pt" for layer in range(layers) for expert in range(experts)}
    (tmp_path / "x.nemo.ckpt-receipt.json").unlink()
    with open_checkpoint(tmp_path / "x.nemo") as source:
        assert not [loss for loss in source.checkpoint.provenance.losses if "shard_" in loss.subject]


@pytest.mark.parametrize(
    ("family", "version", "said"),
    [
        ("llama", "1.23.0", []),
        ("qwen2", "2.0.0", ["NeMo 2.0 or later: qkv_bias = True"]),
        ("qwen3", "2.0.0", ["NeMo 2.0 or later: qk_layernorm = True"]),
        ("mixtral", "1.23.0", ["NeMo 1.23 or later: num_moe_experts = 7"]),
    ],
)
def test_what_a_model_needs_of_nemo_is_said(family: str, version: str, said: list[str], tmp_path: Path) -> None:
    made(family, tmp_path / "hf")
    receipt = convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo")
    decisions = receipt.body["target"]["decisions"]
    assert decisions["nemo_version"] == version == nemo.config_of(tmp_path / "x.nemo")["nemo_version"]
    assert decisions["needs"][: len(said)] == said
    unread = [loss for loss in losses(receipt) if "before NeMo" in loss]
    newest = [line.removeprefix("NeMo 2.0 or later: ") for line in said if line.startswith("NeMo 2")]
    why = "an older one ignores it, and restores another model or fails: restore this with NeMo 2.0 or later"
    assert unread == [f"unsaid: {line} before NeMo 2.0 ({why})" for line in newest]


@pytest.mark.parametrize("line", SINCE, ids=lambda line: f"{line.key}-{'.'.join(map(str, line.version))}")
def test_a_key_is_needed_where_it_says_what_an_older_version_does_not_compute(line) -> None:
    config = {"mcore_gpt": line.names == "mcore"}
    for usual in (*line.usual, None):
        if not line.among:
            assert line not in needs({**config, line.key: usual}, "ranks").values()
    asked = line.among[0] if line.among else "other"
    assert line in needs({**config, line.key: asked}, "ranks").values()


def test_weights_of_all_ranks_together_need_a_version_too() -> None:
    assert [str(line) for line in needs({}, "torch_dist").values()] == ["NeMo 2.0 or later"]
    assert [str(line) for line in needs({}, "zarr").values()] == ["NeMo 1.21 or later"]
    narrow = {"ffn_hidden_size": 8, "moe_ffn_hidden_size": 4}
    assert [str(line) for line in needs(narrow, "ranks").values()] == ["NeMo 2.1 or later"]
    assert not needs({**narrow, "moe_ffn_hidden_size": 8}, "ranks")


def test_the_version_is_in_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ckpt_core.cli.main import main

    tiny.build(tmp_path / "hf", "qwen2")
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "x.nemo"), "--to", "nemo", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert any(loss["subject"] == "qkv_bias = True before NeMo 2.0" for loss in printed["losses"])
