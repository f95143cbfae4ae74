"""Measure what docs/stories/resume.md draws: a run of Megatron that goes on in Nanotron and then in Megatron again, and the same from weights alone.

    MEGATRON_LM_SOURCE=TREE python measure_resume.py OUT.json [--megatron-python PYTHON]

Needs the environment of requirements-training.txt, and as PYTHON that of requirements-megatron-lm.txt; the run is a golden in $CKPT_GOLDENS_2026. Its four recorded
batches are seen again and again, 12 steps in each framework. The reference is a plain loop of torch from the recorded state, with Megatron's groups.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ckpt_core import convert
from ckpt_core.api import launch_of
from ckpt_tests.training import judge_of, runs

HERE = Path(__file__).parent
NAME, STEPS = "megatron-distopt-fp32-tp2-dp2-torch", 12
OF_A_CPU = (
    "--use-cpu-initialization --distributed-backend gloo --no-masked-softmax-fusion --no-rope-fusion --no-gradient-accumulation-fusion "
    "--no-persist-layer-norm --no-bias-swiglu-fusion --no-bias-dropout-fusion --attention-backend unfused --attention-softmax-in-fp32 "
    "--no-save-rng --exit-on-missing-checkpoint --save-interval 1000 --dist-ckpt-optim-fully-reshardable --lr-decay-style constant"
).split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--megatron-python", default=sys.executable)
    asked = parser.parse_args()
    run = next(run for run in runs("megatron") if str(run) == NAME)
    held, how = load_file(run.golden.folder / "expected.safetensors"), run.training
    batches = held["batches"].repeat(2 * STEPS // len(held["batches"]), 1, 1)
    rates = [*how["next_lr"], *[how["next_lr"][-1]] * (len(batches) - len(how["next_lr"]))]
    judge = judge_of(run)
    plain, _ = judge.run(run.golden.case, judge.state_of(held), batches, how["step"], rates)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, part in (("first", batches[:STEPS]), ("second", batches[STEPS:]), ("all", batches)):
            save_file({"batches": part.contiguous()}, folder / f"{name}.safetensors")
        convert(run.checkpoint, folder / "kept", to="nanotron", options={"target": "0.4"}, training_state="keep")
        there = nanotron(folder / "kept", folder / "first.safetensors", folder / "there", rates[:STEPS])
        padded = {"target": "0.4", "make_vocab_size_divisible_by": "128"}  # the rows of padding are in its batches
        convert(run.checkpoint, folder / "alone", to="nanotron", options=padded, training_state="drop")
        alone = nanotron(folder / "alone", folder / "all.safetensors", folder / "weights", rates)
        options = {
            "names": "local",
            "adam": "fused",
            "container": "torch_dist",
            "global_batch_size": str(how["sequences_per_step"]),
        }
        convert(folder / "there" / "run", folder / "back", to="megatron", options=options, training_state="keep")
        back = megatron(asked.megatron_python, folder, how, rates[STEPS:])
    said = {
        "run": NAME,
        "step": how["step"],
        "recorded": held["losses"].tolist(),
        "reference": plain.tolist(),
        "nanotron": there,
        "megatron": back,
        "weights_alone": alone,
    }
    asked.out.write_text(json.dumps({key: _short(value) for key, value in said.items()}, indent=1) + "\n")


def _short(value: Any) -> Any:
    return [round(one, 6) for one in value] if isinstance(value, list) else value


def nanotron(place: Path, batches: Path, out: Path, rates: list[float]) -> list[float]:
    """The losses of Nanotron 0.4 from a run folder."""
    command = [
        sys.executable,
        "-O",
        HERE / "nanotron_resume_judge.py",
        place,
        batches,
        out,
        "--lr",
        ",".join(map(repr, rates)),
    ]
    _run(command, {})
    return json.loads((out / "losses.json").read_text())["losses"]


def megatron(python: str, folder: Path, how: dict[str, Any], rates: list[float]) -> list[float]:
    """The losses of Megatron-LM from the folder `back`, started with the words of `ckpt launch`."""
    command = launch_of(folder / "back", options={"megatron_version": "0.16"}).to_json()["command"]
    words = command[command.index("pretrain_gpt.py") + 1 :]
    batch, length = how["sequences_per_step"], how["tokens_per_step"] // how["sequences_per_step"]
    for flag, value in {
        "micro-batch-size": batch, "global-batch-size": batch, "train-iters": 100, "seq-length": length, "weight-decay": how["weight_decay"],
        "clip-grad": how["clip_grad"], "save": folder / "saved", "lr": rates[0], "min-lr": 0.0,
    }.items():  # fmt: skip
        words += [f"--{flag}", str(value)]
    body = {
        "words": [*words, *OF_A_CPU], "world": 1, "adam": "fused", "batches": str(folder / "second.safetensors"), "rates": rates,
        "out": str(folder / "said.json"),
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(body))
    set_before = dict(word.split("=", 1) for word in command[1 : command.index("torchrun")])
    _run(
        [python, HERE / "megatron_training_judge.py", folder / "run.json"],
        {"PYTHONPATH": os.environ["MEGATRON_LM_SOURCE"], **set_before},
    )
    return json.loads((folder / "said.json").read_text())["losses"]


def _run(command: list[Any], more: dict[str, str]) -> None:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **more}
    )
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
