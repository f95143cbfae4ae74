"""The folders of torchtitan: `{dump}/checkpoint/step-{N}/` with `.metadata` and `__{rank}_0.distcp`."""

from __future__ import annotations

import os
import re

from ckpt_core.sdk import CkptError, FormatError, chunked, disk

_STEP = re.compile(r"step-(\d{1,12})")
# A key that all of its models have, as pickles keep a string: behind its length. ModernBERT has one that ends so.
_EMBEDDING = b"tok_embeddings.weight"
_KEY = re.compile(rb"(\x8c%c|X%c\0\0\0)%b" % (len(_EMBEDDING), len(_EMBEDDING), re.escape(_EMBEDDING)))


def find_step(path: str) -> str | None:
    """The folder of a step at `path`: itself, or the last one in it; None if there is none."""
    if is_step(path):
        return path
    if not os.path.isdir(path):
        return None
    steps = [(int(match[1]), name) for name in os.listdir(path) if (match := _STEP.fullmatch(name))]
    folders = (os.path.join(path, name) for _, name in sorted(steps, reverse=True))
    return next(filter(is_step, folders), None)


def step_at(path: str) -> str:
    """As `find_step`; `FormatError` if there is none."""
    folder = find_step(path)
    if folder is None:
        raise FormatError("there is no step of torchtitan here", file=path, expected="step-N/.metadata")
    return folder


def looks_like(path: str) -> str | None:
    """The fact by which a folder is of torchtitan, or None."""
    folder = find_step(path)
    return None if folder is None else f"a {chunked.METADATA} with torchtitan's names in {os.path.basename(folder)}"


def is_step(folder: str) -> bool:
    """Whether a folder holds a distributed checkpoint with torchtitan's names."""
    file = os.path.join(folder, chunked.METADATA)
    if not os.path.isfile(file):
        return False
    try:
        return _KEY.search(disk.read_small(file)) is not None
    except (CkptError, OSError):
        return False
