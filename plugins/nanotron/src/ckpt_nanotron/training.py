"""The configs beside the weights: what nanotron needs to start a run from them.

Every key of a release's dataclasses is written, and no other: dacite refuses unknown ones. Numbers a user will
want to change (learning rate, batch, steps) carry nanotron's own examples' values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, documents, dtypes, ledgers, reading, schema
from ckpt_nanotron.config import Release

_STAGE = "Stable Training Stage"


@schema.dataclass(frozen=True)
class Run:
    """What the configs say of a run: where its folder will lie, how many data parallel ranks it has and whether they divide the optimizer
    (`zero` 1), and the state that it goes on with; None where it starts from the weights.
    """

    folder: str
    dp: int = 1
    zero: int = 0
    training: reading.Training | None = None

    @property
    def step(self) -> int:
        """How many updates the optimizer has made."""
        return 0 if self.training is None else self.training.step

    @property
    def samples(self) -> int:
        """How many samples the run has consumed; 0 where no file of the source says it."""
        return 0 if self.training is None else self.training.consumed_samples or 0

    def losses(self, release: Release, sequence_length: int) -> list[ledgers.Loss]:
        """What the configs say that the state does not."""
        state = self.training
        if state is None:
            return []
        found = []
        if "nanotron" not in state.schedule.native:
            rate = state.groups[0].lr
            why = "the source does not say its curve as nanotron does: set optimizer.learning_rate_scheduler in config.yaml"
            found.append(ledgers.Loss("assumed", f"a learning rate that stays at {rate:.9g}", why))
        if state.clip_grad is None:
            why = "the source does not say it: set optimizer.clip_grad in config.yaml"
            found.append(ledgers.Loss("assumed", f"gradients that are clipped at {_CLIP:g}", why))
        if release.counts_tokens and state.consumed_tokens is None:
            why = f"the source does not count them; that is {self.samples} samples of {sequence_length}"
            found.append(ledgers.Loss("assumed", f"{_tokens(self, sequence_length)} consumed tokens", why))
        if state.consumed_samples is None:
            why = "the source does not say it: the data loader begins anew, unless checkpoint_metadata.json is given the number"
            found.append(ledgers.Loss("unsaid", "consumed_train_samples", why))
        return found


def metadata_json(release: Release, tp: int, sequence_length: int, run: Run) -> bytes:
    """`checkpoint_metadata.json`, with the fields its version knows."""
    metas: dict[str, Any] = {"consumed_train_samples": run.samples, "last_train_step": run.step}
    body: dict[str, Any] = {"dp": run.dp, "metas": metas, "tp": tp, "version": release.checkpoint_version}
    if release.checkpoint_version >= "1.3":
        stage = {"name": _STAGE, "start_training_step": 1, "consumed_train_samples": run.samples}
        metas["data_stages"] = [stage]
        metas["last_stage_idx"] = 0
        body["custom_metas"] = None
        if release.counts_tokens:
            stage |= {"sequence_length": sequence_length, "consumed_tokens_per_dataset_folder": {}}
            metas["consumed_tokens_total"] = _tokens(run, sequence_length)
            body["cp"] = 1
    return json.dumps(body, indent=2, sort_keys=True).encode()


_CLIP = 1.0  # that of nanotron's examples


def _tokens(run: Run, sequence_length: int) -> int:
    tokens = None if run.training is None else run.training.consumed_tokens
    return run.samples * sequence_length if tokens is None else tokens


# A curve of one value, for a run whose own curve is not known. Nanotron builds torch's LambdaLR, whose constructor sets the rate of step 0, and in release 0.4 the
# first step after a resume has that rate (trainer.py loads the position after it, and no rate). With a warmup of -1 steps step 0 is past it.
_FLAT = {
    "lr_decay_starting_step": 0,
    "lr_decay_steps": 0,
    "lr_decay_style": "linear",
    "lr_warmup_steps": -1,
    "lr_warmup_style": "constant",
}


def _of_optimizer(run: Run, dtype: dtypes.DType) -> tuple[dict[str, Any], dict[str, Any]]:
    """The section `optimizer`, without the numbers of Adam, which are the second."""
    state = run.training
    curve: Mapping[str, Any] = {
        "learning_rate": 3e-4,
        "lr_decay_starting_step": None,
        "lr_decay_steps": 990,
        "lr_decay_style": "cosine",
        "lr_warmup_steps": 10,
        "lr_warmup_style": "linear",
        "min_decay_lr": 1e-5,
    }
    adam = {"adam_beta1": 0.9, "adam_beta2": 0.95, "adam_eps": 1e-8, "torch_adam_is_fused": True}
    section: dict[str, Any] = {
        "accumulate_grad_in_fp32": dtype.torch != "float32",
        "clip_grad": _CLIP,
        "weight_decay": 0.01,
        "zero_stage": run.zero,
    }
    if state is not None:
        group = state.groups[0]
        base = group.lr if group.initial_lr is None else group.initial_lr
        curve = state.schedule.native.get("nanotron") or {**_FLAT, "learning_rate": base, "min_decay_lr": group.lr}
        adam |= {"adam_beta1": group.betas[0], "adam_beta2": group.betas[1], "adam_eps": group.eps}
        section |= {
            # without masters in the files the optimizer steps the weights themselves, whatever their dtype
            "accumulate_grad_in_fp32": state.own_masters,
            "clip_grad": _CLIP if state.clip_grad is None else state.clip_grad or None,
            # what is in optimizer/ has the last word: each group of it brings its own
            "weight_decay": max(group.weight_decay for group in state.groups),
        }
    return {**section, "learning_rate_scheduler": dict(curve)}, adam


def training_yaml(
    release: Release,
    model_config: Mapping[str, Any],
    run: Run,
    tp: int,
    pp: int,
    dtype: dtypes.DType,
    vocabulary_multiple: int,
    has_tokenizer: bool,
) -> bytes:
    """`config.yaml`: a run on dummy data that starts from the weights, or goes on from the whole state."""
    if dtype.torch not in ("bfloat16", "float16", "float32"):
        raise CkptError(f"nanotron cannot train in {dtype}", expected="bf16, fp16 or fp32", fix="use --dtype bf16")
    newer, resumed = release.name != "0.4", run.training is not None
    step_folder = f"{run.folder}/{run.step}" if run.folder else str(run.step)
    length = model_config["max_position_embeddings"]
    data = {"dataset": None, "num_loading_workers": 1, "seed": 42}
    checkpoints: dict[str, Any] = {
        "checkpoint_interval": 1000,
        "checkpoints_path": "checkpoints",
        "checkpoints_path_is_shared_file_system": False,
        "resume_checkpoint_path": run.folder if resumed else None,
        "save_initial_state": False,
    }
    parallelism: dict[str, Any] = {
        "dp": run.dp,
        "expert_parallel_size": 1,
        "pp": pp,
        "pp_engine": "1f1b",
        "tp": tp,
        "tp_linear_async_communication": False,
        "tp_mode": "ALL_REDUCE",
    }
    optimizer, adam = _of_optimizer(run, dtype)
    body: dict[str, Any] = {"checkpoints": checkpoints}
    if newer:
        checkpoints |= {"load_lr_scheduler": resumed, "load_optimizer": resumed, "save_final_state": False}
        parallelism |= {"context_parallel_size": 1, "recompute_layer": False, "tp_recompute_allgather": True}
        optimizer |= {"optimizer_factory": {**adam, "name": "adamW"}, "weight_decay_exclude_named_params": []}
        body["data_stages"] = [{"data": data, "name": _STAGE, "sequence_length": length, "start_training_step": 1}]
    else:
        optimizer |= adam
        body["data"] = data
    body |= {
        "general": {
            "benchmark_csv_path": None,
            "consumed_train_samples": run.samples if resumed else None,
            "ignore_sanity_checks": True,
            "project": "ckpt",
            "run": "converted",
            "seed": 42,
            "step": run.step if resumed else None,
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
            "train_steps": run.step + 1000,
            "val_check_interval": -1,
        },
    }
    if newer:
        body |= {"metrics_logging": None, "s3_upload": None}
    return documents.dump_yaml(dict(sorted(body.items()))).encode()
