"""What an earlier receipt beside a checkpoint still knows about it.

A format may be unable to say the true vocabulary, or by which layout choices its source can be written again
bit for bit. The receipt of the conversion says both. It is believed only where it describes exactly the model
that is there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from ckpt_core.architecture import Architecture, differing, facts_of
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.company.vocabulary import with_vocabulary
from ckpt_core.errors import CkptError
from ckpt_core.receipt.places import RECEIPT, receipt_path
from ckpt_core.receipt.receipt import Receipt, read_receipt


def receipt_of(folder: str, format: str) -> Receipt | None:
    """The receipt in `folder`, if it is of a checkpoint of `format` and all data files still have the recorded sizes.

    For what decides how files are read and that they cannot say; a reader checks all else as if there were none.
    `FormatError` if it is not as it was written.
    """
    path = receipt_path(folder)
    if not os.path.isfile(path):
        return None
    receipt = read_receipt(path)
    try:
        if receipt.format != format or not _has_sizes(folder, receipt.files):
            return None
        _ = receipt.architecture, receipt.decisions
    except CkptError:  # ckpt did not write it
        return None
    return receipt


def _has_sizes(folder: str, files: Mapping[str, int]) -> bool:
    places = {os.path.join(folder, name): size for name, size in files.items()}
    return all(os.path.isfile(file) and os.path.getsize(file) == size for file, size in places.items())


def original_of(checkpoint: Checkpoint, folder: str) -> Checkpoint:
    """`checkpoint` with the true vocabulary and the hints of a fitting receipt, if there is one: in `folder`, or, where
    that is a single file, beside it.
    """
    path = receipt_path(folder)
    if not os.path.isfile(path):
        return checkpoint
    receipt = read_receipt(path)
    try:
        if receipt.format != checkpoint.format or not _same_but_for_vocabulary(
            receipt.architecture, checkpoint.architecture
        ):
            return checkpoint
        provenance = replace(checkpoint.provenance, recorded=True, origins=receipt.hints)
    except CkptError:  # ckpt did not write it
        return checkpoint
    checkpoint = replace(checkpoint, provenance=provenance)
    tokens, known = checkpoint.architecture.tokens, receipt.architecture.tokens
    if tokens is not None and known is not None and tokens.vocabulary > known.vocabulary:
        known_by_receipt = checkpoint.because(f"true vocabulary {known.vocabulary} from {RECEIPT}")
        return with_vocabulary(known_by_receipt, known.vocabulary)
    return checkpoint


def _same_but_for_vocabulary(one: Architecture, two: Architecture) -> bool:
    return not {path for path in differing(facts_of(one), facts_of(two)) if path != "tokens.vocabulary"}
