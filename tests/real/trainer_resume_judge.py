"""The Trainer of transformers goes on with a folder of its own: `resume_from_checkpoint`, on CPU.

    python trainer_resume_judge.py FOLDER BATCHES.safetensors OUT --step 6 --lr 1e-3,9e-4 --clip 1.0

Each batch of `batches` [steps, sequences, length + 1] is one step. Before them lie as many others as the run has consumed, which the Trainer skips. The
schedule is the user's: a list of learning rates. OUT/losses.json says the losses, OUT/after.safetensors the weights after the last step.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


class InOrder(Trainer):
    """The Trainer, with the samples as they lie. It writes down each loss and learning rate: a run that goes on logs as often as trainer_state.json says."""

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        loss = super().training_step(*arguments, **named)
        record = self.__dict__.setdefault("record", {"losses": [], "lr": []})
        record["losses"].append(loss.item())
        record["lr"].append(self.optimizer.param_groups[0]["lr"])
        return loss

    def _get_train_sampler(self, *arguments: Any, **named: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("folder", "batches", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("--lr", required=True)
    parser.add_argument("--clip", type=float, default=0.0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(asked.folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)  # what is not loaded again is seen
    batches = load_file(asked.batches)["batches"]
    skipped = torch.zeros((asked.step, *batches.shape[1:]), dtype=batches.dtype)
    samples = torch.cat([skipped, batches]).flatten(0, 1)
    rates = [float(rate) for rate in asked.lr.split(",")]
    settings = TrainingArguments(
        output_dir=str(asked.out / "trainer"), max_steps=asked.step + len(batches), per_device_train_batch_size=batches.shape[1],
        max_grad_norm=asked.clip, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, optim="adamw_torch", learning_rate=1.0,
        weight_decay=0.7, lr_scheduler_type="constant", disable_tqdm=True,
    )  # fmt: skip
    trainer = InOrder(model, settings, train_dataset=[{"input_ids": one, "labels": one} for one in samples])
    trainer.create_optimizer()
    curve = [1.0] * asked.step + rates + rates[-1:]
    base = torch.load(asked.folder / "scheduler.pt", weights_only=True)["base_lrs"][0]
    functions = [lambda position: curve[position] / base] * len(trainer.optimizer.param_groups)
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, functions)
    trainer.train(resume_from_checkpoint=str(asked.folder))
    asked.out.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.detach().clone() for name, value in model.named_parameters()}, asked.out / "after.safetensors"
    )
    said = {**trainer.record, "global_step": trainer.state.global_step}
    (asked.out / "losses.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
