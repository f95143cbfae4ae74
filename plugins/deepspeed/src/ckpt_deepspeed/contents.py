"""What the files of a DeepSpeed checkpoint hold beside the weights, and what becomes of it.

DeepSpeed writes it in runtime/engine.py (`_save_checkpoint`, `_save_zero_checkpoint`), 0.7 to 0.19, Megatron-DeepSpeed
in megatron/checkpointing.py (`save_checkpoint`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import ledgers

_CLIENT = ledgers.Reason("state of the trainer's own", "client_state of save_checkpoint, which the weights do not need")

# mp_rank_*_model_states.pt, zero_pp_rank_*_model_states.pt
STATES = ledgers.Contents(
    {
        "module": "weights",
        "buffer_names": "which tensors are not parameters",
        "param_shapes": "shapes of the parameters",
        "frozen_param_shapes": "shapes of the parameters",
        "frozen_param_fragments": "weights",
        "shared_params": "which parameters are one",
        "dp_world_size": "parallel layout",
        "mp_world_size": "parallel layout",
        "checkpoint_parallel_dimensions": "parallel layout",
        "sparse_tensor_module_names": ledgers.SETTINGS,
        "optimizer": ledgers.OPTIMIZER,
        "lr_scheduler": ledgers.SCHEDULE,
        "data_sampler": ledgers.LOADER,
        "random_ltd": ledgers.PROGRESS,
        "skipped_steps": ledgers.PROGRESS,
        "global_steps": ledgers.PROGRESS,
        "global_samples": ledgers.PROGRESS,
        "ds_config": ledgers.SETTINGS,
        "ds_version": ledgers.PROVENANCE,
        # of Megatron-DeepSpeed
        "args": "architecture",
        "checkpoint_version": "order of q, k and v",
        "checkpoint_info": "true vocabulary",
        "iteration": ledgers.PROGRESS,
        "tokens": ledgers.PROGRESS,
        "*_rng_state": ledgers.RANDOM,
        "rng_tracker_states": ledgers.RANDOM,
        "*": _CLIENT,
    }
)

# *_optim_states.pt, and its entry optimizer_state_dict
OPTIMIZER_FILE = ledgers.Contents(
    {"optimizer_state_dict": "weights", "ds_config": ledgers.SETTINGS, "ds_version": ledgers.PROVENANCE}
)
PARTITION = ledgers.Contents(
    {
        "single_partition_of_fp32_groups": "weights",
        "fp32_flat_groups": "weights",
        "group_paddings": "parallel layout",
        "param_alignment_paddings": "parallel layout",
        "partition_count": "parallel layout",
        "param_slice_mappings": "which master is whose",
        "zero_stage": "parallel layout",
        "loss_scaler": ledgers.SCALER,
        "dynamic_loss_scale": ledgers.SCALER,
        "overflow": ledgers.SCALER,
        "ds_version": ledgers.PROVENANCE,
        "*": ledgers.OPTIMIZER,
    }
)

# What else of Megatron-DeepSpeed's args
ARGS = ledgers.Contents({"iteration": ledgers.PROGRESS, "consumed_*": ledgers.PROGRESS, "*": ledgers.SETTINGS})


def enter_partition(ledger: ledgers.Ledger, file: str, content: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """An optimizer file whose masters are read."""
    ledger.used("weights", file)
    ledger.contents(file, content, OPTIMIZER_FILE)
    ledger.contents(file, state, PARTITION, section="optimizer_state_dict")


def enter_unread(ledger: ledgers.Ledger, files: list[str]) -> None:
    """Optimizer files of which nothing is read, the masters in them included."""
    for file in files:
        ledger.left(ledgers.OPTIMIZER, file, size=os.path.getsize(file))
