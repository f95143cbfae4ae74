"""Declared sentences: what the tables say is what is written down, and a table that is changed is named, in every format."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt_core.architecture import dumps
from ckpt_core.errors import FormatError
from ckpt_core.layout import Row, parse
from ckpt_core.plugins.discovery import require
from ckpt_core.storage.dtypes import BF16
from ckpt_core.testing.examples import example
from ckpt_core.verify.declared import Sentences
from ckpt_core.verify.tracer import Trace, trace
from ckpt_tests.formats import written
from ckpt_tests.program import ckpt
from ckpt_tests.rows import wrong_everywhere
from declare import file_of, gathered, text

# hidden = heads x head_dim: the output projection is square, so a transposed one has the right shape
SQUARE = example("llama", hidden=216)
BLOOM = example("bloom", hidden=216)
OPTIONS = {"nxdt": {"hw_backend": "trn1"}}
DECLARING = [name for name in written() if name != "ir"]


def test_the_files_say_what_the_tables_say() -> None:
    """With all goldens: line for line, with what shows each. With those shipped: they say nothing else."""
    for format, lines in gathered().items():
        stored = file_of(format).read_text(encoding="utf-8")
        if os.environ.get("CKPT_GOLDENS"):
            assert text(format, lines) == stored, f"{format}: run tools/declare.py, and read what changes"
        else:
            known = list(Sentences.parsed(stored, format))
            assert all(
                any(line.says_the_same(other) and line.native == other.native for other in known) for line in lines
            )


@pytest.mark.parametrize("format", DECLARING)
def test_most_sentences_are_borne_out_by_the_framework_itself(format: str) -> None:
    """Of GGUF there are goldens of a Llama alone, so it is asked of the sentences that a Llama meets; the other architectures are held against
    what llama.cpp's own converter writes (tests/real/check_gguf.py)."""
    lines = list(Sentences.beside(require(format).module))
    if format == "gguf":
        met = {line.native for line in traced(format).sentences}
        lines = [line for line in lines if line.native in met]
    assert sum(bool(line.shown_by) for line in lines) >= 0.6 * len(lines) > 5


def traced(format: str, tp: int = 2) -> Trace:
    architecture = BLOOM if format == "megatron-deepspeed" else SQUARE
    ranks = tp if require(format).info.parallel else None
    return trace(format, architecture, BF16, tp=ranks, options=OPTIONS.get(format))


@pytest.mark.parametrize("format", DECLARING)
def test_every_tensor_that_is_written_is_declared(format: str) -> None:
    seen = traced(format)
    assert seen.passed and seen.undeclared == [] and len(seen.sentences) >= 9


def gate_and_up_exchanged(row: Row) -> Row:
    if {"gate", "up"} <= parse(row.sentence).names():
        gate_first = row.sentence.index("gate") < row.sentence.index("up")
        order = ("gate + up", "up + gate") if gate_first else ("up + gate", "gate + up")
        return replace(row, sentence=row.sentence.replace(*order))
    other = {"mlp.gate.weight": "mlp.up.weight", "mlp.up.weight": "mlp.gate.weight"}
    return replace(row, canonical=other.get(row.canonical, row.canonical))


def output_transposed(row: Row) -> Row:
    return replace(row, sentence="(g r d) h") if row.sentence == "h (g r d)" else row


def heads_swapped(row: Row) -> Row:
    """Query heads across their groups: one by one they are whole, and in another order."""
    return replace(row, sentence="h (r g d)") if row.sentence == "h (g r d)" else row


@pytest.mark.parametrize("format", [name for name in DECLARING if name != "megatron-deepspeed"])
@pytest.mark.parametrize(
    ("change", "tensors", "axis", "index"),
    [
        (gate_and_up_exchanged, {"layers.0.mlp.gate.weight", "layers.0.mlp.up.weight"}, "f", 0),
        (output_transposed, {"layers.0.attention.out.weight"}, "d", 1),
        (heads_swapped, {"layers.0.attention.out.weight"}, "r", 1),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_table_that_is_wrong_both_ways_is_named(
    format: str, change: Callable[[Row], Row], tensors: set[str], axis: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_everywhere(monkeypatch, change)
    first = traced(format, tp=1).departed[0]  # one rank, whose output projection is square
    assert (first.axis, first.index) == (axis, index) and first.tensor in tensors


@pytest.mark.parametrize("format", ["megatron", "nemo"])
def test_the_order_of_another_version_is_named(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence is a declared one, but for another decision (`checkpoint_version=0`, `megatron_legacy`)."""
    order = {"(g (q[r] + k + v) d) h": "((q[r] + k + v) g d) h"}
    wrong_everywhere(monkeypatch, lambda row: replace(row, sentence=order.get(row.sentence, row.sentence)))
    first = traced(format).departed[0]
    assert (first.tensor, first.axis, first.index) == ("layers.0.attention.q.weight", "r", 1)


def test_reader_and_writer_agree_on_a_wrong_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the declared sentences alone can have found it."""
    wrong_everywhere(monkeypatch, gate_and_up_exchanged)
    seen = traced("megatron")
    assert seen.misplaced == [] and not seen.passed


def test_a_wrong_division_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_everywhere(
        monkeypatch, lambda row: replace(row, splits=()) if row.canonical == "mlp.down.weight" and row.splits else row
    )
    first = traced("megatron").departed[0]
    assert str(first) == (
        "layers.0.mlp.down.weight: index 0 of axis h lies in decoder.layers.0.mlp.linear_fc2.weight by its division over ranks none, "
        "where the declared one is `tp=f`"
    )


def test_the_command_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "architecture.json"
    config.write_text(dumps(SQUARE))
    code, text = ckpt("selftest", "nanotron", "--config", config, "--tp", "2")
    declared = re.search(
        r"(\d+) declared by ckpt-nanotron \S+, which names checkpoints of the framework itself for (\d+) \(its tests read them, "
        r"this command does not\)",
        " ".join(text.split()),
    )
    assert code == 0 and declared is not None and declared[1] == declared[2], text
    assert "borne out" not in text
    wrong_everywhere(monkeypatch, gate_and_up_exchanged)
    code, text = ckpt("selftest", "nanotron", "--config", config, "--tp", "2")
    assert code == 3
    assert (
        "layers.0.mlp.up.weight: index 0 of axis f lies at [0, 0] of model.decoder.0.pp_block.mlp.gate_up_proj.weight"
        in text
    )
    assert "where the declared `((gate + up) f) h` puts it at [28, 0]" in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("weight | h", "line 2 has 2 columns"),
        ("k | attention.k.weight | (g d) h | tp=g r | | | ", "line 2 does not say which axes ranks divide"),
        ("k | attention.k.weight | (g d) h | | | | 99: one", "line 2 does not say how many checkpoints show it"),
    ],
)
def test_a_damaged_file_is_refused(line: str, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        Sentences.parsed(f"# a comment\n{line}\n", "sentences.txt")
