"""Megatron-LM's own training code as a judge of a state that we write: it resumes, makes some steps, and saves.

    PYTHONPATH=MEGATRON_LM_TREE python megatron_training_judge.py RUN.json

RUN.json: `words` for Megatron's parser, `world` ranks, `adam` (`fused` or `torch`), `batches`, a safetensors file with `batches` [steps, sequences, length + 1],
`rates`, the learning rate of each step or null for those of Megatron's own schedule, `buckets`, a folder to save once more in as dp_reshardable or null, and `out`, which gets the `losses` and the learning rates that were used.
Parser, model builder, get_megatron_optimizer, OptimizerParamScheduler, load_checkpoint, train_step and save_checkpoint are Megatron's. Ours are the batches, the
forward step (`repaired`: and a `torch.no_grad` around the load of flat buffers, without which core 0.16.1 fails for models in fp32), and FusedAdam: Apex' and TransformerEngine's need a GPU, and a class with their state and their formula stands for them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import typing
from functools import partial
from pathlib import Path
from typing import Any

import cpu
import torch
import torch._dynamo  # before CUDA's functions are replaced, which it lists
from absent import absent
from safetensors.torch import load_file


class FusedAdam(torch.optim.Optimizer):
    """AdamW with the state of Apex' and TransformerEngine's: two moments of a parameter, and the step of a group."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, adam_w_mode=True) -> None:
        assert adam_w_mode
        super().__init__(
            params, {"lr": lr, "bias_correction": True, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            one, two = group["betas"]
            assert group["bias_correction"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["exp_avg"].lerp_(parameter.grad, 1 - one)
                state["exp_avg_sq"].mul_(two).addcmul_(parameter.grad, parameter.grad, value=1 - two)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                scale = (1 - two ** group["step"]) ** 0.5
                denominator = (state["exp_avg_sq"].sqrt() / scale).add_(group["eps"])
                parameter.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] / (1 - one ** group["step"]))


def judge(rank: int, world: int, run: dict[str, Any]) -> None:
    """One rank."""
    absent("triton")
    typing.override = lambda function: function  # type: ignore[attr-defined,assignment]
    torch.serialization.add_safe_globals([argparse.Namespace])
    if run["adam"] == "fused":
        with_fused_adam()
    sys.argv = ["pretrain_gpt.py", *run["words"]]
    from megatron.core import parallel_state
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.enums import ModelType
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import random
    from megatron.core.utils import get_model_config

    random.CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()
    torch.Tensor.type = _type_on_cuda(torch.Tensor.type)  # type: ignore[method-assign]
    from megatron.core.rerun_state_machine import RerunMode, initialize_rerun_state_machine
    from megatron.training import training
    from megatron.training.arguments import parse_args, validate_args
    from megatron.training.checkpointing import load_args_from_checkpoint, save_checkpoint
    from megatron.training.global_vars import set_global_variables

    args = parse_args()
    if args.use_checkpoint_args:  # as initialize_megatron does
        load_args_from_checkpoint(args)
    validate_args(args)
    set_global_variables(args)
    initialize_rerun_state_machine(mode=RerunMode.DISABLED)
    parallel_state.initialize_model_parallel(
        args.tensor_model_parallel_size,
        args.pipeline_model_parallel_size,
        expert_model_parallel_size=args.expert_model_parallel_size,
    )
    random.model_parallel_cuda_manual_seed(args.seed)
    if run["repaired"]:
        from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer as Distributed

        Distributed.load_parameter_state_from_dp_zero = torch.no_grad()(Distributed.load_parameter_state_from_dp_zero)
    models, optimizer, schedule = training.setup_model_and_optimizer(provider(), ModelType.encoder_or_decoder)
    config = get_model_config(models[0])
    config.timers = None
    config.finalize_model_grads_func, config.grad_scale_func = (
        finalize_model_grads,
        optimizer.scale_loss,
    )  # as train() does
    batches = load_file(run["batches"])["batches"]
    share = batches.shape[1] // args.data_parallel_size
    first = parallel_state.get_data_parallel_rank() * share
    losses, used = [], []
    for number, batch in enumerate(batches):
        if run["rates"] is not None:
            for group in optimizer.param_groups:
                group["lr"] = run["rates"][number]
        used.append(optimizer.param_groups[0]["lr"])
        data = iter([batch[first : first + share]] * 4)
        found = training.train_step(
            forward_step,
            data,
            models,
            optimizer,
            schedule,
            config,
            get_forward_backward_func(),
            args.iteration + number,
        )
        losses.append({key: value.item() for key, value in found[0].items()})
    save_checkpoint(args.iteration + len(batches), models, optimizer, schedule, 0)
    if run["buckets"] is not None:
        args.save, args.dist_ckpt_optim_fully_reshardable = run["buckets"], False
        save_checkpoint(args.iteration + len(batches), models, optimizer, schedule, 0)
    if rank == world - 1:
        said = {"losses": [loss["lm loss"] for loss in losses], "rates": used, "iteration": args.iteration}
        said |= {"consumed_train_samples": args.consumed_train_samples, "groups": _said(optimizer)}
        Path(run["out"]).write_text(json.dumps(said))


def with_fused_adam() -> None:
    """Give Megatron's optimizers our FusedAdam in the place of Apex'."""
    import megatron.core.optimizer as optimizers
    from megatron.core.optimizer import distrib_optimizer

    optimizers.Adam = distrib_optimizer.Adam = FusedAdam
    optimizers.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_APEX_OPTIMIZER = True


def _said(optimizer: Any) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in group.items() if isinstance(value, int | float | str)}
        for group in optimizer.param_groups
    ]


def _type_on_cuda(original: Any) -> Any:
    """Megatron's Float16Optimizer tells parameters by the name of their class on a GPU."""

    def typed(self: torch.Tensor, dtype: Any = None, **kwargs: Any) -> Any:
        found = original(self, **kwargs) if dtype is None else original(self, dtype, **kwargs)
        return found.replace("torch.", "torch.cuda.", 1) if isinstance(found, str) else found

    return typed


def forward_step(data: Any, model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
    """The mean cross entropy of the tokens that follow, as pretrain_gpt.py computes it."""
    tokens = next(data)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    length = inputs.shape[1]
    positions = torch.arange(length)[None].expand_as(inputs)
    mask = torch.ones(1, 1, length, length).triu(1).bool()
    output = model(inputs, positions, mask, labels=labels)

    def loss_of(losses: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        losses = losses.float()
        counted = torch.tensor(
            [losses.detach().sum(), losses.numel()]
        )  # which train_step adds up over data parallel ranks
        return losses.mean(), {"lm loss": counted}

    return output, loss_of


def provider() -> Any:
    """The model provider of pretrain_gpt.py."""
    from gpt_builders import gpt_builder  # type: ignore[import-not-found]
    from model_provider import model_provider  # type: ignore[import-not-found]

    return partial(model_provider, gpt_builder)


if __name__ == "__main__":
    wanted = json.loads(Path(sys.argv[1]).read_text())
    cpu.ranks(judge, wanted["world"], wanted)
