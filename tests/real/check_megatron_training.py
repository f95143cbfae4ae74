"""A state of a training that we write, resumed by Megatron-LM itself: the losses and weights of the next steps are those that were recorded.

Run by `nox -s real_megatron_training`, in an environment of its own; $MEGATRON_LM_SOURCE is a tree of Megatron-LM (core_v0.16.1), and $CKPT_GOLDENS_2026 has
the recorded runs of every framework.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ckpt_core import convert
from ckpt_core.api import launch_of
from ckpt_tests.training import Run, runs

FOLDER = Path(__file__).parent
SOURCE = Path(os.environ["MEGATRON_LM_SOURCE"])
CPU = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}  # of local modules, as the recorded runs of Megatron were
OF_A_CPU = (
    "--use-cpu-initialization --distributed-backend gloo --no-masked-softmax-fusion --no-rope-fusion "
    "--no-gradient-accumulation-fusion --no-persist-layer-norm --no-bias-swiglu-fusion --no-bias-dropout-fusion "
    "--attention-backend unfused --attention-softmax-in-fp32 --no-save-rng --exit-on-missing-checkpoint --save-interval 1000"
).split()


def asked(name: str) -> Run:
    found = [run for run in runs("hf-trainer", "fsdp2-dcp", "deepspeed", "nanotron", "megatron") if name in str(run)]
    if not found:
        pytest.skip(f"the recorded run {name} is not there")
    return found[0]


def resumed(
    run: Run, folder: Path, *, adam: str, dp: int = 1, repaired: bool = True, buckets: bool = False, **written: Any
) -> tuple[dict[str, Any], Path]:
    """What Megatron says of the steps that it makes from what we write of a run, and the folder of what it then saves."""
    options = {"names": "local", "adam": adam, **written.pop("options")}
    how, ranks = run.training, {axis: written.get(axis, 1) for axis in ("tp", "pp")}
    own = run.golden.case["framework"] == "megatron"
    if not own:
        options["global_batch_size"] = str(how["sequences_per_step"])
    config = run.config_in(folder)
    convert(
        run.checkpoint, folder / "run", to="megatron", config=config, options=options, training_state="keep", **ranks
    )
    command = launch_of(folder / "run", options={"megatron_version": "0.16"}).to_json()["command"]
    set_before = dict(word.split("=", 1) for word in command[1 : command.index("torchrun")])
    words = command[command.index("pretrain_gpt.py") + 1 :]
    length = load_file(run.golden.folder / "expected.safetensors")["batches"].shape[-1] - 1
    batch = how["sequences_per_step"]
    words += ["--micro-batch-size", str(batch // dp), "--global-batch-size", str(batch), "--train-iters", "20"]
    words += ["--seq-length", str(length), "--weight-decay", str(how["weight_decay"])]
    words += [
        "--clip-grad",
        str(how["clip_grad"]),
        "--save",
        str(folder / "saved"),
        "--dist-ckpt-optim-fully-reshardable",
    ]
    words += [
        "--lr",
        str(max(how["lr_history"])),
        "--min-lr",
        "0.0005",
        "--lr-decay-style",
        "cosine",
        "--lr-warmup-iters",
        "2",
    ]
    body = {
        "words": [*words, *OF_A_CPU],
        "world": ranks["tp"] * ranks["pp"] * dp,
        "adam": adam,
        "batches": str(run.golden.folder / "expected.safetensors"),
        "repaired": repaired,
        "buckets": str(folder / "buckets") if buckets else None,
        "rates": None if own else how["next_lr"],
        "out": str(folder / "said.json"),
    }
    (folder / "run.json").write_text(json.dumps(body))
    judge = [sys.executable, str(FOLDER / "megatron_training_judge.py"), str(folder / "run.json")]
    done = subprocess.run(judge, capture_output=True, text=True, env={**os.environ, **CPU, **set_before})
    if done.returncode:
        raise AssertionError(done.stdout[-2000:] + done.stderr[-4000:])
    return json.loads((folder / "said.json").read_text()), folder / "saved"


def off(run: Run, said: dict[str, Any], saved: Path, folder: Path) -> tuple[float, float]:
    """How far the losses, and the weights after the last step, are from the recorded ones."""
    expected = load_file(run.golden.folder / "expected.safetensors")
    losses = (torch.tensor(said["losses"], dtype=torch.float64) - expected["losses"]).abs().max().item()
    convert(saved, folder / "after", to="hf", training_state="keep")
    weights = load_file(folder / "after" / "model.safetensors")
    names = {name.removeprefix("after/") for name in expected if name.startswith("after/")}
    away = max((weights[name] - expected[f"after/{name}"]).abs().max().item() for name in names & weights.keys())
    print(run, f"losses {losses:.1e} weights {away:.1e}", "rates", said["rates"])
    return losses, away


DIST, TORCH = {"container": "torch_dist"}, {"container": "torch"}
PLAIN = {"optimizer": "plain"}
DISTRIBUTED = {"optimizer": "distributed"}
FROM = [
    ("hf-trainer", "fused", 1, {"options": DIST}),
    ("hf-trainer", "fused", 2, {"tp": 2, "options": DIST}),
    ("hf-trainer", "torch", 1, {"options": DIST | PLAIN}),
    ("hf-trainer", "torch", 1, {"tp": 2, "options": TORCH}),
    ("hf-trainer", "fused", 2, {"options": TORCH | DISTRIBUTED}),
    # 101 tokens, which two ranks could not share without rows of padding: those enter the softmax, and the run would be another one
    ("fsdp2-dcp", "fused", 1, {"pp": 2, "options": TORCH | {"make_vocab_size_divisible_by": "101"}}),
    ("deepspeed-zero3", "torch", 1, {"pp": 2, "options": DIST | PLAIN}),
    ("megatron-distopt-fp32-tp2-dp2-fully", "fused", 1, {"pp": 2, "options": DIST}),
    ("megatron-distopt-fp32-pp2", "fused", 1, {"tp": 2, "options": DIST}),
    ("megatron-distopt-fp32-tp2-dp2-torch", "fused", 1, {"options": TORCH | DISTRIBUTED}),
    ("megatron-bf16", "fused", 1, {"tp": 2, "options": DIST}),
    ("megatron-bf16", "torch", 1, {"pp": 2, "options": TORCH}),
    ("megatron-bf16", "fused", 1, {"tp": 2, "pp": 2, "options": TORCH | DISTRIBUTED}),
]


@pytest.mark.parametrize(("name", "adam", "dp", "written"), FROM, ids=str)
def test_megatron_goes_on_from_what_we_write(name, adam, dp, written, tmp_path: Path) -> None:
    run = asked(name)
    said, saved = resumed(run, tmp_path, adam=adam, dp=dp, **dict(written))
    limits = run.training["tolerance"]
    losses, weights = off(run, said, saved, tmp_path)
    assert said["rates"] == pytest.approx(run.training["next_lr"], rel=1e-9)
    assert losses <= limits["losses"] and weights <= limits["weights"]


@pytest.mark.parametrize("ranks", [{"tp": 2, "pp": 2}, {"tp": 2}], ids=str)
def test_buckets_of_tensor_parallel_ranks_are_read(ranks: dict[str, int], tmp_path: Path) -> None:
    """What Megatron saves as dp_reshardable and what it saves fully reshardable of the same run is the same state."""
    run = asked("hf-trainer")
    _, saved = resumed(run, tmp_path, adam="fused", buckets=True, options=DIST, **ranks)
    receipts = [
        convert(folder, tmp_path / f"{folder.name}-ir", to="ir", training_state="keep").body["training"]
        for folder in (saved, tmp_path / "buckets")
    ]
    assert receipts[0]["fingerprint"] == receipts[1]["fingerprint"]


UPSTREAM = [
    ("fused", TORCH | DISTRIBUTED, "a view of a leaf Variable that requires grad"),
    ("torch", DIST, r"assert len\(steps\) == 1"),
]


@pytest.mark.parametrize(("adam", "options", "error"), UPSTREAM, ids=str)
def test_what_megatron_itself_can_not_load(adam, options, error, tmp_path: Path) -> None:
    """Faults of core 0.16.1, whoever wrote the files: flat buffers of a model in fp32, and a distributed optimizer on torch's AdamW."""
    with pytest.raises(AssertionError, match=error):
        resumed(asked("hf-trainer"), tmp_path, adam=adam, repaired=False, options=options)
