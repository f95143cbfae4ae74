"""What the files of a Megatron checkpoint hold beside the model, and what becomes of it.

Megatron-LM writes it in training/checkpointing.py (`generate_state_dict`, `save_checkpoint`), core 0.19 and older.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Config, chunked, ledgers
from ckpt_megatron.masters import KEY, optimizers

__all__ = ["DIST", "LIGHTNING", "NAMES", "enter_names", "enter_state"]

# mp_rank_*/model_optim_rng.pt, common.pt, and since core 0.19 the object common_state
_KERNEL_STATE = ledgers.Reason("state of kernels", "it holds statistics of FP8 scaling, which the weights do not need")

STATE = ledgers.Contents(
    {
        "model": "weights",
        "model[0-9]*": "weights",
        "args": "architecture",
        "checkpoint_version": "order of q, k and v",
        "iteration": ledgers.PROGRESS,
        "optimizer": ledgers.OPTIMIZER,
        "opt_param_scheduler": ledgers.SCHEDULE,
        "lr_scheduler": ledgers.SCHEDULE,  # before 2022
        "rng_state": ledgers.RANDOM,
        "*_rng_state": ledgers.RANDOM,  # before core 0.4: random_, np_, torch_, cuda_
        "rng_tracker_states": ledgers.RANDOM,
        "rerun_state_machine": ledgers.PROGRESS,
        "num_floating_point_operations_so_far": ledgers.PROGRESS,
        "tokens": ledgers.PROGRESS,
        "content_metadata": ledgers.PROVENANCE,
    }
)

# common.pt of NeMo, which PyTorch Lightning wrote (trainer/connectors/checkpoint_connector.py, dump_checkpoint)
LIGHTNING = ledgers.Contents(
    {
        "state_dict": "weights",
        "hyper_parameters": "architecture",
        "hparams_name": "architecture",
        "epoch": ledgers.PROGRESS,
        "global_step": ledgers.PROGRESS,
        "loops": ledgers.PROGRESS,
        "callbacks": ledgers.PROGRESS,
        "*_state": ledgers.PROGRESS,
        "optimizer_states": ledgers.OPTIMIZER,
        "optimizer": ledgers.OPTIMIZER,
        "lr_schedulers": ledgers.SCHEDULE,
        "MixedPrecision*": ledgers.SCALER,
        "*DataModule": ledgers.LOADER,
        "pytorch-lightning_version": ledgers.PROVENANCE,
        "content_metadata": ledgers.PROVENANCE,
    }
)
"""What a checkpoint of PyTorch Lightning holds."""

# What else the args say: all but the lines of `config` tell how to train.
ARGS = ledgers.Contents(
    {
        "iteration": ledgers.PROGRESS,
        "consumed_*_samples": ledgers.PROGRESS,
        "skipped_train_samples": ledgers.PROGRESS,
        "*": ledgers.SETTINGS,
    }
)

# Sections of Bridge's run_config.yaml (training/config.py, ConfigContainer)
RUN_SECTIONS = ledgers.Contents({"model": "architecture", "*": ledgers.SETTINGS})

# metadata.json of a distributed checkpoint (core/dist_checkpointing/core.py, CheckpointingConfig)
DIST = ledgers.Contents({"sharded_backend*": "how tensors are kept", "common_backend*": "how tensors are kept"})
"""What the metadata.json of a distributed checkpoint holds."""

# Bridge's latest_train_state.pt (training/state.py, TrainState)
TRACKED = ledgers.Contents({"step": "the iteration to read", "*": ledgers.PROGRESS})

# Names in the metadata of a distributed checkpoint that are not weights
NAMES = ledgers.Contents(
    {
        # DistributedOptimizer, and Float16Optimizer; chained ones may have a prefix
        "optimizer.state.param.*": ledgers.MASTERS,
        "optimizer.state.fp32_param.*": ledgers.MASTERS,
        "chained_*.optimizer.state.param.*": ledgers.MASTERS,
        "chained_*.optimizer.state.fp32_param.*": ledgers.MASTERS,
        "optimizer.*": ledgers.OPTIMIZER,
        "chained_*": ledgers.OPTIMIZER,
        "rng_state*": ledgers.RANDOM,
        "rerun_state_machine*": ledgers.PROGRESS,
        # of Megatron-FSDP
        "opt_param_scheduler*": ledgers.SCHEDULE,
        "num_floating_point_operations_so_far": ledgers.PROGRESS,
        "common_state*": "architecture",
        "*_extra_state*": _KERNEL_STATE,
        "*": ledgers.UNKNOWN_KEY,
    }
)
"""Names in a distributed checkpoint that are not weights."""


def enter_args(ledger: ledgers.Ledger, file: str, args: Mapping[str, Any], table: Config) -> None:
    """Every arg: those that the table reads, and those that tell how to train."""
    fates = table.fates(args)
    ledger.contents(file, {key: value for key, value in args.items() if key not in fates}, ARGS, section="args")
    ledger.config(file, fates, section="args")


def enter_state(ledger: ledgers.Ledger, file: str, content: Mapping[Any, Any], table: ledgers.Contents) -> None:
    """What a rank's file holds, its fp32 masters apart from the rest of the optimizer."""
    ledger.contents(file, content, table)
    for key in ("optimizer", "optimizer_states"):
        masters = [optimizer[KEY] for optimizer in optimizers({"optimizer": content.get(key)})]
        if masters:
            size = ledgers.tensor_bytes(masters)
            ledger.left(ledgers.OPTIMIZER, file, key, size=ledgers.tensor_bytes(content[key]) - size)
            ledger.left(ledgers.MASTERS, file, f"{key}.{KEY}", size=size)


def enter_names(ledger: ledgers.Ledger, checkpoint: chunked.DistributedCheckpoint, weights: set[str]) -> None:
    """What a distributed checkpoint holds beside the tensors `weights`."""
    file = checkpoint.described_in[0] if len(checkpoint.described_in) == 1 else checkpoint.folder
    for name, value in {**checkpoint.tensors, **checkpoint.objects}.items():
        if name not in weights:
            ledger.contents(file, {name: value}, NAMES)
