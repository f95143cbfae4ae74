"""What lies in an FSDP checkpoint beside the weights, and what becomes of it."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterable

from ckpt_core.sdk import chunked, ledgers
from ckpt_hf.sdk import state_of_training

# Keys of a distributed checkpoint. accelerate: utils/fsdp_utils.py; torchtitan and plain loops name what they save themselves.
KEYS = ledgers.Contents(
    {
        "optim*": ledgers.OPTIMIZER,
        "opt.*": ledgers.OPTIMIZER,
        "lr_scheduler*": ledgers.SCHEDULE,
        "scheduler*": ledgers.SCHEDULE,
        "dataloader*": ledgers.LOADER,
        "train_dataloader*": ledgers.LOADER,
        "rng*": ledgers.RANDOM,
        "random*": ledgers.RANDOM,
        "scaler*": ledgers.SCALER,
        "train_state*": ledgers.PROGRESS,
        "step": ledgers.PROGRESS,
        "global_step": ledgers.PROGRESS,
        "epoch": ledgers.PROGRESS,
        "iteration": ledgers.PROGRESS,
    }
)

# extra_state_world_size_N_rank_R.pt of verl
EXTRA = ledgers.Contents({"lr_scheduler": ledgers.SCHEDULE, "rng": ledgers.RANDOM})

_UNREAD = ledgers.Reason("weights in another container", "those that FSDP saved are read")
# Files and folders beside the weights that are not among those of Trainer and accelerate, by name: of verl, and weights.
_BESIDE = {
    "optim_world_size_*_rank_*.pt": ledgers.OPTIMIZER,
    "data.pt": ledgers.LOADER,
    "model*.safetensors*": _UNREAD,
    "pytorch_model*.bin*": _UNREAD,
}


def contents_of(keys: Iterable[str]) -> ledgers.Contents:
    """What the keys of a distributed checkpoint are; what is not known can be a tensor of the model.

    torch's own guide keeps the model and the optimizer in one object, {"app": {"model": ..., "optim": ...}}: what holds
    an optimizer holds the other parts of a training, too.
    """
    around = {key.partition(".")[0] for key in keys if KEYS.of(key.partition(".")[2]) is ledgers.OPTIMIZER}
    holders = [holder for holder in sorted(around) if KEYS.of(holder) is ledgers.UNKNOWN_KEY]
    inner = {f"{glob.escape(holder)}.{name}": row for holder in holders for name, row in KEYS.rows.items()}
    return ledgers.Contents({**KEYS.rows, **inner})


def enter_keys(
    ledger: ledgers.Ledger, held: chunked.DistributedCheckpoint, model: set[str], contents: ledgers.Contents
) -> None:
    """The keys of a distributed checkpoint; `model` are those that are read."""
    others = {key: tensor for key, tensor in held.tensors.items() if key not in model}
    for file in held.described_in:
        ledger.contents(file, {**others, **held.objects}, contents)
        ledger.used("weights", file, *sorted(model))
    if not held.described_in:
        for key, tensor in others.items():
            ledger.contents(tensor.chunks[0].data.file, {key: tensor}, contents)


def is_of_training(name: str) -> bool:
    """Whether a file beside the weights is the state of a training, by its name."""
    return _reason(name) is not None


def _reason(name: str) -> ledgers.Reason | None:
    own = next((why for pattern, why in _BESIDE.items() if fnmatch.fnmatchcase(name, pattern)), None)
    return own or state_of_training(name)


def enter_beside(ledger: ledgers.Ledger, folder: str) -> None:
    """The state of a training in the files beside the weights."""
    for name in sorted(os.listdir(folder)):
        if (reason := _reason(name)) is not None:
            ledger.left_whole(reason, os.path.join(folder, name))
