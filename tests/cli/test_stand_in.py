"""`ckpt inspect` asks every format about a few layers that stand for all: with the same answer, and bounded work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ckpt_core.api import read_checkpoint
from ckpt_core.architecture import Architecture, Parameter
from ckpt_core.architecture.facts import PerLayer
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.cli import stand_in as stands
from ckpt_core.cli.stand_in import stand_in
from ckpt_core.cli.survey import Future, possible_targets
from ckpt_core.layout import BoundTables, Native
from ckpt_core.storage.dtypes import DType
from ckpt_core.testing import example, example_architectures, write_ir
from ckpt_tests.forwards import opened
from ckpt_tests.goldens import every_golden, kind_of


def _pattern(*flags: bool, times: int) -> PerLayer:
    return PerLayer(flags * times)


# Deeper than the examples, in the patterns of published models.
DEEP: dict[str, Architecture] = {
    "deep": example("llama", layers=12),
    "a scale that rounds": example("qwen", layers=9, attention__scale=0.3),
    "padded": example("llama-padded", layers=7),
    "a bias": example("qwen", layers=9),
    "windows in turn": example("gemma", layers=12, **{"attention.window?": _pattern(True, False, times=6)}),
    "windows from a layer on": example(
        "qwen", layers=12, **{"attention.window": 8, "attention.window?": PerLayer([False] * 5 + [True] * 7)}
    ),
    "every fourth without rotary": example(
        "smollm3", layers=12, **{"attention.rotary?": _pattern(True, True, True, False, times=3)}
    ),
    "dense, then experts": example(
        "moe-mixed",
        layers=9,
        **{"mlp.moe?": PerLayer([False] * 2 + [True] * 7), "mlp.ffn?": PerLayer([True] * 2 + [False] * 7)},
    ),
    "experts in turn": example(
        "moe-mixed",
        layers=8,
        **{"mlp.moe?": _pattern(False, True, times=4), "mlp.ffn?": _pattern(True, False, times=4)},
    ),
    "two depths": example("t5", **{"encoder.layers": 9, "decoder.layers": 4}),
    "one depth": example("t5", **{"encoder.layers": 6, "decoder.layers": 6}),
}


@contextmanager
def whole(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No checkpoint has a stand-in."""
    with monkeypatch.context() as patch:
        patch.setattr(stands, "stand_in", lambda checkpoint: None)
        yield


def answers(futures: list[Future]) -> dict[str, tuple[list[str], list[str]]]:
    return {one.format: (one.refusals, [str(loss) for loss in one.losses]) for one in futures}


def assert_same_answers(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    if stand_in(checkpoint) is None:
        return  # the whole is asked: there is nothing to compare
    asked = answers(possible_targets(checkpoint))
    with whole(monkeypatch):
        assert asked == answers(possible_targets(checkpoint))


@pytest.mark.parametrize("name", [*example_architectures(), *DEEP])
def test_a_stand_in_gives_the_answers_of_the_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = DEEP[name] if name in DEEP else example_architectures()[name]
    checkpoint = read_checkpoint(write_ir(tmp_path, architecture, sparse=True))
    if name in DEEP:
        assert stand_in(checkpoint) is not None
    assert_same_answers(checkpoint, monkeypatch)


def test_goldens_have_the_answers_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that has a stand-in: the others are asked whole. Of those that differ in their ranks alone, one."""
    asked = set()
    for golden in every_golden():
        with opened(golden, tmp_path) as model:
            checkpoint = model.checkpoint
            if (kind := kind_of(checkpoint)) not in asked and stand_in(checkpoint) is not None:
                asked.add(kind)
                assert_same_answers(checkpoint, monkeypatch)
    assert len(asked) > 10


def test_losses_count_the_tensors_of_the_whole(tmp_path: Path) -> None:
    source = write_ir(tmp_path, DEEP["a scale that rounds"], sparse=True)
    (hf,) = (one for one in possible_targets(read_checkpoint(source)) if one.format == "hf")
    assert "18 tensors" in [loss.subject for loss in hf.losses]


def test_the_work_does_not_grow_with_the_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound, natives = [0], BoundTables.natives

    def counted(layout: BoundTables, *args: object) -> dict[str, Native]:
        found = natives(layout, *args)
        bound[0] += len(found)
        return found

    monkeypatch.setattr(BoundTables, "natives", counted)

    def tensors_bound(layers: int) -> int:
        checkpoint = read_checkpoint(write_ir(tmp_path / str(layers), example("llama", layers=layers), sparse=True))
        bound[0] = 0
        assert sum(one.possible for one in possible_targets(checkpoint)) >= 7
        return bound[0]

    few = tensors_bound(4)
    assert few > 0 and tensors_bound(40) == few


@pytest.mark.parametrize(
    ("kinds", "most", "expected"),
    [
        ("AAAAAA", 2, "AA"),
        ("AAAABBBB", 2, "AABB"),
        ("ABABABAB", 2, "ABAB"),
        ("ABBBBB", 2, "ABB"),
        ("LLLLLGLLLLLGLLLLLGLL", 2, "LLLLLGLLLLLGLL"),
        ("ABBCABBCABBCD", 2, "ABBCABBCD"),
        ("ABC", 2, "ABC"),
        ("AAAAAA", 3, "AAA"),
        ("", 2, ""),
    ],
)
def test_what_is_kept_of_the_layers(kinds: str, most: int, expected: str) -> None:
    kept = stands._cut(kinds, most)
    assert "".join(kinds[index] for index, _ in kept) == expected
    counted: dict[str, int] = {}
    for index, count in kept:
        counted[kinds[index]] = counted.get(kinds[index], 0) + count
    assert counted == {kind: kinds.count(kind) for kind in set(kinds)}


@pytest.mark.parametrize("other", [None, 5])
def test_an_answer_that_depends_on_values_is_that_of_the_whole(
    other: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias of zeros can be left out, and only the values say so: in one layer of many it has others."""

    def values(_: np.random.Generator, parameter: Parameter, __: DType) -> np.ndarray:
        zero = parameter.name.endswith("out.bias") and f"layers.{other}." not in parameter.name
        return np.full(parameter.shape, 0.0 if zero else 1.0, np.float32)

    changes = {"encoder.attention.out_bias": True, "encoder.layers": 9, "decoder.layers": 9}
    checkpoint = read_checkpoint(write_ir(tmp_path, example("t5", **changes), values=values))
    assert stand_in(checkpoint) is not None
    assert bool(answers(possible_targets(checkpoint))["hf"][0]) == (other is not None)
    assert_same_answers(checkpoint, monkeypatch)
