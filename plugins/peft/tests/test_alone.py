"""Adapters by themselves, from one kind into another: the golden of Megatron-Bridge and its own export to PEFT, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from transformers import Phi3Config, Phi3ForCausalLM

from ckpt_core import convert, open_checkpoint
from ckpt_core.cli.main import main
from ckpt_core.errors import CkptError
from ckpt_core.receipt import find_receipt
from ckpt_tests import adapters
from ckpt_tests.adapters import ALPHA, RANK, embedding_pair, pair
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.goldens import beside
from ckpt_tests.models import weights

GOLDEN = beside("lora", "checkpoint/latest_checkpointed_iteration.txt")[0]
ADAPTER, BASE = GOLDEN.folder / "adapter", GOLDEN.folder / "base"
BRIDGE, PEFT = "megatron-lora", "peft"
Tensors = dict[str, torch.Tensor]
PHI3 = Phi3Config(
    vocab_size=61,
    hidden_size=48,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
)


def distributed(root: Path) -> Tensors:
    """The tensors of the only iteration of a run, as torch loads them."""
    (folder,) = root.glob("iter_*")
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(one.size) for name, one in metadata.items() if hasattr(one, "size")}
    dcp.load(tensors, checkpoint_id=folder, no_dist=True)
    return tensors


def test_to_peft_as_bridge_exports_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    convert(GOLDEN.checkpoint, tmp_path / "out", to=PEFT)
    assert_same_bits(
        load_file(tmp_path / "out/adapter_model.safetensors"), load_file(ADAPTER / "adapter_model.safetensors")
    )
    ours, theirs = (json.loads((one / "adapter_config.json").read_text()) for one in (tmp_path / "out", ADAPTER))
    assert ours == theirs | {"base_model_name_or_path": ours["base_model_name_or_path"]}
    assert main(["verify", str(GOLDEN.checkpoint), str(tmp_path / "out")]) == 0
    assert "22 equal" in capsys.readouterr().out
    ours["lora_alpha"] = 7
    (tmp_path / "out/adapter_config.json").write_text(json.dumps(ours))
    assert main(["verify", str(GOLDEN.checkpoint), str(tmp_path / "out")]) == 3
    assert "scale" in capsys.readouterr().out


def test_to_bridge_and_back(tmp_path: Path) -> None:
    receipt = convert(ADAPTER, tmp_path / "run", to=BRIDGE, config=BASE / "config.json")
    assert_same_bits(distributed(tmp_path / "run"), distributed(GOLDEN.checkpoint))
    (file,) = (tmp_path / "run").glob("iter_*/run_config.yaml")
    (known,) = GOLDEN.checkpoint.glob("iter_*/run_config.yaml")
    ours, theirs = (yaml.safe_load(one.read_text())["peft"] for one in (file, known))
    assert {**ours, "target_modules": set(ours["target_modules"])}.items() <= {
        **theirs,
        "target_modules": set(theirs["target_modules"]),
    }.items()
    back = convert(tmp_path / "run", tmp_path / "back", to=PEFT)
    assert back.fingerprint == receipt.fingerprint
    assert_same_bits(
        load_file(tmp_path / "back/adapter_model.safetensors"), load_file(ADAPTER / "adapter_model.safetensors")
    )
    convert(tmp_path / "run", tmp_path / "hf", to="hf", options={"base": str(BASE)})
    assert_same_bits(weights(tmp_path / "hf"), load_file(GOLDEN.folder / "full.safetensors"))
    assert "adapter" in find_receipt(str(tmp_path / "run")).body


def pairs(before: Tensors, *modules: str, rank: int = RANK) -> Tensors:
    named = [name.removesuffix(".weight") for name in before if name.removesuffix(".weight").endswith(modules)]
    return {key: tensor for name in named for key, tensor in pair(name, before[f"{name}.weight"], rank).items()}


# Adapters on a part of what Megatron fuses, and with more than one rank; what a model becomes by them must not change.
REWRITTEN: dict[str, tuple[str, Callable[[Tensors], Tensors], dict[str, object]]] = {
    "q and v, each with its own A": ("llama", lambda t: pairs(t, "q_proj", "v_proj"), {}),
    "all of a layer": ("llama", lambda t: pairs(t, "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"), {}),
    "two ranks and one scale": (
        "llama",
        lambda t: pairs(t, "o_proj") | pairs(t, "down_proj", rank=2),
        {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": ALPHA / RANK * 2}},
    ),
    "one layer": ("llama", lambda t: pairs(t, "1.self_attn.o_proj", "1.mlp.up_proj"), {}),
    "fused where the base is, too": ("phi3", lambda t: pairs(t, "qkv_proj", "gate_up_proj"), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", REWRITTEN)
def test_the_model_is_the_same(name: str, tmp_path: Path) -> None:
    family, made, config = REWRITTEN[name]
    if family == "phi3":
        Phi3ForCausalLM(PHI3).save_pretrained(tmp_path / "base")
        before = weights(tmp_path / "base")
    else:
        before = adapters.base(tmp_path / "base", family, torch.float32)
    base = {"base": str(tmp_path / "base")}
    adapter = adapters.save(tmp_path / "adapter", made(before), **config)
    convert(adapter, tmp_path / "run", to=BRIDGE, config=tmp_path / "base/config.json")
    assert main(["verify", str(adapter), str(tmp_path / "run"), "--config", str(tmp_path / "base/config.json")]) == 0
    convert(tmp_path / "run", tmp_path / "back", to=PEFT, options={"hf_class": family} if family == "phi3" else {})
    for number, one in enumerate((adapter, tmp_path / "run", tmp_path / "back")):
        convert(one, tmp_path / f"hf{number}", to="hf", options=base)
    for other in ("hf1", "hf2"):
        assert_same_bits(weights(tmp_path / other), weights(tmp_path / "hf0"))


CANONICAL = "megatron.bridge.peft.canonical_lora.CanonicalLoRA"


def canonical(tmp_path: Path, made: Callable[[Tensors], Tensors], **config: object) -> tuple[Path, Path]:
    """An adapter of PEFT, and what it is with an adapter for each of q, k, v, gate and up."""
    before = adapters.base(tmp_path / "base", dtype=torch.float32)
    adapter = adapters.save(tmp_path / "adapter", made(before), **config)
    convert(adapter, tmp_path / "run", to=BRIDGE, config=tmp_path / "base/config.json", options={"canonical": True})
    return adapter, tmp_path / "run"


def config_of_run(run: Path) -> tuple[Path, dict]:
    (file,) = run.glob("iter_*/run_config.yaml")
    return file, yaml.safe_load(file.read_text())


def test_parts_of_fused_layers_keep_adapters_of_their_own(tmp_path: Path) -> None:
    """Each has its own A, and the rank stays what it is."""
    adapter, run = canonical(tmp_path, lambda t: pairs(t, "q_proj", "v_proj", "up_proj", "down_proj"))
    _, config = config_of_run(run)
    assert config["peft"]["_target_"] == CANONICAL and config["peft"]["dim"] == RANK
    assert config["peft"]["target_modules"] == ["linear_fc1_up", "linear_fc2", "linear_q", "linear_v"]
    (iteration,) = run.glob("iter_*")
    names = set(FileSystemReader(iteration).read_metadata().state_dict_metadata)
    assert "decoder.layers.self_attention.linear_qkv.adapter.adapter_q.linear_in.weight" in names
    assert "decoder.layers.mlp.linear_fc1.adapter.adapter_up.linear_out.weight" in names
    assert not any("adapter_k" in name or "adapter_gate" in name for name in names)
    # without which Megatron-Core does not load it
    assert torch.load(iteration / "common.pt", weights_only=True)["content_metadata"]
    convert(run, tmp_path / "back", to=PEFT)
    assert_same_bits(
        load_file(tmp_path / "back/adapter_model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    )
    for number, one in enumerate((adapter, run)):
        convert(one, tmp_path / f"hf{number}", to="hf", options={"base": str(tmp_path / "base")})
    assert_same_bits(weights(tmp_path / "hf1"), weights(tmp_path / "hf0"))


def test_a_canonical_adapter_of_a_release_with_other_rows_is_refused(tmp_path: Path) -> None:
    _, run = canonical(tmp_path, lambda t: pairs(t, "q_proj"))
    file, config = config_of_run(run)
    del config["peft"]["share_expert_adapters"]  # as 0.2 writes it
    file.write_text(yaml.safe_dump(config))
    (run / "iter_0000000/ckpt-receipt.json").unlink(missing_ok=True)
    for options in ({}, {"base": str(tmp_path / "base")}):
        with pytest.raises(CkptError, match=r"before 0\.6"):
            convert(run, tmp_path / "out", to="hf" if options else PEFT, options=options)


def test_parts_of_another_kind_of_adapter_are_refused(tmp_path: Path) -> None:
    _, run = canonical(tmp_path, lambda t: pairs(t, "q_proj"))
    file, config = config_of_run(run)
    config["peft"]["_target_"] = "megatron.bridge.peft.lora.LoRA"
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(CkptError, match="linear_q, which the adapter changes"):
        convert(run, tmp_path / "out", to="hf", options={"base": str(tmp_path / "base")})
    with pytest.raises(CkptError, match="no magnitudes"):
        canonical(
            tmp_path / "dora",
            lambda t: {**pair(Q, t[f"{Q}.weight"]), f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(96)},
            use_dora=True,
        )


def test_magnitudes_go_along(tmp_path: Path) -> None:
    before = adapters.base(tmp_path / "base", dtype=torch.float32)
    names = [f"model.layers.{layer}.mlp.{part}_proj" for layer in range(2) for part in ("gate", "up")]
    tensors = {key: tensor for name in names for key, tensor in pair(name, before[f"{name}.weight"]).items()}
    tensors |= {
        f"base_model.model.{name}.lora_magnitude_vector": before[f"{name}.weight"].norm(dim=1) * 1.5 for name in names
    }
    adapter = adapters.save(tmp_path / "adapter", tensors, use_dora=True)
    convert(adapter, tmp_path / "run", to=BRIDGE, config=tmp_path / "base/config.json")
    for number, one in enumerate((adapter, tmp_path / "run")):
        convert(one, tmp_path / f"hf{number}", to="hf", options={"base": str(tmp_path / "base")})
    assert_same_bits(weights(tmp_path / "hf1"), weights(tmp_path / "hf0"))


Q, EMBED, HEAD = "model.layers.1.self_attn.q_proj", "model.embed_tokens", "lm_head"
REFUSED: dict[str, tuple[str, Callable[[Tensors], Tensors], dict[str, object], tuple[str, ...]]] = {
    "two scales in one tensor": (
        "llama", lambda t: pairs(t, "q_proj", "v_proj"), {"alpha_pattern": {"v_proj": 9}}, ("linear_qkv", "one scale", "2.25", "merge it"),
    ),
    "two scales": ("llama", lambda t: pairs(t, "o_proj", "down_proj"), {"alpha_pattern": {"o_proj": 9}}, ("one scale for all modules", "2.25", "merge it")),
    "an embedding": ("llama", lambda t: embedding_pair(EMBED, t[f"{EMBED}.weight"]), {}, ("an embedding is merged", "-o base")),
    "a head": ("llama", lambda t: pair(HEAD, t[f"{EMBED}.weight"]), {}, ("tied to the embedding",)),
    "a saved tensor": ("llama", lambda t: {**pairs(t, "q_proj"), "base_model.model.model.norm.weight": torch.ones(96)}, {}, ("whole tensors", "model.norm.weight")),
    "a bias": (
        "starcoder2", lambda t: {**pair(Q, t[f"{Q}.weight"]), f"base_model.model.{Q}.lora_B.bias": torch.ones(96)}, {"lora_bias": True},
        ("a bias is merged",),
    ),
    "a part of a fused tensor with DoRA": (
        "llama",
        lambda t: {**pair(Q, t[f"{Q}.weight"]), f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(96)}, {"use_dora": True}, ("linear_qkv", "DoRA"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name: str, tmp_path: Path) -> None:
    family, made, config, words = REFUSED[name]
    before = adapters.base(tmp_path / "base", family, **({"tie_word_embeddings": True} if "head" in name else {}))
    adapter = adapters.save(tmp_path / "adapter", made(before), **config)
    with pytest.raises(CkptError) as refusal:
        convert(adapter, tmp_path / "out", to=BRIDGE, config=tmp_path / "base/config.json")
    for word in words:
        assert word in str(refusal.value)
    assert_nothing_at(tmp_path / "out")


def test_a_base_of_the_hub_is_proposed_by_its_address(tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(ADAPTER, tmp_path / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    for name, revision, address in (
        ("owner/name", None, "hf://owner/name"),
        ("owner/name", "v1", "hf://owner/name@v1"),
        ("/data/owner/name", None, None),
    ):
        said = {**config, "base_model_name_or_path": name, "revision": revision}
        (adapter / "adapter_config.json").write_text(json.dumps(said))
        for to, option in (("hf", "-o base="), (BRIDGE, "--config ")):
            with pytest.raises(CkptError, match="not a model without its base") as error:
                convert(adapter, tmp_path / "out", to=to)
            assert (f"{option}{address}" in str(error.value)) is bool(address), error.value


def test_an_adapter_is_not_a_model_and_a_model_is_not_an_adapter(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for to in ("hf", "ir", "megatron"):
        with pytest.raises(CkptError, match="not a model without its base"):
            convert(GOLDEN.checkpoint, out, to=to)
    for to in (PEFT, BRIDGE):
        with pytest.raises(CkptError, match="holds adapters, and this is a whole model"):
            convert(BASE, out, to=to)
        with pytest.raises(CkptError, match="holds adapters, and this is a whole model"):
            convert(ADAPTER, out, to=to, options={"base": str(BASE)})
    with pytest.raises(CkptError, match=r"config\.json of the base with --config"):
        convert(ADAPTER, out, to=BRIDGE)
    with pytest.raises(CkptError, match="not a model without its base"):
        open_checkpoint(GOLDEN.checkpoint)
    assert_nothing_at(out)
    convert(GOLDEN.checkpoint, out, to=PEFT)
    assert main(["verify", str(GOLDEN.checkpoint), str(out), "--logits"]) == 2
    shutil.rmtree(out)
