"""What a model comes with besides its tensors: notes, among them the ids of special tokens, and files.

Every format says of them what it can. What a target does not say or hold becomes a typed loss here, for all formats
alike, so that none can forget it.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ckpt_core import ledger
from ckpt_core.checkpoint import Checkpoint, Loss, Sidecar, Target
from ckpt_core.company.tokenizer import GENERATION, ROLES, ids_of, is_token
from ckpt_core.errors import CkptError
from ckpt_core.storage.bytes.home import at_home, home_of

# Files beside a config that belong to the model it describes, whatever else its folder holds.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "chat_template.*",
    "*processor_config.json",
    GENERATION,
)
# Folders of such files, whatever the files in them are called.
FOLDERS = ("additional_chat_templates",)
"""Folders of companions, by name."""


ACCOUNT = "trainer_state.json"
_REGISTERED = ledger.Reason(
    "objects that a program registered with accelerate", "they are pickles, which are not opened"
)
_DEEPSPEED = ledger.Reason("files that go with a state of DeepSpeed", "they speak of folders that are not written")
OF_TRAINING = ledger.Contents(
    {
        ACCOUNT: ledger.PROGRESS,
        "random_states_*.pkl": ledger.RANDOM,
        "custom_checkpoint_*.pkl": _REGISTERED,
        "latest": _DEEPSPEED,
        "latest_universal": _DEEPSPEED,
        "zero_to_fp32.py": _DEEPSPEED,
    }
)
"""Files of a training that lie beside a model and hold no tensors: Trainer's (trainer.py, `_save_checkpoint`), accelerate's and DeepSpeed's.
The Trainer's account of its run travels with the state of the training, the others with nothing."""


# --- reading ---------------------------------------------------------------------------------------------------------


def with_sound_ids(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` without the ids of tokens that its vocabulary does not have: each is a loss."""
    tokens = checkpoint.architecture.tokens
    if tokens is None:
        return checkpoint
    notes, losses = dict(checkpoint.notes), []
    for role in ROLES:
        value = checkpoint.notes.get(role)
        if value is None or (is_token(value) and max(_listed(value)) < tokens.vocabulary):
            continue
        known = [number for number in _listed(value) if type(number) is int and 0 <= number < tokens.vocabulary]
        outside = [number for number in _listed(value) if number not in known]
        notes[role] = known or None
        reason = (
            f"outside the vocabulary of {tokens.vocabulary} tokens, and transformers may refuse a model that names it"
        )
        losses.append(Loss("dropped", f"{role} token {_said(outside)}", reason))
    return replace(checkpoint, notes=notes).because(losses=losses)


def with_config(checkpoint: Checkpoint, config: str, notes: Mapping[str, Any]) -> Checkpoint:
    """`checkpoint` with what a config given by `--config` knows besides: its `notes`, and the companions beside it.

    What the checkpoint itself says stands.
    """
    known = {name for name, value in checkpoint.notes.items() if value is not None}
    added = {name: value for name, value in notes.items() if name not in known and value is not None}
    files = {name: file for name, file in companions_of(config).items() if name not in checkpoint.sidecars}
    if not added and not files:
        return checkpoint
    found = replace(checkpoint, notes={**checkpoint.notes, **added}, sidecars={**checkpoint.sidecars, **files})
    return found.because(f"by {config}: {', '.join([*sorted(added), *sorted(files)])}")


def without_training_files(checkpoint: Checkpoint, but_account: bool) -> Checkpoint:
    """`checkpoint` without the files of a training among its companions; `but_account`: the Trainer's account of its run stays among them."""
    left = {
        name: (file, reason)
        for name, file in checkpoint.sidecars.items()
        if isinstance(reason := OF_TRAINING.of(name), ledger.Reason)
        and reason is not ledger.UNKNOWN_KEY
        and not (but_account and name == ACCOUNT)
    }
    if not left:
        return checkpoint
    losses = []
    for name, (file, reason) in left.items():
        if file.size == os.path.getsize(file.path):
            checkpoint.ledger.left(reason, file.path, size=file.size)
        else:
            losses.append(Loss("dropped", f"{reason.what}: {name}", reason.why))  # it is a part of an archive
    kept = {name: file for name, file in checkpoint.sidecars.items() if name not in left}
    return replace(checkpoint, sidecars=kept).because(losses=losses)


def is_companion(name: str) -> bool:
    """Whether a file of this name belongs to a model, whatever else is in its folder."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in COMPANIONS) or name.partition("/")[0] in FOLDERS


def companions_of(config: str) -> dict[str, Sidecar]:
    """The files beside a config that belong to its model. `FormatError` for one that really lies outside of their folder."""
    folder = os.path.dirname(os.path.abspath(config))
    with at_home(config):
        return files_in(folder, is_companion)


def files_in(folder: str, wanted: Callable[[str], bool]) -> dict[str, Sidecar]:
    """The files in a folder that are `wanted` by their names, and those in its `FOLDERS`.

    `FormatError` for one, or for a folder, that really lies outside of the checkpoint: see `storage.bytes.home`.
    """
    found: dict[str, Sidecar] = {}
    for entry in _entries(folder):
        if entry.name in FOLDERS and entry.is_dir():
            found |= {f"{entry.name}/{name}": file for name, file in files_below(entry.path).items()}
        elif wanted(entry.name) and os.path.isfile(entry.path):
            found[entry.name] = _sidecar(entry.path)
    return found


def files_below(folder: str) -> dict[str, Sidecar]:
    """All files in a folder that holds nothing else, by their paths in it. Linked folders in it are not entered.

    `FormatError` for one, or if the folder itself, really lies outside of the checkpoint.
    """
    found: dict[str, Sidecar] = {}
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            found |= {f"{entry.name}/{name}": file for name, file in files_below(entry.path).items()}
        elif os.path.isfile(entry.path):
            found[entry.name] = _sidecar(entry.path)
    return found


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; nothing if there is no such folder."""
    if not os.path.isdir(folder):
        return []
    home_of(folder).check(folder, weights=False)
    return sorted(os.scandir(folder), key=lambda entry: entry.name)


def _sidecar(path: str) -> Sidecar:
    home_of(path).check(path, weights=False)
    return Sidecar(path, os.stat(path).st_size)


# --- writing ---------------------------------------------------------------------------------------------------------


def known_ids(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """The ids of special tokens: those of the notes, and for roles that no note speaks of those that the companions say.

    Also what each of the latter rests on, in words. A damaged companion says nothing.
    """
    tokens = checkpoint.architecture.tokens
    found = {role: checkpoint.notes[role] for role in ROLES if role in checkpoint.notes}
    reasons: list[str] = []
    if tokens is None or len(found) == len(ROLES):
        return found, reasons
    try:
        said = ids_of(checkpoint.sidecars)
    except CkptError as problem:
        return found, [f"special tokens: not by the tokenizer, {problem.problem}"]
    for role, (value, file) in said.items():
        if role in found:
            continue
        if max(_listed(value)) < tokens.vocabulary:
            found[role] = value
            reasons.append(f"{role} {_said(_listed(value))}: by {file}")
        else:
            reasons.append(f"{role}: not by {file}, whose {_said(_listed(value))} is outside the vocabulary")
    return found, reasons


def losses_of(source: Checkpoint, target: Target) -> list[Loss]:
    """The notes of `source` that `target` does not say, and the files that it does not hold."""
    return [*_unsaid(source, target), *_left(source, target)]


def _unsaid(source: Checkpoint, target: Target) -> Iterator[Loss]:
    absent: list[str] = []
    for name, value in sorted(source.notes.items()):
        said = target.said.get(name)
        if value is None or said == value or (name in ROLES and _listed(said) == _listed(value)):
            continue
        if name in ROLES:
            reason = "it has no key for it" if said is None else f"its config says {_said(_listed(said))}"
            yield Loss("unsaid", f"{name} token {_said(_listed(value))}", f"format {target.format}: {reason}")
        elif said is not None:
            yield Loss(
                "unsaid", f"{name} {str(value)[:60]}", f"format {target.format}: its config says {str(said)[:60]}"
            )
        else:
            absent.append(name)
    if absent:
        yield Loss("unsaid", ", ".join(absent), f"settings that format {target.format} has no key for")


def _left(source: Checkpoint, target: Target) -> Iterator[Loss]:
    held = set(target.sidecars.values())
    named = {name for loss in target.losses if loss.kind == "dropped" for name in loss.subject.split(", ")}
    for name, file in sorted(source.sidecars.items()):
        if file not in held and name not in target.held and name not in named:
            yield Loss("dropped", name, f"format {target.format} has no place for it")


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _said(ids: list[Any]) -> str:
    return ", ".join(str(number)[:40] for number in ids[:8])
