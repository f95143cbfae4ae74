"""The files of a training that lie beside a transformers model: what Trainer (trainer.py, `_save_checkpoint`) and accelerate (checkpointing.py) save."""

from __future__ import annotations

from ckpt_core.sdk import company, ledgers

OPTIMIZER = "optimizer.pt"
"""What the Trainer calls the state of its optimizer."""
_SAVED = ledgers.Contents(
    {
        "optimizer*": ledgers.OPTIMIZER,
        "scheduler*": ledgers.SCHEDULE,
        "lr_scheduler*": ledgers.SCHEDULE,
        "scaler*": ledgers.SCALER,
        "rng_state*": ledgers.RANDOM,
        "random_states*": ledgers.RANDOM,
        "sampler*": ledgers.LOADER,
        "dl_state_dict*": ledgers.LOADER,
        "training_args*": ledgers.SETTINGS,
        **company.OF_TRAINING.rows,
    }
)


def state_of_training(name: str) -> ledgers.Reason | None:
    """What a file or folder of this name beside a model is of a training; None where it is something else."""
    row = _SAVED.of(name)
    return None if isinstance(row, str) or row is ledgers.UNKNOWN_KEY else row
