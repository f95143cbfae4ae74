"""The state of every run that frameworks saved, by way of NeMo and NxDT, to what was in memory when they did, bit for bit, and on from there.

Run by `nox -s training_ways`. $CKPT_GOLDENS_2026 holds the runs, with the judge that goes on from a state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_core import convert
from ckpt_core.errors import NotCarried, Refusal
from ckpt_tests.training import Run, judged, loaded, runs

# format, ranks, options, dtype of the weights
WAYS: dict[str, tuple[str, dict[str, int], dict[str, Any], str]] = {
    "nemo": ("nemo", {}, {"container": "ckpt"}, "keep"),
    "nemo tp2 pp2": ("nemo", {"tp": 2, "pp": 2}, {"container": "ckpt"}, "keep"),
    "nemo zarr tp2": ("nemo", {"tp": 2}, {"container": "ckpt", "names": "mcore"}, "keep"),
    "nemo torch_dist": ("nemo", {}, {"container": "ckpt", "names": "mcore", "backend": "torch_dist"}, "keep"),
    "nemo bf16": ("nemo", {"tp": 2}, {"container": "ckpt"}, "bf16"),
    "nemo2": ("nemo2", {}, {}, "keep"),
    "nemo2 tp2 bf16": ("nemo2", {"tp": 2}, {}, "bf16"),
    "nxdt dp3": ("nxdt", {"tp": 2}, {"dp": 3}, "keep"),
    "nxdt pp2 dp2 xser": ("nxdt", {"pp": 2}, {"dp": 2, "xser": True, "undecayed": "norms"}, "keep"),
    "nxdt dp5 bf16": ("nxdt", {}, {"dp": 5}, "bf16"),
}
# What a format can't hold of these runs: it must say so, and write nothing.
IMPOSSIBLE = (
    "does not divide",  # ranks and key-value heads, or a vocabulary without padding
    "is a copy here of a parameter that is one in the source",  # a tied head in NxDT
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("run", runs("hf-trainer", "fsdp2-dcp", "deepspeed", "megatron", "nanotron"), ids=str)
def test_it_is_what_was_in_memory(run: Run, way: str, tmp_path: Path) -> None:
    to, ranks, options, dtype = WAYS[way]
    asked: dict[str, Any] = {"config": run.config_in(tmp_path), "dtype": dtype, "training_state": "keep", **ranks}
    try:
        convert(run.checkpoint, tmp_path / "between", to=to, options=options, **asked)
    except (Refusal, NotCarried) as problem:
        assert any(words in str(problem) for words in IMPOSSIBLE), problem
        assert not (tmp_path / "between").exists()
        pytest.skip(problem.problem)
    receipt = convert(tmp_path / "between", tmp_path / "hf", to="hf", training_state="keep")
    assert receipt.body["training"]["state"]["step"] == run.training["step"]
    state = loaded(run, tmp_path / "hf")
    padded = False
    for kind, expected in run.expected.items():
        assert state[kind].keys() == expected.keys()
        for name, value in expected.items():
            found = state[kind][name]
            padded |= found.shape != value.shape  # the target's rows of padding
            assert torch.equal(found[: len(value)], value), (kind, name)
    if not padded:
        assert judged(run, state, tmp_path) in (True, None)
