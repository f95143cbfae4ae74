"""What the files of a Megatron checkpoint hold beside the model, and what becomes of it.

Megatron-LM writes it in training/checkpointing.py (`generate_state_dict`, `save_checkpoint`), core 0.19 and older.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.layout import Config
from ckpt_core.ledger import (
    KERNEL_STATE,
    LOADER,
    MASTERS,
    OPTIMIZER,
    PROGRESS,
    PROVENANCE,
    RANDOM,
    SCALER,
    SCHEDULE,
    SETTINGS,
    UNKNOWN_KEY,
    Contents,
    Ledger,
    tensor_bytes,
)
from ckpt_core.storage.chunked import DistributedCheckpoint
from ckpt_megatron.masters import KEY, optimizers

# mp_rank_*/model_optim_rng.pt, common.pt, and since core 0.19 the object common_state
STATE = Contents(
    {
        "model": "weights",
        "model[0-9]*": "weights",
        "args": "architecture",
        "checkpoint_version": "order of q, k and v",
        "iteration": PROGRESS,
        "optimizer": OPTIMIZER,
        "opt_param_scheduler": SCHEDULE,
        "lr_scheduler": SCHEDULE,  # before 2022
        "rng_state": RANDOM,
        "*_rng_state": RANDOM,  # before core 0.4: random_, np_, torch_, cuda_
        "rng_tracker_states": RANDOM,
        "rerun_state_machine": PROGRESS,
        "num_floating_point_operations_so_far": PROGRESS,
        "tokens": PROGRESS,
        "content_metadata": PROVENANCE,
    }
)

# common.pt of NeMo, which PyTorch Lightning wrote (trainer/connectors/checkpoint_connector.py, dump_checkpoint)
LIGHTNING = Contents(
    {
        "state_dict": "weights",
        "hyper_parameters": "architecture",
        "hparams_name": "architecture",
        "epoch": PROGRESS,
        "global_step": PROGRESS,
        "loops": PROGRESS,
        "callbacks": PROGRESS,
        "*_state": PROGRESS,
        "optimizer_states": OPTIMIZER,
        "optimizer": OPTIMIZER,
        "lr_schedulers": SCHEDULE,
        "MixedPrecision*": SCALER,
        "*DataModule": LOADER,
        "pytorch-lightning_version": PROVENANCE,
        "content_metadata": PROVENANCE,
    }
)

# What else the args say: all but the lines of `config` tell how to train.
ARGS = Contents(
    {
        "iteration": PROGRESS,
        "consumed_*_samples": PROGRESS,
        "skipped_train_samples": PROGRESS,
        "*": SETTINGS,
    }
)

# Sections of Bridge's run_config.yaml (training/config.py, ConfigContainer)
RUN_SECTIONS = Contents({"model": "architecture", "*": SETTINGS})

# metadata.json of a distributed checkpoint (core/dist_checkpointing/core.py, CheckpointingConfig)
DIST = Contents({"sharded_backend*": "how tensors are kept", "common_backend*": "how tensors are kept"})

# Bridge's latest_train_state.pt (training/state.py, TrainState)
TRACKED = Contents({"step": "the iteration to read", "*": PROGRESS})

# Names in the metadata of a distributed checkpoint that are no weights
NAMES = Contents(
    {
        # DistributedOptimizer, and Float16Optimizer; chained ones may have a prefix
        "optimizer.state.param.*": MASTERS,
        "optimizer.state.fp32_param.*": MASTERS,
        "chained_*.optimizer.state.param.*": MASTERS,
        "chained_*.optimizer.state.fp32_param.*": MASTERS,
        "optimizer.*": OPTIMIZER,
        "chained_*": OPTIMIZER,
        "rng_state*": RANDOM,
        "rerun_state_machine_state*": PROGRESS,
        "common_state*": "architecture",
        "*_extra_state*": KERNEL_STATE,
        "*": UNKNOWN_KEY,
    }
)


def enter_args(ledger: Ledger, file: str, args: Mapping[str, Any], table: Config) -> None:
    """Every arg: those that the table reads, and those that tell how to train."""
    fates = table.fates(args)
    ledger.contents(file, {key: value for key, value in args.items() if key not in fates}, ARGS, section="args")
    ledger.config(file, fates, section="args")


def enter_state(ledger: Ledger, file: str, content: Mapping[Any, Any], table: Contents) -> None:
    """What a rank's file holds, its fp32 masters apart from the rest of the optimizer."""
    ledger.contents(file, content, table)
    for key in ("optimizer", "optimizer_states"):
        masters = [optimizer[KEY] for optimizer in optimizers({"optimizer": content.get(key)})]
        if masters:
            size = tensor_bytes(masters)
            ledger.left(OPTIMIZER, file, key, size=tensor_bytes(content[key]) - size)
            ledger.left(MASTERS, file, f"{key}.{KEY}", size=size)


def enter_names(ledger: Ledger, checkpoint: DistributedCheckpoint, weights: set[str]) -> None:
    """What a distributed checkpoint holds beside the tensors `weights`."""
    file = checkpoint.described_in[0] if len(checkpoint.described_in) == 1 else checkpoint.folder
    for name, value in {**checkpoint.tensors, **checkpoint.objects}.items():
        if name not in weights:
            ledger.contents(file, {name: value}, NAMES)
