"""Goldens of every framework for the reference forward: how each is opened, what it was given, what it computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ckpt_core import open_checkpoint
from ckpt_core.opened import OpenCheckpoint
from ckpt_core.reference import Inputs, forward
from ckpt_tests.goldens import Golden

TOLERANCE = 1e-4
# Rotary frequencies rounded to bf16, with which NeMo itself computed these logits, are not part of any architecture.
ROUNDED_FREQUENCIES = {"legacy-llama-bf16-O2-tp2-nemo": 5e-3}
# Replicated tensors that differ from rank to rank on purpose: only the masters are one model.
OUT_OF_STEP = {"bloom-tp4-bf16-desync"}


def opened(golden: Golden, folder: Path) -> OpenCheckpoint:
    """The golden, with the config that its format lacks (written to `folder` where the case only describes it)."""
    arguments: dict[str, Any] = {}
    if golden.case.get("framework") == "nxdt":
        arguments["config"] = str(golden.folder / golden.case["architecture_config"].split()[0])
        arguments["options"] = {name: golden.case[name] for name in ("model_style", "hw_backend")}
        if "layout" not in golden.case and (golden.folder / "source_hf").is_dir():
            arguments["options"]["layout"] = "aws-converter"
    elif golden.case.get("framework", "").startswith("torchtitan"):
        arguments["config"] = str(golden.folder / "config.json")
        arguments["options"] = {"drop_expert_bias": "true"}
    elif golden.folder.parent.name == "fsdp" and (golden.folder / "config.json").is_file():
        arguments["config"] = str(golden.folder / "config.json")
    elif golden.case.get("framework", "").startswith("deepspeed") and "ds_config" in golden.case:
        body = {**golden.case["model"], "model_type": "llama", "architectures": [golden.case["hf_architecture"]]}
        (folder / "config.json").write_text(json.dumps(body))
        arguments["config"] = str(folder / "config.json")
    return open_checkpoint(golden.checkpoint, weights="master" if _from_masters(golden) else "auto", **arguments)


def _from_masters(golden: Golden) -> bool:
    return golden.folder.name in OUT_OF_STEP or golden.case.get("framework", "").startswith("deepspeed")


def recorded(golden: Golden) -> tuple[Inputs, torch.Tensor]:
    """The inputs, and the logits of the weights that `opened` reads."""
    stored = load_file(golden.folder / "expected.safetensors")
    logits = stored.get("logits_master", stored["logits"]) if _from_masters(golden) else stored["logits"]
    if "pixel_values" in stored:
        return Inputs(pixels=stored["pixel_values"]), logits
    if "decoder_input_ids" not in stored:
        return Inputs(tokens=stored["input_ids"]), logits
    masks = {"mask": stored["decoder_attention_mask"], "source_mask": stored["attention_mask"]}
    return Inputs(tokens=stored["decoder_input_ids"], source=stored["input_ids"], **masks), logits


def off_by(model: OpenCheckpoint, inputs: Inputs, logits: torch.Tensor) -> float:
    """The largest difference of the reference's logits to the recorded ones, padding of any kind left out."""
    *_, last = forward(model, inputs)
    columns = min(logits.shape[-1], last.values.shape[-1])
    apart = (last.values[..., :columns] - logits[..., :columns]).abs()
    return float((apart if inputs.mask is None else apart[inputs.mask.bool()]).max())
