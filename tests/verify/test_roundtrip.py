"""The values that come back: a byte that changes on the way is named by the tensor it is of, in every kind of format."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_core.architecture.examples import example
from ckpt_core.plugins.discovery import require
from ckpt_core.plugins.installed import format_names
from ckpt_core.storage.dtypes import dtype_named
from ckpt_core.verify import roundtrip

BF16 = dtype_named("bf16")
LLAMA = example("llama", hidden=216)


@pytest.mark.parametrize("name", ["ir", "hf", "megatron", "gguf", "nemo", "peft", "megatron-lora"])
def test_a_changed_value_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in format_names():
        pytest.skip(f"format {name} is not installed")
    plugin = require(name)
    adapter = plugin.hooks.ckpt_adapter(architecture=LLAMA) if plugin.info.adapters else None
    assert roundtrip.there_and_back(plugin, LLAMA, BF16, adapter) == []
    known = roundtrip.run_plan
    changed = []

    def and_changes(plan, destination, **asked):
        receipt = known(plan, destination, **asked)
        placement = next(one for one in plan.target.placements if one.native.name.endswith(("weight", "A")))
        path = Path(destination) if plan.target.single_file else Path(destination) / placement.file
        raw = bytearray(path.read_bytes())
        raw[placement.offset + 1] ^= 0x80 if placement.dtype == BF16 else 0
        raw[placement.offset + 3] ^= 0x80 if placement.dtype != BF16 else 0
        path.write_bytes(raw)
        changed.extend(piece.parameter for piece in placement.native.pieces)
        return receipt

    monkeypatch.setattr(roundtrip, "run_plan", and_changes)
    (said,) = roundtrip.there_and_back(plugin, LLAMA, BF16, adapter)
    assert said.split(" is ")[0] in changed and said.endswith("read with other values than were written")


def test_settings_of_an_adapter_are_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ckpt_peft")
    plugin = require("peft")
    adapter = plugin.hooks.ckpt_adapter(architecture=LLAMA)
    known = roundtrip.run_plan

    def and_changes(plan, destination, **asked):
        receipt = known(plan, destination, **asked)
        config = Path(destination) / "adapter_config.json"
        config.write_text(config.read_text().replace('"lora_alpha": 6', '"lora_alpha": 7'))
        return receipt

    monkeypatch.setattr(roundtrip, "run_plan", and_changes)
    (said,) = roundtrip.there_and_back(plugin, LLAMA, BF16, adapter)
    assert "what is done with" in said
