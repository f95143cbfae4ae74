"""What an earlier receipt beside a checkpoint still knows about it.

A format may be unable to say the true vocabulary, or by which layout choices its source can be written again
bit for bit. The receipt of the conversion says both. It is believed only where it describes exactly the model
that is there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckpt_core.architecture import Architecture, differing, facts_of, from_json
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.company.vocabulary import with_vocabulary
from ckpt_core.errors import CkptError, Problems
from ckpt_core.receipt.places import RECEIPT, receipt_path
from ckpt_core.receipt.seal import read_receipt


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a receipt says of the files beside it: the architecture, and the decisions they were written by."""

    architecture: Architecture
    decisions: Mapping[str, Any]


def receipt_of(folder: str, format: str) -> Recorded | None:
    """The receipt in `folder`, if it is of a checkpoint of `format` and all data files still have the recorded sizes.

    For what decides how files are read and that they cannot say; a reader checks all else as if there were none.
    """
    path = receipt_path(folder)
    if not os.path.isfile(path):
        return None
    body = read_receipt(path)
    target = body.get("target")
    if not isinstance(target, dict) or target.get("format") != format:
        return None
    files, decisions = target.get("files"), target.get("decisions")
    if not isinstance(files, dict) or not isinstance(decisions, dict):
        return None
    for name, size in files.items():
        file = os.path.join(folder, name)
        if not os.path.isfile(file) or os.path.getsize(file) != size:
            return None
    try:
        return Recorded(from_json(body.get("architecture"), path), decisions)
    except CkptError:
        return None


def original_of(checkpoint: Checkpoint, folder: str) -> Checkpoint:
    """`checkpoint` with the true vocabulary and the hints of a fitting receipt, if there is one: in `folder`, or, where
    that is a single file, beside it.
    """
    path = receipt_path(folder)
    if not os.path.isfile(path):
        return checkpoint
    body = read_receipt(path)
    target, source = body.get("target"), body.get("source")
    if not isinstance(target, dict) or not isinstance(source, dict) or target.get("format") != checkpoint.format:
        return checkpoint
    try:
        recorded = from_json(body.get("architecture"), path)
    except CkptError:
        return checkpoint
    if not _same_but_for_vocabulary(recorded, checkpoint.architecture):
        return checkpoint
    provenance, hints = replace(checkpoint.provenance, recorded=True), target.get("hints")
    if isinstance(hints, dict):
        origins = {name: value for name, value in hints.items() if isinstance(value, dict)}
        provenance = replace(provenance, origins=origins)
    checkpoint = replace(checkpoint, provenance=provenance)
    tokens, known = checkpoint.architecture.tokens, recorded.tokens
    if tokens is not None and known is not None and tokens.vocabulary > known.vocabulary:
        known_by_receipt = checkpoint.because(f"true vocabulary {known.vocabulary} from {RECEIPT}")
        return with_vocabulary(known_by_receipt, known.vocabulary)
    return checkpoint


def _same_but_for_vocabulary(one: Architecture, two: Architecture) -> bool:
    return not {path for path in differing(facts_of(one), facts_of(two)) if path != "tokens.vocabulary"}


def check_agreement(given: Architecture, found: Architecture, file: str) -> None:
    """Raise every fact in which `--config` (`given`) and a checkpoint that describes itself (`found`) differ.

    The true vocabulary may be smaller in `given`: many formats can only say the padded one.
    """
    one, two = facts_of(given), facts_of(found)
    problems = Problems("--config and the checkpoint describe different models")
    for path in differing(one, two):
        if not (path.startswith("tokens.") and path.endswith("vocabulary") and one[path] <= two[path]):
            problems.add(
                CkptError(f"{path} is {two.get(path)} in the checkpoint, {one.get(path)} in --config", file=file)
            )
    problems.raise_any()
