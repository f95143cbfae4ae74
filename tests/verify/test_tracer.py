"""The tracer passes every format, and names what a wrong table does by tensor, axis and index."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import ckpt_nanotron.read
from ckpt_core.architecture import dumps
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.layout import Table, Tables
from ckpt_core.storage.dtypes import BF16
from ckpt_core.testing.examples import example
from ckpt_core.verify import tracer
from ckpt_core.verify.tracer import MisplacedElement, trace
from ckpt_tests.formats import written
from ckpt_tests.program import ckpt

# hidden = heads x head_dim: the output projection is square, so a transposed one has the right shape
SQUARE = example("llama", hidden=216)
LAYOUTS: dict[str, dict[str, object]] = {
    "nanotron": {"tp": 2, "pp": 3},
    "megatron": {"tp": 4, "pp": 2},
    "nemo": {"tp": 2, "pp": 3},
    "nxdt": {"tp": 4, "pp": 2, "options": {"hw_backend": "trn1"}},
}
OTHERS = {"megatron-deepspeed": example("bloom", hidden=216)}


@pytest.mark.parametrize("format", written())
def test_every_format_finds_what_it_wrote(format: str) -> None:
    seen = trace(format, OTHERS.get(format, SQUARE), BF16, **LAYOUTS.get(format, {}))
    assert seen.misplaced == []
    assert seen.compared > 10_000 and seen.elements > 1_000_000


def wrong_table(monkeypatch: pytest.MonkeyPatch, name: str, sentence: str) -> list[MisplacedElement]:
    """What is misplaced if the reader takes a row to have another sentence than the writer did."""

    def wrong(table: Table) -> Table:
        return table.with_rows(replace(row, sentence=sentence) if row.native == name else row for row in table.rows)

    tables = Tables(map(wrong, ckpt_nanotron.weights.TABLES), ckpt_nanotron.weights.CHOICES)
    monkeypatch.setattr(ckpt_nanotron.read, "TABLES", tables)
    return trace("nanotron", SQUARE, BF16, tp=2, pp=3).misplaced


def test_gate_and_up_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    first = wrong_table(monkeypatch, "mlp.gate_up_proj.weight", "((up + gate) f) h")[0]
    assert (
        str(first)
        == "layers.0.mlp.gate.weight: index 0 of axis f is read where layers.0.mlp.up.weight f=0 h=0 was written"
    )


def test_a_square_weight_transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    first = wrong_table(monkeypatch, "attn.o_proj.weight", "(g r d) h")[0]
    assert (first.tensor, first.axis, first.index) == ("layers.0.attention.out.weight", "h", 1)


def test_one_wrong_head(monkeypatch: pytest.MonkeyPatch) -> None:
    first = trace_after(monkeypatch, swapped_heads)[0]
    assert str(first) == "layers.2.attention.k.weight: index 2 of axis g is read where index 1 was written"


def trace_after(monkeypatch: pytest.MonkeyPatch, change: Callable[[Checkpoint], Checkpoint]) -> list[MisplacedElement]:
    opened = tracer.checkpoint_at
    monkeypatch.setattr(tracer, "checkpoint_at", lambda *asked: change(opened(*asked)))
    return trace("nanotron", SQUARE, BF16, pp=2).misplaced


def swapped_heads(checkpoint: Checkpoint) -> Checkpoint:
    """Key heads 1 and 2 of one layer, each where the other belongs."""
    name = "layers.2.attention.k.weight"
    places = {0: 0, 1: 2, 2: 1, 3: 3}
    blocks = []
    for block in checkpoint.tensors[name].blocks:
        for head, place in places.items():
            for tile in block.tile.cut_canonical(0, head, head + 1):
                blocks.append(replace(block, tile=tile._replace(canonical_base=(place, *tile.canonical_base[1:]))))
    return replace(
        checkpoint, tensors=checkpoint.tensors | {name: replace(checkpoint.tensors[name], blocks=tuple(blocks))}
    )


def test_the_command(tmp_path: Path) -> None:
    config = tmp_path / "architecture.json"
    config.write_text(dumps(SQUARE))
    code, text = ckpt("selftest", "nanotron", "--config", config, "--tp", "2", "--json")
    said = json.loads(text)
    assert code == 0 and said["passed"] and said["misplaced"] == [] and said["files"] > 6
    assert ckpt("selftest", "nanotron")[0] == 2
