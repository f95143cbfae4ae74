"""The released DeepSpeed as a judge: it saves checkpoints for ckpt to read, and loads what ckpt wrote. CPU, gloo.

    torchrun --nproc_per_node 3 deepspeed_judge.py save ROOT --stage 2 --frozen --tied       trains two steps and saves
    python deepspeed_judge.py consolidate ROOT OUT.safetensors                            its own zero_to_fp32
    torchrun --nproc_per_node 2 deepspeed_judge.py load ROOT FP32.safetensors --stage 3       loads a universal folder

`load` exits non-zero unless every master is that of the file, bit for bit, and a step moves weights by about the learning
rate: the loaded masters are the ones that train.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

RATE = 1e-3


def engine_of(config: LlamaConfig, asked: argparse.Namespace):
    """A DeepSpeed engine over a tiny model, with two parameter groups (four, if asked for more)."""
    for name, value in (
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "29517"),
    ):
        os.environ.setdefault(name, value)
    deepspeed.init_distributed(dist_backend="gloo")
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if asked.frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(
                not name.endswith(("layers.0.mlp.up_proj.weight", "layers.1.input_layernorm.weight"))
            )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kinds = [[p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]]
    if asked.groups:
        kinds = [half for kind in kinds for half in (kind[::2], kind[1::2])]
    optimizer = torch.optim.AdamW([{"params": kind} for kind in kinds], lr=RATE)
    zero = {"stage": asked.stage, "round_robin_gradients": asked.robin}
    if asked.stage == 3:
        zero |= {"sub_group_size": asked.subgroup, "stage3_param_persistence_threshold": 0}
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        "checkpoint": {"load_universal": asked.action == "load"},
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]


def step(engine) -> None:
    tokens = torch.randint(0, engine.module.config.vocab_size, (1, 9))
    loss = engine(input_ids=tokens, labels=tokens).loss
    engine.backward(loss)
    engine.step()


def save(asked: argparse.Namespace) -> None:
    config = LlamaConfig(
        vocab_size=101, hidden_size=40, intermediate_size=72, num_hidden_layers=2, num_attention_heads=5, num_key_value_heads=1,
        head_dim=12, tie_word_embeddings=asked.tied, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    engine = engine_of(config, asked)
    for _ in range(2):
        step(engine)
    engine.save_checkpoint(asked.root)
    if engine.global_rank == 0:
        config.save_pretrained(asked.root)


def consolidate(asked: argparse.Namespace) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    state = get_fp32_state_dict_from_zero_checkpoint(asked.root)
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, asked.tensors)


def load(asked: argparse.Namespace) -> None:
    engine = engine_of(AutoConfig.from_pretrained(asked.root), asked)
    engine.load_checkpoint(asked.root)
    expected = load_file(asked.tensors)
    before = {name: safe_get_full_fp32_param(p) for name, p in engine.module.named_parameters() if p.requires_grad}
    wrong = [name for name, tensor in before.items() if not torch.equal(tensor, expected[name].float())]
    step(engine)
    moved = [
        (safe_get_full_fp32_param(p) - before[name]).abs().max().item()
        for name, p in engine.module.named_parameters()
        if p.requires_grad
    ]
    if engine.global_rank == 0:
        print(f"{len(before)} masters, wrong: {wrong}, moved by {max(moved):.2e} at most")
    if wrong or not 0 < max(moved) < 3 * RATE:
        sys.exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("save", "consolidate", "load"))
    parser.add_argument("root")
    parser.add_argument("tensors", nargs="?")
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--subgroup", type=int, default=5000)
    parser.add_argument("--local_rank", type=int, help="what torchrun of old passes")
    for flag in ("tied", "frozen", "groups", "robin"):
        parser.add_argument(f"--{flag}", action="store_true")
    asked = parser.parse_args()
    {"save": save, "consolidate": consolidate, "load": load}[asked.action](asked)
    if torch.distributed.is_initialized():  # else a rank that goes first can abort those that still talk to it
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
