"""HF -> Megatron, judged by the real Megatron-Core: what we write it loads strictly, and its logits are transformers'.

Run by `nox -s real_megatron`, in an environment of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, Qwen3Config

from ckpt_core import convert
from ckpt_core.api import read_checkpoint
from ckpt_megatron import own
from ckpt_tests.rows import wrong_sentences

JUDGE = Path(__file__).parent / "megatron_judge.py"
TOLERANCE = 1e-4

# Sizes are pairwise different; 37 positions are enough for a wrong rotary order to show.
SIZES = {
    "vocab_size": 203, "hidden_size": 96, "intermediate_size": 144, "num_hidden_layers": 4, "num_attention_heads": 12,
    "num_key_value_heads": 6, "max_position_embeddings": 64, "rope_theta": 5000.0,
}  # fmt: skip
LLAMA31 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
MODELS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama31": LlamaConfig(**{**SIZES, "rope_parameters": LLAMA31}, attention_bias=True),
    "qwen3_tied": Qwen3Config(**SIZES, head_dim=10, tie_word_embeddings=True),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "gpt2": GPT2Config(vocab_size=203, n_embd=96, n_inner=144, n_layer=4, n_head=12, n_positions=64),
}
# container, ranks to write for, ranks that load it: torch_dist suits any
LAYOUTS = [
    ("torch", {"tp": 2, "pp": 1}, {"tp": 2, "pp": 1}),
    ("torch", {"tp": 2, "pp": 2}, {"tp": 2, "pp": 2}),
    ("torch_dist", {}, {"tp": 1, "pp": 2}),
    ("torch_dist", {}, {"tp": 2, "pp": 1}),
]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HF folder of a random model, with input ids and transformers' own logits beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(7)
    network = AutoModelForCausalLM.from_config(MODELS[request.param], dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        tokens = torch.randint(0, 203, (2, 37))
        logits = network(tokens).logits
    network.save_pretrained(folder / "hf")
    save_file({"input_ids": tokens}, folder / "tokens.safetensors")
    save_file({"logits": logits.contiguous()}, folder / "expected.safetensors")
    return folder


def off(run: Path, folder: Path, **ranks: int) -> float:
    """How far the real Megatron's logits, of any topology, are from those of transformers at the most."""
    out = run / "logits.safetensors"
    topology = [word for name, size in ranks.items() for word in (f"--{name}", str(size))]
    command = [sys.executable, str(JUDGE), str(run), str(folder / "tokens.safetensors"), str(out), *topology]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    expected = load_file(folder / "expected.safetensors")["logits"]
    return (load_file(out)["logits"][..., : expected.shape[-1]] - expected).abs().max().item()


def options(container: str, **more: str) -> dict[str, str]:
    """TransformerEngine needs a GPU: the judge has local modules, and experts one by one."""
    return {"container": container, "names": "local", "experts": "sequential", **more}


@pytest.mark.parametrize(("container", "written", "read"), LAYOUTS)
def test_megatron_computes_what_transformers_computes(
    model: Path, tmp_path: Path, container: str, written: dict[str, int], read: dict[str, int]
) -> None:
    # a vocabulary of 203 is padded for 2 ranks, whichever load it
    padding = {"make_vocab_size_divisible_by": str(16 * 2 // written.get("tp", 1))}
    convert(model / "hf", tmp_path / "run", to="megatron", **written, options=options(container, **padding))
    assert off(tmp_path / "run", model, **read) <= TOLERANCE


@pytest.mark.parametrize("model", ["mixtral"], indirect=True)
@pytest.mark.parametrize("container", ["torch", "torch_dist"])
def test_megatron_shares_experts_out(model: Path, tmp_path: Path, container: str) -> None:
    written = {"ep": 2} if container == "torch" else {}
    convert(model / "hf", tmp_path / "run", to="megatron", **written, options=options(container))
    assert off(tmp_path / "run", model, ep=2) <= TOLERANCE


@pytest.mark.parametrize("model", ["llama"], indirect=True)
@pytest.mark.parametrize("container", ["torch", "torch_dist"])
def test_the_judge_sees_gate_and_up_exchanged(
    model: Path, tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check can fail: of what is written in another order than Megatron's, the logits are far off."""
    wrong_sentences(monkeypatch, {"((gate + up) f) h": "((up + gate) f) h"}, "mlp.linear_fc1.weight")
    convert(model / "hf", tmp_path / "run", to="megatron", tp=2, options=options(container))
    assert off(tmp_path / "run", model, tp=2) > 0.1


@pytest.mark.parametrize(("container", "written"), [("torch", {"tp": 2, "pp": 2}), ("torch_dist", {})], ids=str)
def test_verify_names_megatron(model: Path, tmp_path: Path, container: str, written: dict[str, int]) -> None:
    """`ckpt verify --logits` asks Megatron-Core, and says so; what TransformerEngine alone could load it says too."""
    judged = f"{tmp_path / 'run'} loaded by its own framework, megatron-core 0.16.1: "
    alone = f"{tmp_path / 'run'} by the reference forward alone: megatron-core 0.16.1: the files have the names of Tr"
    convert(model / "hf", tmp_path / "run", to="megatron", **written, options=options(container))
    assert judged in verified(model / "hf", tmp_path / "run")
    convert(model / "hf", tmp_path / "run", to="megatron", **written, options={"container": container}, overwrite=True)
    dense = container == "torch_dist" and not model.name.startswith("mixtral")  # whose names are the same
    assert (judged if dense else alone) in verified(model / "hf", tmp_path / "run")


def verified(source: Path, run: Path) -> str:
    """What `ckpt verify --logits` prints, which must pass."""
    command = [sys.executable, "-m", "ckpt_core", "verify", source, run, "--logits"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_megatron_refuses_files_that_lack_a_tensor(model: Path, tmp_path: Path) -> None:
    convert(model / "hf", tmp_path / "run", to="megatron", options=options("torch"))
    checkpoint = read_checkpoint(tmp_path / "run", format="megatron")
    (file,) = (tmp_path / "run").rglob("model_optim_rng.pt")
    content = torch.load(file, weights_only=False)
    del content["model"]["decoder.final_layernorm.weight"]
    torch.save(content, file)
    tokens = load_file(model / "tokens.safetensors")["input_ids"].numpy()
    judgement = own.judged(checkpoint, {"tokens": tokens})
    assert judgement is not None and "final_layernorm" in judgement.refused, judgement
