"""The released nanotron 0.4 goes on with a run: its own trainer, optimizer, schedule and loader, on CPU with gloo.

    python -O nanotron_resume_judge.py RUN BATCHES.safetensors OUT --tp 2 --pp 1 --dp 2 [--lr 1e-3,9e-4] [--sequences 4]

RUN is the folder with `latest.txt`. The trainer is built from the run's own `config.yaml` and loads the run by `resume_checkpoint_path`; each batch of
`batches` [steps, sequences, length + 1] is one step. OUT/losses.json says the loss of every step and the learning rate that the optimizer had in it;
OUT/run is what the trainer then saves, at once where there are no batches. `--lr` are the learning rates of the steps, in place of the curve in config.yaml.
`-O` leaves out asserts that want devices of CUDA. Replaced are flash-attn (`nanotron_stubs`), the calls of CUDA (`cpu`), and collectives that gloo lacks.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any

import cpu
import nanotron_stubs
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("batches", type=Path)
    parser.add_argument("out", type=Path)
    for name in ("tp", "pp", "dp"):
        parser.add_argument(f"--{name}", type=int, default=1)
    parser.add_argument("--lr")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True)
    cpu.ranks(resume, asked.tp * asked.pp * asked.dp, asked)


def resume(rank: int, world: int, asked: argparse.Namespace) -> None:
    """One rank: the trainer as run_train.py builds it, and a step for each batch."""
    collectives_of_gloo()
    sys.modules.setdefault("wandb", types.ModuleType("wandb"))
    nanotron_stubs.install()
    from nanotron import trainer as module
    from nanotron.parallel.pipeline_parallel.tensor_pointer import TensorPointer

    module.wandb = None
    batches = load_file(asked.batches)["batches"]
    _, sequences, length = batches.shape
    step = (asked.run / "latest.txt").read_text().strip()
    said = yaml.safe_load((asked.run / step / "config.yaml").read_text())
    # What a user sets: his batch, his number of steps, where to save, and an Adam that needs no GPU.
    said["tokens"] |= {
        "micro_batch_size": sequences // asked.dp,
        "sequence_length": length - 1,
        "train_steps": int(step) + len(batches),
    }
    said["checkpoints"]["checkpoints_path"] = str(asked.out / "run")
    said["optimizer"]["torch_adam_is_fused"] = False
    file = asked.out / f"config-{rank}.yaml"
    file.write_text(yaml.safe_dump(said))
    trainer = module.DistributedTrainer(str(file))
    assert_loaded(trainer, int(step))
    own = dist.get_rank(trainer.parallel_context.dp_pg)
    stage = dist.get_rank(trainer.parallel_context.pp_pg)
    model = trainer.unwrapped_model

    def loader() -> Any:
        for tokens in batches:
            share = tokens.chunk(asked.dp)[own]
            mask = torch.ones(share[:, 1:].shape, dtype=torch.bool)
            inputs = {"input_ids": share[:, :-1].contiguous(), "input_mask": mask}
            labels = {"label_ids": share[:, 1:].contiguous(), "label_mask": mask}
            for held, of in ((inputs, model.input_pp_rank), (labels, model.output_pp_rank)):
                if stage != of:
                    held |= {name: TensorPointer(group_rank=of) for name in held}
            yield inputs | labels

    rates = [float(rate) for rate in asked.lr.split(",")] if asked.lr else None
    record: dict[str, list[float]] = {"losses": [], "lr": []}
    training_step = trainer.training_step

    def recorded(*arguments: Any, **named: Any) -> Any:
        optimizer = trainer.optimizer.get_base_optimizer()
        if rates is not None:
            for group in optimizer.param_groups:
                group["lr"] = rates[len(record["lr"])]
        record["lr"].append(optimizer.param_groups[0]["lr"])
        outputs, loss = training_step(*arguments, **named)
        if loss is not None:
            record["losses"].append(loss.item())
        return outputs, loss

    trainer.training_step = recorded
    trainer.train_step_logs = lambda *_, **__: None  # speeds of a GPU
    trainer.train(loader())
    trainer.save_checkpoint()
    if record["losses"] and dist.get_rank(trainer.parallel_context.tp_pg) == 0 and own == 0:
        (asked.out / "losses.json").write_text(json.dumps(record))


def assert_loaded(trainer: Any, step: int) -> None:
    """What nanotron itself says of where it goes on (asserts are off). At step 0 it starts from weights alone."""
    steps = {float(state["step"]) for state in trainer.optimizer.get_base_optimizer().state.values()} or {0.0}
    if trainer.start_iteration_step != step or steps != {float(step)} or trainer.lr_scheduler.last_epoch != step:
        raise SystemExit(
            f"nanotron goes on at {trainer.start_iteration_step}, {steps}, {trainer.lr_scheduler.last_epoch}, and not at {step}"
        )


def collectives_of_gloo() -> None:
    """Averages as sums, collectives of several tensors one by one, and no reduction that autograd watches."""
    reduce = dist.all_reduce

    def all_reduce(tensor: torch.Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Any:
        with torch.no_grad():
            work = reduce(tensor, op=dist.ReduceOp.SUM if op == dist.ReduceOp.AVG else op, group=group, async_op=False)
            if op == dist.ReduceOp.AVG:
                tensor.div_(dist.get_world_size(group))
        return Done() if async_op else work

    def all_reduce_coalesced(
        tensors: list, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False
    ) -> Any:
        for tensor in tensors:
            all_reduce(tensor, op, group)
        return Done() if async_op else None

    def all_gather_coalesced(
        output_tensor_lists: list, input_tensor_list: list, group: Any = None, async_op: bool = False
    ) -> Any:
        with torch.no_grad():
            held: list = [None] * dist.get_world_size(group)
            dist.all_gather_object(held, [tensor.detach().clone() for tensor in input_tensor_list], group=group)
            for number, outputs in enumerate(output_tensor_lists):
                for rank, output in enumerate(outputs):
                    output.copy_(held[rank][number])
        return Done() if async_op else None

    dist.all_reduce, dist.all_reduce_coalesced, dist.all_gather_coalesced = (
        all_reduce,
        all_reduce_coalesced,
        all_gather_coalesced,
    )


class Done:
    """A collective that has ended."""

    def wait(self) -> None:
        return None


if __name__ == "__main__":
    main()
