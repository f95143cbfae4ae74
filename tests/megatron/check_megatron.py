"""What we write, judged by the real Megatron-Core: it loads it, and its logits are those that were recorded.

Not a part of the suite: it needs an environment of its own (`requirements-judge.txt`).

    pip install -r requirements-judge.txt -e core -e plugins/megatron pytest safetensors
    pytest tests/megatron/check_megatron.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.goldens import Golden, each

from ckpt_core import convert

JUDGE = Path(__file__).parent / "megatron_judge.py"
TOLERANCE = 1e-4
# latent attention and its router have settings of their own; Megatron's local attention lacks its head dims
JUDGED = [
    (1, 1, "torch"),
    (2, 1, "torch"),
    (1, 2, "torch"),
    (1, 1, "torch_dist"),
    (2, 1, "torch_dist"),
    (1, 2, "torch_dist"),
]


@each("megatron", lambda golden: "mla" not in golden.folder.name)
@pytest.mark.parametrize(("tp", "pp", "container"), JUDGED)
def test_megatron_loads_it(golden: Golden, tp: int, pp: int, container: str, tmp_path: Path) -> None:
    options = {"container": container, "names": "local"}
    if int(golden.case["model_args"]["num-layers"]) % pp:
        pytest.skip("stages would be uneven")
    if "num-experts" in golden.case["model_args"]:
        options["experts"] = "sequential"
    written = {"tp": 1, "pp": 1} if container == "torch_dist" else {"tp": tp, "pp": pp}
    # torch_dist is written once and loaded by any number of ranks; only the padding must suit them
    options["make_vocab_size_divisible_by"] = str(32 // written["tp"])
    convert(golden.checkpoint, tmp_path / "run", to="megatron", **written, options=options)
    out = tmp_path / "logits.safetensors"
    expected = golden.folder / "expected.safetensors"
    command = [
        sys.executable,
        str(JUDGE),
        str(tmp_path / "run"),
        str(expected),
        str(out),
        "--tp",
        str(tp),
        "--pp",
        str(pp),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    if pp == 1:
        assert golden.off_by(load_file(out)["logits"]) <= TOLERANCE
