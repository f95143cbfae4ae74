"""What lies beside a model is named: a table may pass over in silence what is computed anew, and nothing that was learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_core import convert
from ckpt_core.api import config_architecture
from ckpt_core.errors import CkptError
from ckpt_hf.config import FAMILIES
from ckpt_tests.families import CASES, build

COMPUTED = {"computed from theta", "the causal mask", "the value of masked scores", "the numbers from 0 on"}


def test_tables_drop_what_is_computed_and_leftovers_are_named() -> None:
    """A drop of a table is no loss; one of `leftovers` is."""
    silent = {
        (family.class_name, drop.native)
        for family in FAMILIES
        for table in family.tables
        for drop in table.drops
        if drop.why not in COMPUTED
    }
    assert silent == set()


@pytest.mark.parametrize("name", ["nemotron_h", "exaone_moe", "mellum", "qwen3_next"])
def test_layers_that_are_not_read_are_a_loss(name: str, tmp_path: Path) -> None:
    build(CASES[name], tmp_path / "hf")
    weights = tmp_path / "hf/model.safetensors"
    save_file({**load_file(weights), "mtp.layers.0.norm.weight": torch.ones(4)}, weights)
    receipt = convert(tmp_path / "hf", tmp_path / "ir", to="ir", sync=False)
    assert ("dropped", "mtp.*") in {(loss["kind"], loss["subject"]) for loss in receipt.body["losses"]}


def test_a_pattern_of_layers_that_never_ends_is_refused(tmp_path: Path) -> None:
    """A config may say any number; what it counts is counted before it is made."""
    build(CASES["gpt_neo"], tmp_path / "hf")
    file = tmp_path / "hf/config.json"
    config = json.loads(file.read_text())
    layers = config["num_layers"]
    for types in ([[["global"], 10**15]], [[["global"], 10**15], [["local"], layers - 10**15]], [[[], 10**15]]):
        file.write_text(json.dumps({**config, "attention_types": types}))
        with pytest.raises(CkptError, match="attention_types"):
            config_architecture(str(file))


def test_a_fraction_beyond_all_bounds_is_an_error_beside_factors(tmp_path: Path) -> None:
    """phi3 with longrope has one factor for each rotated pair."""
    build(CASES["phi3_longrope"], tmp_path / "hf")
    file = tmp_path / "hf/config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"]["partial_rotary_factor"] = 1e308
    file.write_text(json.dumps(config))
    with pytest.raises(CkptError, match=r"rotary\.fraction"):
        config_architecture(str(file))
