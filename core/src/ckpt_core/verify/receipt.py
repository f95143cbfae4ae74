"""The tensors of an output against its receipt; its files are checked in `verify.files`."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_core.checkpoint import Checkpoint
from ckpt_core.receipt import Receipt
from ckpt_core.tensors.digest import Digests


def changed_tensors(recorded: Receipt, checkpoint: Checkpoint, results: Mapping[str, Digests]) -> list[tuple[str, str]]:
    """(canonical name, what is wrong) of every tensor of `checkpoint` that is not as it was written."""
    found = []
    for name in sorted(recorded.digests.keys() | results.keys()):
        if name not in results:
            found.append((name, "missing"))
        elif name not in recorded.digests:
            found.append((name, "not in the receipt"))
        elif (shape := checkpoint.tensors[name].parameter.true_shape) != recorded.shapes[name]:
            found.append((name, f"shape {shape} instead of {recorded.shapes[name]}"))
        elif results[name].digest != recorded.digests[name]:
            found.append((name, "values changed since the conversion"))
    return found
