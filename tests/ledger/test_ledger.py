"""The account itself: patterns, sizes, groups, and the walk over what a reader did not enter."""

from __future__ import annotations

from pathlib import Path

from ckpt_core.ledger import (
    ASKED,
    MASTERS,
    OPTIMIZER,
    SETTINGS,
    UNKNOWN_FILE,
    UNKNOWN_KEY,
    Contents,
    Ledger,
    tensor_bytes,
)
from ckpt_core.storage.dtypes import dtype_named
from ckpt_core.storage.pickle.opaque import Opaque
from ckpt_core.storage.tensor import StoredTensor

TABLE = Contents({"model*": "weights", "optimizer": OPTIMIZER, "lr": SETTINGS})
TENSOR = StoredTensor.contiguous("f", dtype_named("bf16"), (3, 5), 0)


def fates(ledger: Ledger) -> dict[str, tuple[str, str]]:
    return {entry.key or Path(entry.file).name: (entry.fate, entry.what) for entry in ledger}


def test_every_key_has_a_fate_and_one_that_no_row_knows_is_left() -> None:
    ledger = Ledger()
    ledger.contents("/a", {"model0": 1, "optimizer": {"state": [TENSOR]}, "lr": 0.1, "extra": 2, "empty": {}}, TABLE)
    assert fates(ledger) == {
        "model0": ("used", "weights"),
        "optimizer": ("left", OPTIMIZER.what),
        "lr": ("left", SETTINGS.what),
        "extra": ("left", UNKNOWN_KEY.what),
        "empty": ("used", "nothing, as it is empty"),
    }
    assert {entry.key: entry.bytes for entry in ledger}["optimizer"] == 30


def test_tensors_are_counted_wherever_they_stand_and_a_circle_ends() -> None:
    circle: list = [TENSOR]
    circle.append(circle)
    inside = Opaque("m", "C", args=(TENSOR,), state={"a": TENSOR}, items=[TENSOR], entries=[("k", TENSOR)])
    assert (tensor_bytes(circle), tensor_bytes(inside)) == (30, 4 * 30)


def test_a_walk_finds_what_was_not_entered_and_sums_up_folders_of_others(tmp_path: Path) -> None:
    for name in ("iter_1/weights", "iter_1/extra", "iter_2/weights", "iter_2/deep/er", "notes", "ckpt-receipt.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "outside").symlink_to("/usr")
    ledger = Ledger()
    ledger = ledger.closed(
        str(tmp_path), [str(tmp_path / "iter_1/weights")], [str(tmp_path / "notes")], "ckpt-receipt.json"
    )
    found = {Path(entry.file).relative_to(tmp_path).as_posix(): entry for entry in ledger}
    assert {name: entry.fate for name, entry in found.items()} == {
        "iter_1/weights": "used",
        "iter_1/extra": "left",
        "iter_2": "left",
        "notes": "carried",
        "outside": "left",
        "ckpt-receipt.json": "used",
    }
    assert (found["iter_2"].bytes, found["iter_2"].files) == (10, 2)


def test_a_folder_is_left_as_one_thing_but_for_files_in_it_and_links_are_not_followed(tmp_path: Path) -> None:
    for name in ("elsewhere/huge", "optim/a/1", "optim/a/deep/2", "optim/b/1", "optim/b/2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    ledger = Ledger()
    for place in ("optim", "linked", "nothing"):
        ledger.left_whole(OPTIMIZER, str(tmp_path / place), but=[str(tmp_path / "optim/b/1")])
    found = {Path(entry.file).relative_to(tmp_path).as_posix(): (entry.bytes, entry.files) for entry in ledger}
    link = len(str(tmp_path / "elsewhere"))
    assert found == {"optim/a": (10, 2), "optim/b/2": (5, 1), "linked": (link, 1)}
    whole = Ledger()
    whole.left_whole(OPTIMIZER, str(tmp_path / "optim"))
    assert [(entry.bytes, entry.files) for entry in whole] == [(20, 4)]


def test_losses_are_one_a_kind_the_largest_first_and_name_places_below_the_source(tmp_path: Path) -> None:
    ledger = Ledger()
    for rank in range(5):
        ledger.left(OPTIMIZER, str(tmp_path / f"rank{rank}.pt"), "optimizer", size=1000)
    ledger.left(UNKNOWN_FILE, str(tmp_path / "strange"), size=9000)
    ledger.left(SETTINGS, str(tmp_path / "args"), *"abcdefg")
    ledger.asked(str(tmp_path / "args"), ["x"])
    unknown, optimizer, *others = ledger.losses(str(tmp_path))
    assert unknown.subject == "files that the reader does not know, 9 kB: strange"
    assert optimizer.subject == "optimizer state, 5 kB: rank0.pt: optimizer, and in 4 more files"
    assert {loss.subject for loss in others} == {"settings of the run: args: 7 keys", f"{ASKED.what}: args: x"}


def test_masters_that_are_read_are_not_left() -> None:
    ledger = Ledger()
    ledger.left(MASTERS, "/a", "optimizer.fp32", size=8)
    ledger.left(OPTIMIZER, "/a", "optimizer", size=16)
    ledger.read_masters()
    assert fates(ledger) == {"optimizer.fp32": ("used", "weights"), "optimizer": ("left", OPTIMIZER.what)}
