"""What AWS's converter does to a model in the configurations where it is wrong, over every recorded case.

    python tools/wrong_models.py

Largest difference to the logits of the model that was converted: of AWS's files as NxDT's own classes computed them (recorded) and
as ckpt reads them for a job, and of the files that ckpt writes for that job instead.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from ckpt_core import convert
from ckpt_hf import load_model
from ckpt_tests.goldens import Golden, goldens
from ckpt_tests.models import logits_of


def as_a_job_reads(golden: Golden) -> dict:
    """Arguments that read AWS's files in the order in which a job does."""
    options = {"layout": "native", "hw_backend": golden.case["hw_backend"]}
    if (
        golden.case["kv_size_multiplier"] > 1
    ):  # a job does not know that the copies on its ranks are not those of one head
        options["kv_replicas"] = "separate"
    return {"config": str(golden.folder / "source_hf" / "config.json"), "options": options}


def logits(path: Path, golden: Golden, **arguments) -> torch.Tensor:
    return logits_of(load_model(path, dtype="fp32", **arguments), golden.input_ids)


def main() -> None:
    print(f"{'case':44} {'AWS, by NxDT':>14} {'AWS, by ckpt':>14} {'ours, by ckpt':>14}")
    for golden in goldens("nxdt"):
        recorded = load_file(golden.folder / "expected.safetensors")
        if "framework_logits" not in recorded:
            continue
        with tempfile.TemporaryDirectory() as folder:
            options = {key: golden.case[key] for key in ("model_style", "hw_backend")}
            options |= {"qkv": "linear"} if options["model_style"] == "hf" else {}
            convert(golden.folder / "source_hf", Path(folder, "run"), to="nxdt", **golden.parallel, options=options)
            ours = golden.off_by(logits(Path(folder, "run"), golden))
        theirs = golden.off_by(recorded["framework_logits"])
        read = golden.off_by(logits(golden.checkpoint, golden, **as_a_job_reads(golden)))
        print(f"{golden!s:44} {theirs:14.2f} {read:14.2f} {'below 1e-4' if ours < 1e-4 else f'{ours:.2f}':>14}")


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main()
