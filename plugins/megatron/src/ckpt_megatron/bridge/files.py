"""The folder of a Megatron-Bridge checkpoint.

ROOT/latest_train_state.pt                             how far the run got
ROOT/latest_checkpointed_iteration.txt                 the same for Megatron-LM
ROOT/iter_0000100/run_config.yaml train_state.pt       what the model is
ROOT/iter_0000100/metadata.json .metadata *.distcp     its tensors, as Megatron-Core's torch_dist keeps them
ROOT/iter_0000100/tokenizer/...
"""

from __future__ import annotations

import os
import re

from ckpt_core.sdk import CkptError, FormatError, StoredTensor, disk, torch_files
from ckpt_megatron.files import RUN_CONFIG, TRACKER, is_bridge

TRAIN_STATE = "train_state.pt"
LATEST = "latest_train_state.pt"
TOKENIZER = "tokenizer"
_METADATA = ".metadata"
_ITERATION = re.compile(r"iter_\d{7,}")


def looks_like(path: str) -> str | None:
    """The fact by which a folder is a Megatron-Bridge checkpoint, or None."""
    if not os.path.isdir(path):
        return None
    try:
        folder = find_folder(path)
    except (CkptError, OSError):
        return None
    if not is_bridge(folder):
        return None
    return os.path.join(os.path.relpath(folder, os.path.dirname(os.path.abspath(folder))), RUN_CONFIG)


def find_folder(path: str) -> str:
    """The folder of one iteration: `path` itself, or the one that the run in `path` saved last."""
    if _is_iteration(path):
        return path
    steps = {file: step for file, step in ((LATEST, _step(path)), (TRACKER, _tracked(path))) if step is not None}
    if len(set(steps.values())) > 1:
        raise FormatError(
            "the files that name the last iteration disagree",
            file=path,
            found=", ".join(f"{file}: {step}" for file, step in steps.items()),
            fix="give the folder of an iteration",
        )
    for file, step in steps.items():
        folder = os.path.join(path, f"iter_{step:07d}")
        if not _is_iteration(folder):
            raise FormatError(
                f"the iteration that {file} names is not there", file=path, found=f"no {RUN_CONFIG} in iter_{step:07d}"
            )
        return folder
    names = sorted(os.listdir(path)) if os.path.isdir(path) else []
    found = [name for name in names if _ITERATION.fullmatch(name) and _is_iteration(os.path.join(path, name))]
    if len(found) != 1:
        raise FormatError(
            f"no {LATEST} says which iteration to read",
            file=path,
            found=", ".join(found) or "none",
            expected=f"iter_NNNNNNN/{RUN_CONFIG}",
            fix="give the folder of an iteration" if found else None,
        )
    return os.path.join(path, found[0])


def _is_iteration(folder: str) -> bool:
    return all(os.path.isfile(os.path.join(folder, name)) for name in (RUN_CONFIG, _METADATA))


def _tracked(root: str) -> int | None:
    """The iteration in the file that Megatron-LM reads."""
    path = os.path.join(root, TRACKER)
    if not os.path.isfile(path):
        return None
    word = disk.read_small(path, 64).decode("ascii", "replace").strip()
    if not (word.isdigit() and word.isascii()):
        raise FormatError(f"{TRACKER} names no iteration", file=path, found=repr(word), expected="a number")
    return int(word)


def _step(root: str) -> int | None:
    """The iteration in the train state: a tensor of one whole number, 32 or 64 bits wide."""
    path = os.path.join(root, LATEST)
    if not os.path.isfile(path):
        return None
    state = torch_files.read_torch_file(path)
    step = state.get("step") if isinstance(state, dict) else None
    if isinstance(step, StoredTensor) and step.shape == () and step.dtype.name in ("int32", "int64"):
        number = int.from_bytes(disk.read_range(step.file, step.offset, step.dtype.size), "little", signed=True)
        if number >= 0:
            return number
    raise FormatError(
        f"{LATEST} names no iteration", file=path, found=torch_files.brief(step), expected="step, a whole number"
    )
