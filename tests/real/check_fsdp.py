"""Format fsdp, judged by the frameworks: torch loads what we write at any number of ranks, and verl's own merger reads as we do.

Run in the environment of `requirements-fsdp.txt` and `requirements-verl.txt`; needs no GPU.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from ckpt_core import convert
from ckpt_core.testing import example
from ckpt_core.testing.examples import calm_numbers, write_ir
from ckpt_tests.goldens import Golden, of_2026
from ckpt_tests.models import weights

JUDGE = Path(__file__).parent / "fsdp_judge.py"
MODELS = {
    "llama": example("llama", layers=2),
    "tied": example("llama", layers=1, head__tied=True),
    "mixtral": example("moe", layers=2),
    "gpt2": example("gpt2", layers=1, hidden=144, attention__head_dim=12, mlp__ffn=576),
    "t5": example("t5", head__tied=True),
}
LAYOUTS = {"flat": 3, "nested": 2, "accelerate": 2}
"""The ranks that a layout is loaded on."""
VERL = [golden for golden in of_2026("fsdp") if golden.case["save"] == "verl"]


def run(*command: object) -> None:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every model as an HF folder."""
    folder = tmp_path_factory.mktemp("sources")
    for name, model in MODELS.items():
        convert(write_ir(folder / f"{name}-ir", model, values=calm_numbers), folder / name, to="hf")
    return {name: folder / name for name in MODELS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_loads_it_into_sharded_models_of_transformers(
    layout: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    told: list[Path] = []
    for name, source in sources.items():
        out = tmp_path / name
        convert(source, out, to="fsdp", options={"layout": layout, "max_shard_size": "300KB"})
        told += [out / "pytorch_model_fsdp_0" if layout == "accelerate" else out, source]
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", LAYOUTS[layout], "--master_port", "29624")
    run(*launcher, JUDGE, layout, *told)


@pytest.mark.parametrize("golden", VERL, ids=str)
def test_verls_own_merger_reads_the_same_rounded_to_bf16(golden: Golden, tmp_path: Path) -> None:
    """It rounds every shard whatever the dtype of the run, keeps the head of a tied model, and asks for the class and a tokenizer."""
    shutil.copytree(golden.checkpoint, tmp_path / "run", copy_function=shutil.copyfile)
    convert(tmp_path / "run", tmp_path / "ours", to="hf", dtype="bf16")
    config = tmp_path / "run/huggingface/config.json"
    named = json.loads((tmp_path / "ours/config.json").read_text())["architectures"]
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": named}))
    words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    special = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(config.parent)
    merge = ("-m", "verl.model_merger", "merge", "--backend", "fsdp")
    run(*merge, "--local_dir", tmp_path / "run", "--target_dir", tmp_path / "theirs")
    ours, theirs = weights(tmp_path / "ours"), weights(tmp_path / "theirs")
    head = theirs.pop("lm_head.weight") if "lm_head.weight" not in ours and "lm_head.weight" in theirs else None
    assert head is None or torch.equal(head, ours["model.embed_tokens.weight"])
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype == torch.bfloat16 and torch.equal(tensor, theirs[name]), name
