"""Runs that frameworks saved, each with the state that was in memory, and a judge that trains on: see `CKPT_GOLDENS_2026`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ckpt_tests.goldens import _SHIPPED_2026


def roots_2026():
    return [Path(os.environ.get("CKPT_GOLDENS_2026") or _SHIPPED_2026)]


KINDS = {"weights": "master", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


@dataclass(frozen=True)
class Run:
    """A case: the checkpoint of a run, and what was in memory when it was saved."""

    folder: Path

    def __str__(self) -> str:
        return self.folder.name

    @property
    def case(self) -> dict:
        return json.loads((self.folder / "case.json").read_text())

    @property
    def checkpoint(self) -> Path:
        """The folder of the run, or the one in it that the Trainer saved."""
        folders = sorted((self.folder / "checkpoint").glob("checkpoint-*"))
        return folders[0] if folders else self.folder / "checkpoint"

    def expected(self, kind: str) -> dict[str, torch.Tensor]:
        """The tensors of a kind by transformers' names: `weights`, `exp_avg`, `exp_avg_sq`, `after`."""
        held = load_file(self.folder / "expected.safetensors")
        return {name.removeprefix(f"{kind}/"): value for name, value in held.items() if name.startswith(f"{kind}/")}

    def config_in(self, folder: Path) -> Path:
        """The model's config, written as transformers does."""
        AutoConfig.for_model(**self.case["hf_config"]).save_pretrained(folder)
        return folder / "config.json"

    def model(self) -> PreTrainedModel:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(**self.case["hf_config"]))


def runs(*frameworks: str) -> list[Run]:
    """Every run of these frameworks."""
    found = [Run(case.parent) for root in roots_2026() for case in sorted((root / "training").glob("*/case.json"))]
    return [run for run in found if run.case["framework"] in frameworks]


def loaded(run: Run, folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The state in a folder of the Trainer, by the names of the class: by an optimizer of torch with the Trainer's own groups."""
    from transformers.trainer_pt_utils import get_parameter_names

    model = run.model()
    undecayed = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    decayed = get_parameter_names(model, [torch.nn.LayerNorm], undecayed)
    names = [name for name, _ in model.named_parameters()]
    order = [name for name in names if name in decayed] + [name for name in names if name not in decayed]
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    states = {name: optimizer["state"][number] for name, number in zip(order, numbers, strict=True)}
    assert {float(state["step"]) for state in states.values()} == {float(run.case["training"]["step"])}
    weights = {name: value for name, value in load_file(folder / "model.safetensors").items() if name in names}
    return {
        "weights": weights,
        **{kind: {name: state[kind] for name, state in states.items()} for kind in ("exp_avg", "exp_avg_sq")},
    }


def judge_file() -> Path | None:
    """The judge beside the cases, where the whole set is there."""
    return next((file for root in roots_2026() if (file := root / "training" / "judge.py").is_file()), None)


os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
