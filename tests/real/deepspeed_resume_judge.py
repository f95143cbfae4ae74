"""The released DeepSpeed goes on with a universal checkpoint: its engine, its optimizers, its load_checkpoint, on CPU with gloo.

    torchrun --nproc_per_node 2 deepspeed_resume_judge.py RUN BATCHES.safetensors OUT --stage 1 --lr 1e-3,9e-4 --clip 1.0 [--bf16]

Each batch of `batches` [steps, sequences, length + 1] is one step, with its learning rate. OUT/losses.json says the losses, OUT/after.safetensors the
fp32 weights after the last step. The program's own hyper-parameters are wrong on purpose: those of the checkpoint must replace them.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "batches", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--lr", required=True)
    parser.add_argument("--clip", type=float, default=0.0)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument(
        "--own-steps", action="store_true", help="put right that ZeRO-3 loads one step for all of its subgroups"
    )
    asked = parser.parse_args()
    deepspeed.init_distributed(dist_backend="gloo")
    torch.manual_seed(11)
    config = AutoConfig.from_pretrained(asked.run)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    parameters = list(model.parameters())
    kinds = [[p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]]
    wrong = {"lr": 1.0, "betas": (0.5, 0.5), "eps": 1.0, "weight_decay": 0.7}
    optimizer = torch.optim.AdamW([{"params": kind} for kind in kinds], **wrong)
    batches = load_file(asked.batches)["batches"]
    world = int(os.environ["WORLD_SIZE"])
    zero = {
        "stage": asked.stage,
        **({"sub_group_size": 9000, "stage3_param_persistence_threshold": 0} if asked.stage == 3 else {}),
    }
    settings = {
        "train_micro_batch_size_per_gpu": batches.shape[1] // world,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": asked.clip,
        "bf16": {"enabled": asked.bf16},
        "checkpoint": {"load_universal": True},
    }
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    engine.load_checkpoint(asked.run)
    if asked.own_steps:
        for state in engine.optimizer.optimizer.state.values():
            state["step"] = state["step"].clone()
    losses = []
    for tokens, rate in zip(batches, map(float, asked.lr.split(",")), strict=True):
        share = tokens.chunk(world)[engine.global_rank]
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        loss = engine(input_ids=share, labels=share, use_cache=False).loss
        engine.backward(loss)
        engine.step()
        held = loss.detach().float()
        torch.distributed.all_reduce(held)
        losses.append((held / world).item())
    after = {name: safe_get_full_fp32_param(parameter) for name, parameter in engine.module.named_parameters()}
    if engine.global_rank == 0:
        asked.out.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.detach().clone().contiguous() for name, value in after.items()},
            asked.out / "after.safetensors",
        )
        said = {"losses": losses, "global_steps": engine.global_steps, "global_samples": engine.global_samples}
        (asked.out / "losses.json").write_text(json.dumps(said))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
