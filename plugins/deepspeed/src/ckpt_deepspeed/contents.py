"""What the files of a DeepSpeed checkpoint hold beside the weights, and what becomes of it.

DeepSpeed writes it in runtime/engine.py (`_save_checkpoint`, `_save_zero_checkpoint`), 0.7 to 0.19, Megatron-DeepSpeed
in megatron/checkpointing.py (`save_checkpoint`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ckpt_core.ledger import (
    LOADER,
    OPTIMIZER,
    PROGRESS,
    PROVENANCE,
    RANDOM,
    SCALER,
    SCHEDULE,
    SETTINGS,
    Contents,
    Ledger,
    Reason,
)

_CLIENT = Reason("state of the trainer's own", "client_state of save_checkpoint, which the weights do not need")

# mp_rank_*_model_states.pt, zero_pp_rank_*_model_states.pt
STATES = Contents(
    {
        "module": "weights",
        "buffer_names": "which tensors are no parameters",
        "param_shapes": "shapes of the parameters",
        "frozen_param_shapes": "shapes of the parameters",
        "frozen_param_fragments": "weights",
        "shared_params": "which parameters are one",
        "dp_world_size": "parallel layout",
        "mp_world_size": "parallel layout",
        "checkpoint_parallel_dimensions": "parallel layout",
        "sparse_tensor_module_names": SETTINGS,
        "optimizer": OPTIMIZER,
        "lr_scheduler": SCHEDULE,
        "data_sampler": LOADER,
        "random_ltd": PROGRESS,
        "skipped_steps": PROGRESS,
        "global_steps": PROGRESS,
        "global_samples": PROGRESS,
        "ds_config": SETTINGS,
        "ds_version": PROVENANCE,
        # of Megatron-DeepSpeed
        "args": "architecture",
        "checkpoint_version": "order of q, k and v",
        "checkpoint_info": "true vocabulary",
        "iteration": PROGRESS,
        "tokens": PROGRESS,
        "*_rng_state": RANDOM,
        "rng_tracker_states": RANDOM,
        "*": _CLIENT,
    }
)

# *_optim_states.pt, and its entry optimizer_state_dict
OPTIMIZER_FILE = Contents({"optimizer_state_dict": "weights", "ds_config": SETTINGS, "ds_version": PROVENANCE})
PARTITION = Contents(
    {
        "single_partition_of_fp32_groups": "weights",
        "fp32_flat_groups": "weights",
        "group_paddings": "parallel layout",
        "param_alignment_paddings": "parallel layout",
        "partition_count": "parallel layout",
        "param_slice_mappings": "which master is whose",
        "zero_stage": "parallel layout",
        "loss_scaler": SCALER,
        "dynamic_loss_scale": SCALER,
        "overflow": SCALER,
        "ds_version": PROVENANCE,
        "*": OPTIMIZER,
    }
)

# What else of Megatron-DeepSpeed's args
ARGS = Contents({"iteration": PROGRESS, "consumed_*": PROGRESS, "*": SETTINGS})


def enter_partition(ledger: Ledger, file: str, content: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """An optimizer file whose masters are read."""
    ledger.used("weights", file)
    ledger.contents(file, content, OPTIMIZER_FILE)
    ledger.contents(file, state, PARTITION, section="optimizer_state_dict")


def enter_unread(ledger: Ledger, files: list[str]) -> None:
    """Optimizer files of which nothing is read, the masters in them included."""
    for file in files:
        ledger.left(OPTIMIZER, file, size=os.path.getsize(file))


def enter_universal(ledger: Ledger, folder: str, read: set[str]) -> None:
    """What stands in the folders of the parameters beside what is read: moments, steps, and the optimizer's own file."""
    for inside, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(inside, name)
            if file not in read:
                ledger.left(OPTIMIZER, file, size=os.lstat(file).st_size)
