"""Megatron-LM's own training code as a judge of `ckpt launch`: it is started with exactly the command that is printed.

    PYTHONPATH=te:MEGATRON_LM_TREE python megatron_lm_judge.py RUNS.json

RUNS.json is a list of runs on equally many ranks: `launch`, what `ckpt launch --json` prints; `ids` and `out`, the files of
inputs and logits; `without`, a flag that is left out with its value, or null. A run that fails writes OUT.error. The words go
through Megatron-LM's own parser, `load_args_from_checkpoint`, `validate_args`, tokenizer, model provider and `load_checkpoint`.
Added are only arguments of a CPU and of a batch, none of which is about the model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
import typing
from functools import partial
from pathlib import Path
from typing import Any

import cpu
import torch
import torch._dynamo  # before CUDA's functions are replaced, which it lists
from absent import absent
from safetensors.torch import load_file, save_file

# Kernels that need a GPU are off; what they compute is computed in plain torch.
OF_A_CPU = (
    "--use-cpu-initialization --distributed-backend gloo --no-masked-softmax-fusion --no-rope-fusion "
    "--no-gradient-accumulation-fusion --no-persist-layer-norm --no-bias-dropout-fusion --attention-backend unfused "
    "--moe-token-dispatcher-type allgather --micro-batch-size 2 --train-iters 1 --exit-on-missing-checkpoint"
).split()


def words_of(command: list[str], without: str | None) -> list[str]:
    """The words behind the script's name, but for one flag and its value."""
    words = command[command.index("pretrain_gpt.py") + 1 :]
    if without is None:
        return words
    start = words.index(without)
    end = start + 1
    while end < len(words) and not words[end].startswith("--"):
        end += 1
    return words[:start] + words[end:]


def environment_of(command: list[str]) -> dict[str, str]:
    """The variables that are set before the program."""
    return dict(word.split("=", 1) for word in command[1 : command.index("torchrun")])


def judge(rank: int, world: int, runs: list[dict[str, Any]]) -> None:
    """One rank of all runs, one after the other."""
    absent("triton")
    typing.override = lambda function: function  # type: ignore[attr-defined,assignment]  # core 0.18 wants Python 3.12
    torch.serialization.add_safe_globals([argparse.Namespace])
    for run in runs:
        try:
            judge_one(rank, world, run)
        except BaseException:  # CheckpointingException of Megatron is not an Exception
            Path(f"{run['out']}.error").write_text(traceback.format_exc())
        from megatron.core import num_microbatches_calculator, parallel_state
        from megatron.training import global_vars

        parallel_state.destroy_model_parallel()
        global_vars.destroy_global_vars()
        num_microbatches_calculator._GLOBAL_NUM_MICROBATCHES_CALCULATOR = None


def judge_one(rank: int, world: int, run: dict[str, Any]) -> None:
    """Start one rank, and write the logits [batch, position, vocabulary] on the last one."""
    os.environ.update(environment_of(run["launch"]["command"]))
    sys.argv = ["pretrain_gpt.py", *words_of(run["launch"]["command"], run["without"]), *OF_A_CPU]
    from megatron.core import parallel_state
    from megatron.core.enums import ModelType
    from megatron.core.tensor_parallel import random

    random.CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()
    from megatron.training.arguments import parse_args, validate_args
    from megatron.training.checkpointing import load_args_from_checkpoint, load_checkpoint
    from megatron.training.global_vars import set_global_variables
    from megatron.training.training import get_model

    args = parse_args()
    if args.use_checkpoint_args:  # as initialize_megatron does
        load_args_from_checkpoint(args)
    validate_args(args)
    set_global_variables(args)
    parallel_state.initialize_model_parallel(
        args.tensor_model_parallel_size,
        args.pipeline_model_parallel_size,
        expert_model_parallel_size=args.expert_model_parallel_size,
    )
    models = get_model(provider(), ModelType.encoder_or_decoder, wrap_with_ddp=False)
    load_checkpoint(models, None, None, strict=True)
    model, tokens = models[0].eval(), load_file(run["ids"])["input_ids"]
    pp, stage = args.pipeline_model_parallel_size, parallel_state.get_pipeline_model_parallel_rank()
    with torch.no_grad():
        logits = cpu.forward(model, tokens, args.hidden_size, pp, stage, world // pp, rank)
    if stage == pp - 1:
        group, tp = parallel_state.get_tensor_model_parallel_group(), args.tensor_model_parallel_size
        logits = cpu.gathered(logits, group, tp).float()
        if rank == world - 1:
            save_file({"logits": logits.contiguous()}, run["out"])


def provider() -> Any:
    """The model provider of pretrain_gpt.py."""
    try:
        from gpt_builders import gpt_builder  # type: ignore[import-not-found]
        from model_provider import model_provider  # type: ignore[import-not-found]
    except ImportError:  # core 0.14 and before
        from pretrain_gpt import model_provider as whole  # type: ignore[import-not-found]

        return whole
    return partial(model_provider, gpt_builder)


if __name__ == "__main__":
    wanted = json.loads(Path(sys.argv[1]).read_text())
    after = [command[command.index("torchrun") + 1] for command in (run["launch"]["command"] for run in wanted)]
    (ranks,) = {int(word.removeprefix("--nproc-per-node=")) for word in after}
    cpu.ranks(judge, ranks, wanted)
