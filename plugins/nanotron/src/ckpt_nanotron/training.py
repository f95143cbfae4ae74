"""The configs beside the weights: what nanotron needs to start a run from them.

Every key of a release's dataclasses is written, and no other: dacite refuses unknown ones. Numbers a user will
want to change (learning rate, batch, steps) carry nanotron's own examples' values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, documents, dtypes
from ckpt_nanotron.config import Release

_STAGE = "Stable Training Stage"


def metadata_json(release: Release, tp: int, sequence_length: int) -> bytes:
    """`checkpoint_metadata.json` of a checkpoint at step 0, with the fields its version knows."""
    metas: dict[str, Any] = {"consumed_train_samples": 0, "last_train_step": 0}
    body: dict[str, Any] = {"dp": 1, "metas": metas, "tp": tp, "version": release.checkpoint_version}
    if release.checkpoint_version >= "1.3":
        stage = {"name": _STAGE, "start_training_step": 1, "consumed_train_samples": 0}
        metas["data_stages"] = [stage]
        metas["last_stage_idx"] = 0
        body["custom_metas"] = None
        if release.checkpoint_version >= "1.5":
            stage |= {"sequence_length": sequence_length, "consumed_tokens_per_dataset_folder": {}}
            metas["consumed_tokens_total"] = 0
            body["cp"] = 1
    return json.dumps(body, indent=2, sort_keys=True).encode()


def training_yaml(
    release: Release,
    model_config: Mapping[str, Any],
    step_folder: str,
    tp: int,
    pp: int,
    dtype: dtypes.DType,
    vocabulary_multiple: int,
    has_tokenizer: bool,
) -> bytes:
    """`config.yaml`: a run on dummy data that starts from the weights in `step_folder`."""
    if dtype.torch not in ("bfloat16", "float16", "float32"):
        raise CkptError(f"nanotron cannot train in {dtype}", expected="bf16, fp16 or fp32", fix="use --dtype bf16")
    newer = release.name != "0.4"
    length = model_config["max_position_embeddings"]
    data = {"dataset": None, "num_loading_workers": 1, "seed": 42}
    checkpoints: dict[str, Any] = {
        "checkpoint_interval": 1000,
        "checkpoints_path": "checkpoints",
        "checkpoints_path_is_shared_file_system": False,
        "resume_checkpoint_path": None,
        "save_initial_state": False,
    }
    parallelism: dict[str, Any] = {
        "dp": 1,
        "expert_parallel_size": 1,
        "pp": pp,
        "pp_engine": "1f1b",
        "tp": tp,
        "tp_linear_async_communication": False,
        "tp_mode": "ALL_REDUCE",
    }
    adam = {"adam_beta1": 0.9, "adam_beta2": 0.95, "adam_eps": 1e-8, "torch_adam_is_fused": True}
    optimizer: dict[str, Any] = {
        "accumulate_grad_in_fp32": dtype.torch != "float32",
        "clip_grad": 1.0,
        "learning_rate_scheduler": {
            "learning_rate": 3e-4,
            "lr_decay_starting_step": None,
            "lr_decay_steps": 990,
            "lr_decay_style": "cosine",
            "lr_warmup_steps": 10,
            "lr_warmup_style": "linear",
            "min_decay_lr": 1e-5,
        },
        "weight_decay": 0.01,
        "zero_stage": 0,
    }
    body: dict[str, Any] = {"checkpoints": checkpoints}
    if newer:
        checkpoints |= {"load_lr_scheduler": False, "load_optimizer": False, "save_final_state": False}
        parallelism |= {"context_parallel_size": 1, "recompute_layer": False, "tp_recompute_allgather": True}
        optimizer |= {"optimizer_factory": {**adam, "name": "adamW"}, "weight_decay_exclude_named_params": []}
        body["data_stages"] = [{"data": data, "name": _STAGE, "sequence_length": length, "start_training_step": 1}]
    else:
        optimizer |= adam
        body["data"] = data
    body |= {
        "general": {
            "benchmark_csv_path": None,
            "consumed_train_samples": None,
            "ignore_sanity_checks": True,
            "project": "ckpt",
            "run": "converted",
            "seed": 42,
            "step": None,
        },
        "lighteval": None,
        "logging": {"iteration_step_info_interval": 1, "log_level": "info", "log_level_replica": "info"},
        "model": {
            "ddp_bucket_cap_mb": 25,
            "dtype": dtype.torch,
            "init_method": {"path": step_folder},
            "make_vocab_size_divisible_by": vocabulary_multiple,
            "model_config": dict(model_config),
        },
        "optimizer": optimizer,
        "parallelism": parallelism,
        "profiler": None,
        "tokenizer": {
            "tokenizer_max_length": None,
            "tokenizer_name_or_path": step_folder if has_tokenizer else "gpt2",
            "tokenizer_revision": None,
        },
        "tokens": {
            "batch_accumulation_per_replica": 1,
            "limit_test_batches": 0,
            "limit_val_batches": 0,
            "micro_batch_size": 1,
            "sequence_length": length,
            "train_steps": 1000,
            "val_check_interval": -1,
        },
    }
    if newer:
        body |= {"metrics_logging": None, "s3_upload": None}
    return documents.dump_yaml(dict(sorted(body.items()))).encode()
