"""How a job of NxD Training is started with a checkpoint: by its yaml, which `nxdt.yaml` is a part of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_core.sdk import Target, WriteRequest, launches
from ckpt_nxdt.config import CONFIG
from ckpt_nxdt.job import FRAGMENT

_PLACES = ("exp_manager", "distributed_strategy", "model.pipeline_cuts", "model.weight_init_only")


def launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    """The lines of the yaml that must agree with the files. In the hf style the model's own keys are in `config.json`."""
    lines = target.config["job"]
    arguments = [launches.Argument(path, value, model=not path.startswith(_PLACES)) for path, value in _flat(lines)]
    if target.decisions["model_style"] == "hf":
        # modeling_llama_nxd.py builds the model of the file that model.model_config names
        arguments += [
            launches.Argument(f"{CONFIG}: {key}", value, taken=True) for key, value in target.config["model"].items()
        ]
    ranks = math.prod(size for name, size in target.parallel.items() if name != "vpp")
    return launches.Launch(
        "NxD Training",
        ("torchrun", f"--nproc-per-node={ranks}", "training.py", "--config-path=conf", "--config-name=YOURS"),
        tuple(arguments),
        document=target.documents[FRAGMENT].decode(),
        notes=("Merge these lines into your conf/YOURS.yaml: a key that it lacks has a default of another model.",),
    )


def _flat(lines: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in lines.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
