"""Each kind of adapter, merged into a base of its own, against the merge in torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ckpt_core import convert, open_checkpoint
from ckpt_hf.sdk import model_in_memory
from ckpt_tests import adapters
from ckpt_tests.adapters import ALPHA, PREFIX, RANK, added, delta, embedding_pair, pair
from ckpt_tests.models import load, logits_of, weights

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
EMBED, HEAD = "model.embed_tokens", "lm_head"
IDS = torch.arange(24).reshape(2, 12)


def merged(tmp_path: Path, adapter: Path, **options: str) -> dict[str, torch.Tensor]:
    """The tensors of the HF folder that an adapter and `tmp_path/base` make."""
    convert(adapter, tmp_path / "out", to="hf", overwrite=True, options={"base": str(tmp_path / "base"), **options})
    return weights(tmp_path / "out")


def assert_only_changed(
    ours: dict[str, torch.Tensor], before: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> None:
    """The wanted tensors are there, up to the last bit, and every other one is that of the base."""
    assert ours.keys() == before.keys() | wanted.keys()
    for name, tensor in ours.items():
        expected = wanted.get(name, before.get(name))
        assert tensor.dtype == expected.dtype
        tight = 2.0**-7 if tensor.dtype == torch.bfloat16 else 3e-7
        assert torch.allclose(
            tensor.float(), expected.float(), rtol=tight if name in wanted else 0, atol=1e-7 if name in wanted else 0
        ), name
        if name in wanted and name in before:
            assert not torch.equal(tensor, before[name]), name
            assert (tensor != expected).float().mean() < 0.01, name  # another library may round a product otherwise


def test_ranks_and_scales_are_those_of_the_first_pattern_that_fits(tmp_path: Path) -> None:
    before = adapters.base(tmp_path / "base")
    tensors = pair(Q, before[f"{Q}.weight"], 5) | pair(DOWN, before[f"{DOWN}.weight"], 2)
    adapter = adapters.save(
        tmp_path / "adapter",
        tensors,
        use_rslora=True,
        rank_pattern={"q_proj": 5, r"layers\.\d+\.mlp\..*": 2},
        alpha_pattern={r".*\.0\..*": 7},
    )
    scales = {Q: 7 / math.sqrt(5), DOWN: ALPHA / math.sqrt(2)}
    wanted = {
        f"{name}.weight": added(before[f"{name}.weight"], delta(tensors, name, scale)) for name, scale in scales.items()
    }
    assert_only_changed(merged(tmp_path, adapter), before, wanted)


def test_float32_sums_on_request(tmp_path: Path) -> None:
    before = adapters.base(tmp_path / "base")
    tensors = pair(Q, before[f"{Q}.weight"])
    adapter = adapters.save(tmp_path / "adapter", tensors)
    ours = merged(tmp_path, adapter, merge="fp32")
    assert_only_changed(ours, before, {f"{Q}.weight": before[f"{Q}.weight"].float() + delta(tensors, Q)})
    rounded = json.loads((tmp_path / "out/ckpt-receipt.json").read_text())["losses"]
    assert not any(loss["kind"] == "rounded" for loss in rounded)
    merged(tmp_path, adapter)
    rounded = json.loads((tmp_path / "out/ckpt-receipt.json").read_text())["losses"]
    assert [loss["subject"] for loss in rounded if loss["kind"] == "rounded"] == ["1 merged tensors"]


def test_a_magnitude_scales_each_row_to_its_norm(tmp_path: Path) -> None:
    before = adapters.base(tmp_path / "base", dtype=torch.float32)
    tensors = pair(Q, before[f"{Q}.weight"])
    magnitude = torch.rand(before[f"{Q}.weight"].shape[0]) + 0.5
    tensors[f"{PREFIX}{Q}.lora_magnitude_vector"] = magnitude
    summed = before[f"{Q}.weight"] + delta(tensors, Q)
    wanted = (magnitude / torch.linalg.norm(summed, dim=1))[:, None] * summed
    adapter = adapters.save(tmp_path / "adapter", tensors, use_dora=True)
    ours = merged(tmp_path, adapter)[f"{Q}.weight"]
    assert torch.allclose(ours, wanted, rtol=1e-6, atol=1e-6)
    assert torch.allclose(torch.linalg.norm(ours, dim=1), magnitude)


@pytest.mark.parametrize("dora", [False, True])
def test_an_embedding_is_the_product_turned_round(tmp_path: Path, dora: bool) -> None:
    before = adapters.base(tmp_path / "base")
    weight = before[f"{EMBED}.weight"]
    tensors = embedding_pair(EMBED, weight)
    down, up = tensors.values()
    change = (up @ down).T * (ALPHA / RANK)
    wanted = weight + change.to(weight.dtype)  # PEFT rounds the product of an embedding before it adds it
    if dora:
        magnitude = torch.rand(weight.shape[1]) + 0.5
        tensors[f"{PREFIX}{EMBED}.lora_magnitude_vector"] = magnitude
        summed = weight.float() + change
        wanted = (magnitude / torch.linalg.norm(summed, dim=0) * summed).to(weight.dtype)
    adapter = adapters.save(tmp_path / "adapter", tensors, use_dora=dora)
    assert_only_changed(merged(tmp_path, adapter), before, {f"{EMBED}.weight": wanted})
    with open_checkpoint(adapter, options={"base": str(tmp_path / "base")}) as opened:
        table = opened["embedding.tokens.weight"]
        assert (
            table[5:9, 3:70] == table.numpy()[5:9, 3:70]
        ).all()  # a norm is that of all tokens, whatever is asked for


def test_a_bias_of_b_is_added_to_the_bias(tmp_path: Path) -> None:
    before = adapters.base(tmp_path / "base", "starcoder2")
    tensors = pair(Q, before[f"{Q}.weight"])
    tensors[f"{PREFIX}{Q}.lora_B.bias"] = bias = torch.randn(before[f"{Q}.bias"].shape)
    wanted = {
        f"{Q}.weight": added(before[f"{Q}.weight"], delta(tensors, Q)),
        f"{Q}.bias": added(before[f"{Q}.bias"], bias * (ALPHA / RANK)),
    }
    adapter = adapters.save(tmp_path / "adapter", tensors, lora_bias=True)
    assert_only_changed(merged(tmp_path, adapter), before, wanted)


def test_experts_one_by_one(tmp_path: Path) -> None:
    before = adapters.base(tmp_path / "base", "qwen2_moe", num_experts=3)
    names = [
        f"model.layers.0.mlp.experts.{number}.{part}_proj" for number in range(3) for part in ("gate", "up", "down")
    ]
    tensors = {key: tensor for name in names for key, tensor in pair(name, before[f"{name}.weight"]).items()}
    wanted = {f"{name}.weight": added(before[f"{name}.weight"], delta(tensors, name)) for name in names}
    adapter = adapters.save(tmp_path / "adapter", tensors, target_modules=["layers.0.mlp.experts.0.gate_proj"])
    assert_only_changed(merged(tmp_path, adapter), before, wanted)


def test_saved_tensors_take_the_place_of_the_base(tmp_path: Path) -> None:
    before = adapters.base(tmp_path / "base", "starcoder2", tie_word_embeddings=False)
    head, norm, bias = (
        torch.randn(before[name].shape) for name in ("lm_head.weight", "model.norm.weight", f"{Q}.bias")
    )
    tensors = {
        f"{PREFIX}lm_head.weight": head,  # in float32, which PEFT rounds to the dtype of the base when it loads them
        f"{PREFIX}model.norm.modules_to_save.default.weight": norm,
        f"{PREFIX}model.norm.modules_to_save.default.bias": before["model.norm.bias"],
        f"{PREFIX}{Q}.base_layer.bias": bias,
        **pair(Q, before[f"{Q}.weight"]),
    }
    wanted = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in {"lm_head.weight": head, "model.norm.weight": norm, f"{Q}.bias": bias}.items()
    }
    wanted[f"{Q}.weight"] = added(before[f"{Q}.weight"], delta(tensors, Q))
    adapter = adapters.save(tmp_path / "adapter", tensors, modules_to_save=["lm_head", "model.norm"], bias="lora_only")
    assert_only_changed(merged(tmp_path, adapter), before, wanted)


@pytest.mark.parametrize("where", ["embedding", "head", "head saved", "head saved by the end", "embedding saved"])
def test_the_head_of_a_tied_model_is_its_own_where_the_adapter_changes_one_of_them(tmp_path: Path, where: str) -> None:
    before = adapters.base(tmp_path / "base", dtype=torch.float32, tie_word_embeddings=True)
    shared = before[f"{EMBED}.weight"]
    saved = torch.randn(shared.shape)
    tensors, config, changed = {
        "embedding": (embedding_pair(EMBED, shared), {}, None),
        "head": (pair(HEAD, shared), {}, None),
        "head saved": ({f"{PREFIX}lm_head.weight": saved}, {"modules_to_save": ["lm_head"]}, saved),
        # PEFT compares the ends of names, so that "head" means "lm_head".
        "head saved by the end": ({f"{PREFIX}lm_head.weight": saved}, {"modules_to_save": ["head"]}, saved),
        "embedding saved": ({f"{PREFIX}{EMBED}.weight": saved}, {"modules_to_save": ["embed_tokens"]}, saved),
    }[where]
    if where == "embedding":
        down, up = tensors.values()
        changed = shared + (up @ down).T * (ALPHA / RANK)
    elif where == "head":
        changed = shared + delta(tensors, HEAD)
    wanted = {f"{EMBED}.weight": shared, "lm_head.weight": shared}
    wanted[f"{EMBED}.weight" if where.startswith("embedding") else "lm_head.weight"] = changed
    ours = merged(tmp_path, adapters.save(tmp_path / "adapter", tensors, **config))
    for name, tensor in wanted.items():
        assert torch.allclose(ours[name], tensor, atol=1e-6), name
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    assert any(
        "untied" in line for line in json.loads((tmp_path / "out/ckpt-receipt.json").read_text())["source"]["evidence"]
    )
    assert logits_of(load(tmp_path / "out"), IDS).isfinite().all()


def test_trained_as_one_they_stay_tied(tmp_path: Path) -> None:
    before = adapters.base(tmp_path / "base", dtype=torch.float32, tie_word_embeddings=True)
    tensors = embedding_pair(EMBED, before[f"{EMBED}.weight"])
    down, up = tensors.values()
    turned = {f"{PREFIX}lm_head.lora_A.weight": up.T, f"{PREFIX}lm_head.lora_B.weight": down.T}
    adapter = adapters.save(tmp_path / "adapter", tensors | turned, ensure_weight_tying=True)
    ours = merged(tmp_path, adapter)
    assert "lm_head.weight" not in ours
    assert torch.allclose(
        ours[f"{EMBED}.weight"], before[f"{EMBED}.weight"] + (up @ down).T * (ALPHA / RANK), atol=1e-6
    )


def test_two_pairs_that_should_be_one_are_both_merged(tmp_path: Path) -> None:
    """On a bf16 base PEFT casts the two views of one pair to float32, each on its own: they are trained apart."""
    before = adapters.base(tmp_path / "base", tie_word_embeddings=True)
    shared = before[f"{EMBED}.weight"]
    tokens, head = embedding_pair(EMBED, shared), pair(HEAD, shared)
    adapter = adapters.save(tmp_path / "adapter", tokens | head, ensure_weight_tying=True)
    down, up = tokens.values()
    wanted = {
        f"{EMBED}.weight": shared + ((up @ down).T * (ALPHA / RANK)).to(shared.dtype),
        f"{HEAD}.weight": added(shared, delta(head, HEAD)),
    }
    assert_only_changed(merged(tmp_path, adapter), before, wanted)
    assert "are two" in (tmp_path / "out/ckpt-receipt.json").read_text()


def test_modules_that_are_saved_again_beside_added_tokens(tmp_path: Path) -> None:
    """PEFT then saves everything in the wrappers: what was trained a second time, and what was there before."""
    before = adapters.base(tmp_path / "base")
    trained = {
        name: torch.randn(67, before[name].shape[1]).bfloat16() for name in (f"{EMBED}.weight", "lm_head.weight")
    }
    tensors = pair(Q, before[f"{Q}.weight"])
    for name, tensor in trained.items():
        module = PREFIX + name.removesuffix(".weight")
        tensors |= {f"{module}.weight": tensor, f"{module}.modules_to_save.weight": tensor.clone()}
        tensors[f"{module}.original_module.weight"] = torch.randn(tensor.shape).bfloat16()
    adapter = adapters.save(tmp_path / "adapter", tensors, modules_to_save=["embed_tokens", "lm_head"])
    ours = merged(tmp_path, adapter)
    assert all(torch.equal(ours[name], tensor) for name, tensor in trained.items())
    ledger = json.loads((tmp_path / "out/ckpt-receipt.json").read_text())["source"]["ledger"]
    left = {one["what"]: one["places"] for one in ledger if one["fate"] == "left"}
    for what, key in (("saved twice", "modules_to_save"), ("from before the training", "original_module")):
        (places,) = (places for name, places in left.items() if what in name)
        (keys,) = places.values()
        assert sorted(keys) == [f"{PREFIX}{module}.{key}.weight" for module in (HEAD, EMBED)]


def test_added_tokens_are_those_of_the_adapter(tmp_path: Path) -> None:
    before = adapters.base(tmp_path / "base")
    longer = {name: torch.randn(67, before[name].shape[1]).bfloat16() for name in (f"{EMBED}.weight", "lm_head.weight")}
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in longer.items()} | pair(Q, before[f"{Q}.weight"])
    wanted = longer | {f"{Q}.weight": added(before[f"{Q}.weight"], delta(tensors, Q))}
    ours = merged(tmp_path, adapters.save(tmp_path / "adapter", tensors))
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 67
    for name, tensor in wanted.items():
        assert torch.equal(ours[name], tensor) or name.startswith(Q), name


def test_names_and_files_of_other_savers(tmp_path: Path) -> None:
    """The name of the adapter in the keys, and a pickle of before safetensors, whose records are checked."""
    before = adapters.base(tmp_path / "base")
    tensors = pair(Q, before[f"{Q}.weight"])
    adapter = adapters.save(tmp_path / "adapter", tensors)
    first = merged(tmp_path, adapter)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(
        {name.replace(".weight", ".default.weight"): tensor for name, tensor in tensors.items()},
        adapter / "adapter_model.bin",
    )
    second = merged(tmp_path, adapter)
    assert all(torch.equal(first[name], second[name]) for name in first)
    body = bytearray((adapter / "adapter_model.bin").read_bytes())
    place = body.find(tensors[f"{PREFIX}{Q}.lora_B.weight"].numpy().tobytes())
    body[place + 5] ^= 1
    (adapter / "adapter_model.bin").write_bytes(body)
    with pytest.raises(Exception, match="checksum is wrong"):
        merged(tmp_path, adapter)


def test_the_tokenizer_is_the_adapters(tmp_path: Path) -> None:
    before = adapters.base(tmp_path / "base")
    for folder, mark in (("base", "old"), ("adapter", "new")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "tokenizer_config.json").write_text(json.dumps({"mark": mark}))
    (tmp_path / "base/special_tokens_map.json").write_text("{}")
    (tmp_path / "adapter/README.md").write_text("an adapter")
    for name in ("trainer_state.json", "config.json"):
        (tmp_path / "adapter" / name).write_text("{}")
    merged(tmp_path, adapters.save(tmp_path / "adapter", pair(Q, before[f"{Q}.weight"])))
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text()) == {"mark": "new"}
    assert (tmp_path / "out/generation_config.json").is_file()
    assert not (tmp_path / "out/special_tokens_map.json").exists() and not (tmp_path / "out/README.md").exists()
    losses = [loss["subject"] for loss in json.loads((tmp_path / "out/ckpt-receipt.json").read_text())["losses"]]
    for loss in ("special_tokens_map.json", "config of the base", "iteration and consumed samples"):
        assert any(loss in one for one in losses), loss
    convert(tmp_path / "adapter", tmp_path / "run", to="megatron-bridge", options={"base": str(tmp_path / "base")})
    (tokenizer,) = (tmp_path / "run").glob("iter_*/tokenizer")
    assert sorted(file.name for file in tokenizer.iterdir()) == ["generation_config.json", "tokenizer_config.json"]


def test_the_base_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = adapters.base(tmp_path / "base"), []
    monkeypatch.setattr("ckpt_peft.read.model_in_memory", lambda base: seen.append(base) or model_in_memory(base))
    merged(tmp_path, adapters.save(tmp_path / "adapter", pair(Q, before[f"{Q}.weight"])))
    assert len(seen) == 1
