"""Runs that frameworks saved, each with what was in memory when they did, and the losses and weights of the steps that followed."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from ckpt_tests.goldens import Golden, beside

KINDS = ("weights", "exp_avg", "exp_avg_sq")
State = dict[str, dict[str, torch.Tensor]]
"""Masters and moments by kind, and by transformers' names."""


@dataclass(frozen=True)
class Run:
    """A run that a framework saved."""

    golden: Golden

    def __str__(self) -> str:
        return str(self.golden)

    @property
    def checkpoint(self) -> Path:
        """The folder of the run, or the one in it that the Trainer saved."""
        return next(iter(sorted(self.golden.checkpoint.glob("checkpoint-*"))), self.golden.checkpoint)

    @property
    def training(self) -> dict:
        return self.golden.case["training"]

    @property
    def expected(self) -> State:
        """What was in memory when the framework saved."""
        held = load_file(self.golden.folder / "expected.safetensors")
        return {
            kind: {name.removeprefix(f"{kind}/"): held[name] for name in held if name.startswith(f"{kind}/")}
            for kind in KINDS
        }

    def config_in(self, folder: Path) -> str | None:
        """The model's config as transformers writes it, in `folder`; None where the run says itself what the model is."""
        if (self.checkpoint / "config.json").is_file() or self.golden.case["framework"] in ("megatron", "nanotron"):
            return None
        AutoConfig.for_model(**self.golden.case["hf_config"]).save_pretrained(folder)
        return str(folder / "config.json")


def runs(*frameworks: str) -> list[Run]:
    """The runs of these frameworks that are there."""
    return [
        Run(golden) for golden in beside("training", "expected.safetensors") if golden.case["framework"] in frameworks
    ]


def loaded(run: Run, folder: Path) -> State:
    """The state in a folder of the Trainer by the names of the class, as an optimizer with the Trainer's own groups takes it."""
    from transformers.trainer_pt_utils import get_parameter_names

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**run.golden.case["hf_config"]))
    undecayed = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]  # trainer.py, 5.24
    decayed = get_parameter_names(model, [torch.nn.LayerNorm], undecayed)
    names = [name for name, _ in model.named_parameters()]
    order = [name for name in names if name in decayed] + [name for name in names if name not in decayed]
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    states = {name: optimizer["state"][number] for name, number in zip(order, numbers, strict=True)}
    assert {float(state["step"]) for state in states.values()} == {float(run.training["step"])}
    weights = {name: value for name, value in load_file(folder / "model.safetensors").items() if name in names}
    return {"weights": weights, **{kind: {name: state[kind] for name, state in states.items()} for kind in KINDS[1:]}}


def judged(run: Run, state: State, folder: Path, controls: bool = False) -> bool | None:
    """Whether a plain loop of torch that goes on from a state repeats the losses and weights that were recorded; None without the judge, which lies
    beside the whole set of runs. `controls`: and does not from states that are wrong."""
    if not (run.golden.folder.parent / "judge.py").is_file():
        return None
    saved = folder / "state.safetensors"
    save_file(
        {f"{kind}/{name}": value.contiguous() for kind, held in state.items() for name, value in held.items()}, saved
    )
    asked = SimpleNamespace(state=str(saved), step=None, lr=None, controls=controls)
    return bool(judge_of(run).judge(str(run.golden.folder), asked)[0])


def judge_of(run: Run) -> ModuleType:
    """The judge that lies beside the runs."""
    file = run.golden.folder.parent / "judge.py"
    spec = importlib.util.spec_from_file_location("judge_of_runs", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    spec.loader.exec_module(module)
    return module
