"""How DeepSpeed is started with a universal checkpoint: by its config, in a program of the user's own.

The model is built by that program, from the `config.json` that lies beside the weights; DeepSpeed knows nothing of it.
"""

from __future__ import annotations

import json
from typing import Any

from ckpt_core.sdk import Target, WriteRequest, launches


def launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    """The lines of a DeepSpeed config, and the model that the program builds."""
    place = request.destination or "."
    dtype = target.config["dtype"]
    lines: dict[str, Any] = {"checkpoint": {"load_universal": True}, "zero_optimization": {"stage": 1}}
    lines |= {dtype: {"enabled": True}} if dtype in ("bf16", "fp16") else {}
    arguments = [
        launches.Argument("checkpoint.load_universal", True, default=False, model=False),
        *(launches.Argument(f"config.json: {key}", value, taken=True) for key, value in target.config["model"].items()),
    ]
    return launches.Launch(
        "DeepSpeed",
        ("deepspeed", "YOURS.py", "--deepspeed_config", "ds_config.json"),
        tuple(arguments),
        document=json.dumps(lines, indent=2) + "\n",
        notes=(
            f"Your program builds the model: AutoModelForCausalLM.from_config(AutoConfig.from_pretrained({place!r}))"
            f" for a decoder; its class is {target.decisions['hf_class']}.",
            f"Then deepspeed.initialize, and engine.load_checkpoint({place!r}, load_lr_scheduler_states=False).",
        ),
    )
