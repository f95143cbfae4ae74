"""Conversions in many small pieces: the same bytes and the same receipt, in whatever order, by whatever workers, killed at any piece."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from ckpt_core import convert
from ckpt_core.api import digests, plan_conversion, read_checkpoint
from ckpt_core.engine import run, transfer
from ckpt_core.engine.run import Progress
from ckpt_core.errors import CkptError
from ckpt_core.receipt.places import RECEIPT
from ckpt_core.testing import example, write_ir
from ckpt_core.testing.examples import any_bits, calm_numbers
from ckpt_tests import victim
from ckpt_tests.cutting import pieces_of
from ckpt_tests.folders import contents

LEAVES = {"llama-wide": 4999}  # elements, else 997
WAYS: dict[str, tuple[str, dict[str, object]]] = {
    "hf": ("llama", {"to": "hf"}),
    "hf as .bin": ("llama", {"to": "hf", "options": {"container": "bin"}}),
    "hf in bf16": ("llama", {"to": "hf", "dtype": "bf16"}),
    "hf with transposed weights": ("gpt2", {"to": "hf"}),
    "hf in FP8": ("llama-wide", {"to": "hf", "options": {"quantise": "fp8-block"}}),
    "gguf in Q8_0": ("llama-wide", {"to": "gguf", "options": {"type": "Q8_0", "tokenizer": "none"}}),
    "nanotron": ("llama", {"to": "nanotron", "tp": 2, "pp": 2}),
    "megatron, torch": ("llama", {"to": "megatron", "tp": 2, "options": {"container": "torch"}}),
    "megatron, torch_dist": ("moe", {"to": "megatron", "tp": 2, "ep": 2}),
    "nemo": ("llama", {"to": "nemo", "tp": 2}),
    "nxdt, xser": ("llama", {"to": "nxdt", "tp": 2, "options": {"hw_backend": "trn1", "xser": "true"}}),
    "ir": ("moe", {"to": "ir"}),
}
SQUARE = {"hidden": 216, "layers": 2}
MODELS: dict[str, dict[str, object]] = {
    "llama": SQUARE,
    "moe": SQUARE,
    "llama-wide": {
        "hidden": 256,
        "layers": 1,
        "attention__heads": 8,
        "attention__groups": 4,
        "attention__head_dim": 32,
        "mlp__ffn": 384,
    },
    "gpt2": {"hidden": 144, "attention__head_dim": 12, "mlp__ffn": 576, "layers": 2},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, facts in MODELS.items():
        found[name] = tmp_path_factory.mktemp("model") / name
        values = calm_numbers if name == "llama-wide" else any_bits  # codes hold no infinities
        write_ir(found[name], example(name.partition("-")[0], **facts), values=values)
    return found


def told(folder: Path) -> dict[str, object]:
    """All files, and what the receipt says but for the plan."""
    path = folder / RECEIPT if folder.is_dir() else folder.with_name(f"{folder.name}.{RECEIPT}")
    body = json.loads(path.read_text())
    files = contents(folder) if folder.is_dir() else {"": folder.read_bytes()}
    files.pop(RECEIPT, None)
    return {"files": files, **{key: value for key, value in body.items() if key not in ("plan", "seal")}}


@pytest.mark.parametrize(("name", "arguments"), WAYS.values(), ids=WAYS)
def test_pieces_give_the_same_bytes_and_the_same_receipt(
    models: dict[str, Path], name: str, arguments: dict, tmp_path: Path
) -> None:
    """Cut in the middle of rows, heads and blocks of codes, and carried out in a random order."""
    out, leaf = tmp_path / "out", LEAVES.get(name, 997)
    with pieces_of(leaf, whole=True):
        plan = plan_conversion(models[name], out, **arguments)
        assert len(plan.transfers) == len(plan.tensors)
        run.run_plan(plan, str(out))
        expected = told(out)
    shutil.rmtree(out) if out.is_dir() else [path.unlink() for path in tmp_path.iterdir()]
    with pieces_of(leaf):
        plan = plan_conversion(models[name], out, **arguments)
        random.Random(name).shuffle(plan.transfers)
        assert len(plan.transfers) > 1.9 * len(plan.tensors)
        assert sum(one.bytes_read for one in plan.transfers) <= sum(one.bytes_read for one in plan.tensors)
        run.run_plan(plan, str(out))
    assert told(out) == expected


KILLED = [("after finishing", 1), ("before finishing", 20), ("in a line", 33), ("after finishing", 50)]


@pytest.mark.parametrize(("moment", "number"), KILLED, ids=[f"{moment} {number}" for moment, number in KILLED])
def test_a_run_killed_in_the_middle_of_a_tensor_continues(
    models: dict[str, Path], moment: str, number: int, work: list[str], tmp_path: Path
) -> None:
    """Every piece counts: those that the journal has are not moved again. Another cut, as of another version, is another plan."""
    out, asked = tmp_path / "out", {"to": "nemo", "tp": 2}
    with pieces_of(2003):
        convert(models["llama"], out, **asked)
        expected, pieces = contents(tmp_path), len(work)
        shutil.rmtree(tmp_path) or tmp_path.mkdir()
        process = victim.started(models["llama"], out, moment, number, leaf=2003, **asked)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        lines = (tmp_path / "out.ckpt-partial/journal.jsonl").read_text().split("\n")[1:-1]
        done = Counter(json.loads(line)["name"] for line in lines)
        assert number - 2 <= len(lines) <= number
    with pieces_of(1009), pytest.raises(CkptError, match="something else is in the way"):
        convert(models["llama"], out, **asked)
    with pieces_of(2003):
        del work[:]
        convert(models["llama"], out, **asked)
    assert contents(tmp_path) == expected
    assert len(work) == pieces - len(lines)
    assert number < 2 or any(name in done for name in work), "it was killed between two pieces of a tensor"


def test_progress_counts_pieces(models: dict[str, Path], tmp_path: Path) -> None:
    events: list[Progress] = []
    with pieces_of(997):
        plan = plan_conversion(models["llama"], tmp_path / "out", to="hf")
        run.run_plan(plan, str(tmp_path / "out"), listener=events.append)
    assert [event.done for event in events] == sorted({event.done for event in events})
    assert len(events) == len(plan.transfers) > 4 * len(plan.tensors)
    assert events[-1].done <= events[-1].total


def test_a_fingerprint_is_taken_by_pieces(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Any thread may take any piece; in version 1 a tensor is one."""
    checkpoint = read_checkpoint(str(models["moe"]))
    asked: list[tuple[str, int]] = []
    original = transfer.run_transfer
    monkeypatch.setattr(transfer, "run_transfer", lambda one, *rest: asked.append(one.key) or original(one, *rest))
    with pieces_of(997, whole=True):
        expected, old = digests(checkpoint), digests(checkpoint, version=1)
    assert len(asked) == 2 * len(expected)
    with pieces_of(997):
        del asked[:]
        assert digests(checkpoint, workers=3) == expected
        assert len(asked) > 4 * len(expected) and len(set(asked)) == len(asked)
        assert digests(checkpoint, version=1) == old
