"""Runs of one framework that go on in another: Nanotron 0.4, DeepSpeed 0.19.8 and the Trainer of transformers 5.24 take what we write.

Each loads a run that another framework saved (the goldens in $CKPT_GOLDENS_2026), by its own loader, and trains on the four batches that follow. The losses
and the weights are compared with those of the framework that saved it, or, where the target decays other parameters, with a plain loop of torch that
decays them so. What the frameworks do wrong of their own has a test of its name. Run by `nox -s real_training`.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import get_state_dict
from transformers import Starcoder2Config, Starcoder2ForCausalLM

from ckpt_core import convert
from ckpt_tests.training import KINDS, Run, judge_of, judged, loaded, runs

HERE = Path(__file__).parent
PORTS = itertools.count(29641)
RUNS = runs("hf-trainer", "fsdp2-dcp", "deepspeed", "megatron", "nanotron")
BY_NAME = {str(run): run for run in RUNS}
FP32, BF16, LAYOUT1 = (
    "megatron-distopt-fp32-tp2-dp2-torch",
    "megatron-bf16-tp2-pp2-tied-torch",
    "nanotron-zero1-fp32-tp2-dp2",
)
RESHARDED = "megatron-distopt-fp32-pp2-dp2-dp-reshardable"


@dataclass(frozen=True)
class Continued:
    """What a framework computed: the loss and the learning rate of each step, and the fp32 weights after the last one, by transformers' names."""

    losses: list[float]
    rates: list[float]
    weights: dict[str, torch.Tensor]

    def off(self, losses: torch.Tensor, weights: dict[str, torch.Tensor]) -> tuple[float, float]:
        """By how much the losses and the weights differ at most."""
        apart = [
            (self.weights[name].float() - value).abs().max().item()
            for name, value in weights.items()
            if name in self.weights
        ]
        assert len(apart) == len(self.weights)
        return max(abs(one - other) for one, other in zip(self.losses, losses.tolist(), strict=True)), max(apart)


def run_judge(script: str, *arguments: object, ranks: int = 0) -> None:
    words = [sys.executable, "-O"]
    if ranks:
        words += ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(next(PORTS))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [*words, str(HERE / script), *map(str, arguments)], capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


def written(run: Run, folder: Path, to: str, tp: int = 1, pp: int = 1, **options: str) -> Path:
    folder.mkdir(exist_ok=True)
    convert(
        run.checkpoint,
        folder / to,
        to=to,
        tp=tp,
        pp=pp,
        options=options,
        config=run.config_in(folder),
        training_state="keep",
    )
    return folder / to


def rates_of(run: Run) -> str:
    return ",".join(map(repr, run.training["next_lr"]))


def limits(run: Run) -> tuple[float, float]:
    tolerance = run.training["tolerance"]
    return tolerance["losses"], tolerance["weights"]


def expected(run: Run, all_decay: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses and weights as the run's own framework recorded them; or, of a plain loop that decays norms as well."""
    held = load_file(run.golden.folder / "expected.safetensors")
    if not all_decay:
        return held["losses"], {
            name.removeprefix("after/"): value for name, value in held.items() if name.startswith("after/")
        }
    judge, case = judge_of(run), copy.deepcopy(run.golden.case)
    case["training"]["no_decay"] = []
    return judge.run(case, judge.state_of(held), held["batches"], case["training"]["step"], case["training"]["next_lr"])


# --- the frameworks --------------------------------------------------------------------------------------------------


def nanotron(run: Run, folder: Path, tp: int, pp: int, dp: int, zero: int, rates: str | None) -> Continued:
    place = written(run, folder, "nanotron", tp, pp, target="0.4", dp=str(dp), zero=str(zero))
    more = ["--lr", rates] if rates else []
    ranks = ["--tp", tp, "--pp", pp, "--dp", dp]
    run_judge(
        "nanotron_resume_judge.py", place, run.golden.folder / "expected.safetensors", folder / "out", *ranks, *more
    )
    said = json.loads((folder / "out" / "losses.json").read_text())
    convert(folder / "out" / "run", folder / "after", to="hf", training_state="keep")
    return Continued(said["losses"], said["lr"], load_file(folder / "after" / "model.safetensors"))


def deepspeed(run: Run, folder: Path, ranks: int, stage: int, *more: str) -> Continued:
    place = written(run, folder, "deepspeed", **{"dst.flat": str(stage == 3).lower()})
    how = ["--stage", stage, "--lr", rates_of(run), "--clip", run.training["clip_grad"] or 0, *more]
    run_judge(
        "deepspeed_resume_judge.py",
        place,
        run.golden.folder / "expected.safetensors",
        folder / "out",
        *how,
        ranks=ranks,
    )
    said = json.loads((folder / "out" / "losses.json").read_text())
    steps = run.training["step"] + len(said["losses"])
    begun = 0 if run.golden.case["framework"] == "hf-trainer" else run.training["step"]  # the Trainer counts no samples
    assert said["global_steps"] == steps
    assert said["global_samples"] == (begun + len(said["losses"])) * run.training["sequences_per_step"]
    return Continued(said["losses"], [], load_file(folder / "out" / "after.safetensors"))


def trainer(run: Run, folder: Path) -> Continued:
    how = ["--step", run.training["step"], "--lr", rates_of(run), "--clip", run.training["clip_grad"] or 0]
    place = written(run, folder, "hf")
    run_judge("trainer_resume_judge.py", place, run.golden.folder / "expected.safetensors", folder / "out", *how)
    said = json.loads((folder / "out" / "losses.json").read_text())
    assert said["lr"] == run.training["next_lr"] and said["global_step"] == run.training["step"] + len(said["losses"])
    return Continued(said["losses"], said["lr"], load_file(folder / "out" / "after.safetensors"))


def assert_within(found: tuple[float, float], allowed: tuple[float, float]) -> None:
    print(f"losses {found[0]:.2e}, weights {found[1]:.2e}")
    assert found[0] <= allowed[0] and found[1] <= allowed[1], f"{found} is not within {allowed}"


# --- they go on ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tp", "pp", "dp", "zero"),
    [
        (FP32, 1, 1, 1, 0),
        (FP32, 2, 1, 2, 1),
        (RESHARDED, 1, 2, 1, 0),
        (BF16, 2, 2, 1, 0),
        (BF16, 1, 1, 2, 1),
        (LAYOUT1, 1, 2, 2, 1),
    ],
)
def test_nanotron_goes_on(name: str, tp: int, pp: int, dp: int, zero: int, tmp_path: Path) -> None:
    run = BY_NAME[name]
    found = nanotron(run, tmp_path, tp, pp, dp, zero, rates_of(run))
    assert_within(found.off(*expected(run, all_decay=True)), limits(run))


@pytest.mark.parametrize(
    ("name", "ranks", "stage"), [(FP32, 2, 1), (LAYOUT1, 1, 2), ("hf-trainer-llama-cosine", 2, 2), (BF16, 2, 1)]
)
def test_deepspeed_goes_on(name: str, ranks: int, stage: int, tmp_path: Path) -> None:
    run = BY_NAME[name]
    found = deepspeed(run, tmp_path, ranks, stage, *(["--bf16"] if name == BF16 else []))
    assert_within(found.off(*expected(run, all_decay=False)), limits(run))


@pytest.mark.parametrize("name", [FP32, LAYOUT1, "deepspeed-universal-from-zero2", "fsdp2-dcp-llama-dp2"])
def test_the_trainer_goes_on(name: str, tmp_path: Path) -> None:
    run = BY_NAME[name]
    assert_within(trainer(run, tmp_path).off(*expected(run, all_decay=False)), limits(run))


STARCODER = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 6, "max_position_embeddings": 16,
    "tie_word_embeddings": True, "sliding_window": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize(("heads", "tp", "pp"), [(2, 2, 1), (1, 2, 1), (2, 1, 2)])
def test_nanotron_registers_starcoder2_as_we_write_it(heads: int, tp: int, pp: int, tmp_path: Path) -> None:
    """Torch gives states to parameters by their number alone. What nanotron saves at once has its own names, and must be what we wrote."""
    torch.manual_seed(3)
    model = Starcoder2ForCausalLM(Starcoder2Config(**STARCODER, num_key_value_heads=heads))
    named = dict(model.named_parameters())
    kinds = [[name for name, value in named.items() if (value.dim() > 1) is decayed] for decayed in (True, False)]
    optimizer = torch.optim.AdamW([{"params": [named[name] for name in kind]} for kind in kinds], lr=1e-3)
    for _ in range(2):
        tokens = torch.randint(0, 96, (2, 16))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.config.save_pretrained(tmp_path / "saved")
    held = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(held, checkpoint_id=tmp_path / "saved", no_dist=True)
    convert(
        tmp_path / "saved",
        tmp_path / "run",
        to="nanotron",
        tp=tp,
        pp=pp,
        options={"target": "0.4"},
        training_state="keep",
    )
    save_file({"batches": torch.zeros((0, 2, 17), dtype=torch.int64)}, tmp_path / "none.safetensors")
    run_judge(
        "nanotron_resume_judge.py",
        tmp_path / "run",
        tmp_path / "none.safetensors",
        tmp_path / "out",
        "--tp",
        tp,
        "--pp",
        pp,
    )
    files = sorted((tmp_path / "run" / "2" / "optimizer").glob("*.pt"))
    assert len(files) == tp * pp
    for path in files:
        ours, theirs = (
            torch.load(folder / "2" / "optimizer" / path.name)
            for folder in (tmp_path / "run", tmp_path / "out" / "run")
        )
        assert list(ours["names"].items()) == list(theirs["names"].items())
        for number, state in theirs["state"].items():
            assert all(torch.equal(value, ours["state"][number][key]) for key, value in state.items()), ours["names"][
                number
            ]


# --- what the frameworks do of their own -----------------------------------------------------------------------------


def test_nanotron_decays_norms(tmp_path: Path) -> None:
    """Release 0.4 has one group: what Megatron does not decay is decayed, and the loss says so before anything is written."""
    run = BY_NAME[FP32]
    _, weights = nanotron(run, tmp_path, 1, 1, 1, 0, rates_of(run)).off(*expected(run, all_decay=False))
    assert 1e-4 < weights < 1e-2


def test_nanotron_steps_first_with_the_rate_of_step_0(tmp_path: Path) -> None:
    """Its trainer loads the position of the schedule after LambdaLR set the rate of step 0: with a warmup the first step after a resume has rate 0."""
    run = BY_NAME[LAYOUT1]
    found = nanotron(run, tmp_path, 1, 1, 1, 0, None)
    assert found.rates[0] == 0.0 and found.rates[1:] == pytest.approx(run.training["next_lr"][1:], rel=1e-12)
    losses, weights = found.off(*expected(run, all_decay=False))
    assert losses > limits(run)[0] and weights > limits(run)[1]


def test_the_curve_that_we_write_has_the_next_rate_at_once(tmp_path: Path) -> None:
    run = BY_NAME[FP32]
    found = nanotron(run, tmp_path, 1, 1, 1, 0, None)
    assert found.rates == pytest.approx([run.training["next_lr"][0]] * 4, rel=1e-12)


def test_zero_3_counts_one_step_for_all_subgroups_and_has_one_group(tmp_path: Path) -> None:
    """Its universal loader gives every subgroup the same tensor as its step, which each of them counts up, and every group the first's decay."""
    run = BY_NAME[FP32]
    losses, weights = deepspeed(run, tmp_path / "wrong", 2, 3).off(*expected(run, all_decay=True))
    assert losses > limits(run)[0] and weights > limits(run)[1]
    found = deepspeed(run, tmp_path / "right", 2, 3, "--own-steps")
    assert_within(found.off(*expected(run, all_decay=True)), limits(run))


# --- every pair ------------------------------------------------------------------------------------------------------

WAYS = {
    "ir": {}, "hf": {}, "fsdp": {"layout": "nested"}, "nanotron": {"target": "0.4", "zero": "1", "dp": "3"}, "deepspeed": {"dst.flat": "false"},
    "deepspeed flat": {"dst.flat": "true"}, "nanotron main": {"zero": "0"},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_every_run_is_the_same_on_every_way(run: Run, way: str, tmp_path: Path) -> None:
    place = written(run, tmp_path, way.split()[0], **WAYS[way])
    convert(place, tmp_path / "back", to="hf", training_state="keep")
    state, known = loaded(run, tmp_path / "back"), run.expected
    assert {
        (kind, name)
        for kind in KINDS
        for name, value in known[kind].items()
        if not torch.equal(state[kind][name], value)
    } == set()
    assert judged(run, state, tmp_path)


def test_the_judge_sees_what_is_wrong_with_what_we_write(tmp_path: Path) -> None:
    """Its controls: zero moments, a step that is reset, rows in another order. Each must fail on our output."""
    run = BY_NAME[FP32]
    place = written(run, tmp_path, "nanotron", 2, zero="1", dp="2", target="0.4")
    convert(place, tmp_path / "back", to="hf", training_state="keep")
    assert judged(run, loaded(run, tmp_path / "back"), tmp_path, controls=True)
