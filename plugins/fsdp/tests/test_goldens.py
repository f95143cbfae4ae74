"""What FSDP itself saved: to the state dict that torch gathered, bit for bit, and to the recorded logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.plugins.discovery import detect
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.goldens import Golden, of_2026
from ckpt_tests.models import load, logits_of, weights

TOLERANCE = 1e-4
CASES = of_2026("fsdp")
each = pytest.mark.parametrize("golden", CASES, ids=str)


def config_of(golden: Golden) -> str | None:
    file = golden.folder / "config.json"
    return str(file) if file.is_file() else None


def by_file_names(full: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of transformers 5 under the names of its files: experts one by one, a tied head once."""
    found = {}
    for name, tensor in full.items():
        if name.endswith("experts.gate_up_proj"):
            for number, expert in enumerate(tensor):
                for part, half in zip(("gate", "up"), expert.chunk(2), strict=True):
                    found[f"{name.removesuffix('gate_up_proj')}{number}.{part}_proj.weight"] = half
        elif name.endswith("experts.down_proj"):
            for number, expert in enumerate(tensor):
                found[f"{name.removesuffix('down_proj')}{number}.down_proj.weight"] = expert
        else:
            found[name] = tensor
    if torch.equal(found.get("lm_head.weight", torch.empty(0)), found["model.embed_tokens.weight"]):
        del found["lm_head.weight"]
    return found


@each
def test_every_tensor_and_the_logits_are_those_of_the_run(golden: Golden, tmp_path: Path) -> None:
    receipt = convert(golden.checkpoint, tmp_path / "hf", to="hf", config=config_of(golden))
    assert_same_bits(weights(tmp_path / "hf"), by_file_names(load_file(golden.folder / "full.safetensors")))
    if golden.case["dtype"] == "float32":
        assert golden.off_by(logits_of(load(tmp_path / "hf"), golden.input_ids)) <= TOLERANCE
    left = {loss["subject"].partition(",")[0].partition(":")[0] for loss in receipt.body["losses"]}
    known = {
        "optimizer state",
        "learning rate schedule",
        "states of random generators",
        "iteration and consumed samples",
        "state of the data loader",
    }
    kept = "training" in receipt.body
    assert left <= known and ("optimizer state" in left) is not kept


@each
def test_it_is_recognised_by_what_is_in_it(golden: Golden) -> None:
    ((plugin, _),) = detect(str(golden.checkpoint))
    assert plugin.name == "fsdp"
    with open_checkpoint(golden.checkpoint, config=config_of(golden)) as source:
        saved_by_verl = golden.case["save"] == "verl"
        assert source.checkpoint.parallel == ({"dp": golden.case["ws"]} if saved_by_verl else {})
        assert source.checkpoint.provenance.masters == (golden.case["dtype"] == "float32")
        assert ("generation_config.json" in source.checkpoint.sidecars) == saved_by_verl


@each
def test_megatron_and_back_has_the_same_fingerprint(golden: Golden, tmp_path: Path) -> None:
    config = config_of(golden)
    convert(golden.checkpoint, tmp_path / "megatron", to="megatron", tp=2, config=config)
    assert fingerprint(tmp_path / "megatron") == fingerprint(golden.checkpoint, config=config)


def test_a_base_folder_lends_its_config_and_its_tokenizer(tmp_path: Path) -> None:
    golden = next(golden for golden in CASES if config_of(golden))
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(Path(config_of(golden)).read_text())
    (base / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {}}}))
    with open_checkpoint(golden.checkpoint, config=base) as source:
        assert "tokenizer.json" in source.checkpoint.sidecars
        assert fingerprint(golden.checkpoint, config=base) == fingerprint(golden.checkpoint, config=config_of(golden))
