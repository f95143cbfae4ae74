"""What we write for NxD Training, loaded by its own model classes: logits are those of transformers.

    NXD_SOURCE=neuronx-distributed NXDT_SOURCE=neuronx-distributed-training pytest --noconftest tests/real/check_nxdt_models.py

The two name source trees. Run by `nox -s real_nxdt_models`, in an environment of its own.
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
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from ckpt_core import convert

HERE = Path(__file__).parent
TOLERANCE = 1e-4
SIZES: dict[str, Any] = {
    "vocab_size": 208, "hidden_size": 96, "intermediate_size": 144, "num_hidden_layers": 5, "num_attention_heads": 12,
    "max_position_embeddings": 64, "rope_theta": 5000.0, "tie_word_embeddings": False,
}  # fmt: skip
MODELS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=6),
    "llama_mha": LlamaConfig(**SIZES, num_key_value_heads=12),
    "llama_kv2": LlamaConfig(**SIZES, num_key_value_heads=2),
    "mixtral": MixtralConfig(**SIZES, num_key_value_heads=6, num_local_experts=4, num_experts_per_tok=2),
}
# The ranks and hardware of one run, and its cases: model, qkv, copies of key-value heads, pp, vpp, more options.
RUNS: dict[tuple[int, int, str], list[tuple]] = {
    (2, 1, "trn1"): [
        ("llama", "linear", 1, 1, 1, {}),
        ("llama", "fused", 1, 2, 1, {}),
        ("llama", "fused", 1, 2, 2, {"xser": "true"}),
        ("llama_mha", "split", 1, 2, 1, {}),
        ("llama_mha", "coalesced", 1, 1, 1, {}),
        ("mixtral", "split", 1, 1, 1, {}),
        ("mixtral", "fused", 1, 2, 1, {"xser": "true"}),
    ],
    (4, 1, "trn1"): [("llama_kv2", "linear", 2, 1, 1, {}), ("llama_kv2", "fused", 2, 2, 1, {})],
    (4, 1, "trn2"): [("llama_kv2", "linear", 2, 1, 1, {}), ("llama_kv2", "fused", 2, 2, 1, {})],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HF folders of random models, each with input ids and transformers' own logits beside it."""
    folder = tmp_path_factory.mktemp("hf")
    for name, config in MODELS.items():
        torch.manual_seed(7)
        network = AutoModelForCausalLM.from_config(config).float().eval()
        tokens = torch.randint(0, 208, (2, 37))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            logits = network(tokens).logits
        network.save_pretrained(folder / name)
        save_file({"input_ids": tokens}, folder / f"{name}.ids.safetensors")
        save_file({"logits": logits.contiguous()}, folder / f"{name}.logits.safetensors")
    return folder


def sources() -> str:
    """The source trees, as a PYTHONPATH."""
    trees = [os.environ.get(name) for name in ("NXD_SOURCE", "NXDT_SOURCE")]
    if not all(trees):
        pytest.skip("NXD_SOURCE and NXDT_SOURCE name no source trees")
    return os.pathsep.join(str(Path(tree, "src").resolve()) for tree in trees if tree)


def run(models: Path, work: Path, topology: tuple[int, int, str], cases: list[tuple]) -> dict[str, float]:
    """How far the framework's logits of each case are from those of transformers."""
    tp, ep, hardware = topology
    asked = {}
    for model, qkv, copies, pp, vpp, more in cases:
        name = f"{model}-{qkv}-kv{copies}-pp{pp}-vpp{vpp}"
        options = {
            "qkv": qkv,
            "kv_size_multiplier": str(copies),
            "hw_backend": hardware,
            "virtual_pp": str(vpp),
            **more,
        }
        layout = {"tp": tp, "pp": pp} | ({"ep": ep} if ep > 1 else {})
        convert(models / model, work / name, to="nxdt", **layout, options=options)
        asked[name] = {"hf": str(models / model), "folder": str(work / name)}
    (work / "cases.json").write_text(json.dumps(asked))
    command = [
        sys.executable,
        HERE / "nxdt_judge.py",
        work / "cases.json",
        work,
        f"--tp={tp}",
        f"--ep={ep}",
        f"--hw={hardware}",
    ]
    environment = {**os.environ, "PYTHONPATH": sources(), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    wrong = {name: (work / f"{name}.error").read_text() for name in asked if (work / f"{name}.error").exists()}
    assert done.returncode == 0 and not wrong, "\n".join([*wrong.values(), done.stderr[-4000:]])
    found = {}
    for name, case in asked.items():
        expected = load_file(f"{case['hf']}.logits.safetensors")["logits"]
        found[name] = (load_file(work / f"{name}.safetensors")["logits"] - expected).abs().max().item()
        print(f"nxdt tp{tp} ep{ep} {hardware} {name}: loads; logits differ by {found[name]:.1e}")
    return found


@pytest.mark.parametrize("topology", RUNS, ids=lambda topology: "-".join(map(str, topology)))
def test_nxdt_computes_what_transformers_computes(models: Path, tmp_path: Path, topology: tuple[int, int, str]) -> None:
    differences = run(models, tmp_path, topology, RUNS[topology])
    assert max(differences.values()) <= TOLERANCE, differences


def test_the_judge_sees_queries_beside_the_heads_of_others(models: Path, tmp_path: Path) -> None:
    """The check can fail: AWS's own converter pairs heads wrongly for trn2, and the logits are far off."""
    wrong = {"layout": "aws-converter"}
    differences = run(models, tmp_path, (4, 1, "trn2"), [("llama_kv2", "linear", 2, 1, 1, wrong)])
    assert min(differences.values()) > 0.1, differences
