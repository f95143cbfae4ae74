"""Nanotron and HF, judged by the released nanotron itself: what we write it loads, and what it saves we read; the logits agree.

Run by `nox -s real_nanotron`, in an environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Starcoder2Config, Starcoder2ForCausalLM

from ckpt_core import convert
from ckpt_tests.rows import wrong_sentences

JUDGE = Path(__file__).parent / "nanotron_judge.py"
TOLERANCE = 1e-4

# Sizes are pairwise different, and 37 positions are enough for a wrong rotary order to show.
MODELS = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=203, hidden_size=96, intermediate_size=144, num_hidden_layers=5, num_attention_heads=12,
            num_key_value_heads=6, rms_norm_eps=1e-5, max_position_embeddings=64, rope_theta=10000.0,
        )
    ),
    "llama_tied": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=203, hidden_size=96, intermediate_size=144, num_hidden_layers=3, num_attention_heads=12,
            num_key_value_heads=6, rms_norm_eps=1e-5, max_position_embeddings=64, tie_word_embeddings=True,
        )
    ),
    "starcoder2": lambda: Starcoder2ForCausalLM(
        Starcoder2Config(
            vocab_size=203, hidden_size=96, intermediate_size=144, num_hidden_layers=3, num_attention_heads=12,
            num_key_value_heads=6, max_position_embeddings=64, tie_word_embeddings=True, sliding_window=None,
            bos_token_id=1, eos_token_id=2,
        )
    ),
    "starcoder2_multi": lambda: Starcoder2ForCausalLM(
        Starcoder2Config(
            vocab_size=203, hidden_size=96, intermediate_size=144, num_hidden_layers=3, num_attention_heads=12,
            num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, sliding_window=None,
            bos_token_id=1, eos_token_id=2,
        )
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HF folder of a random model, with input ids and transformers' own logits beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(7)
    network = MODELS[request.param]().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        tokens = torch.randint(0, 203, (2, 37))
        logits = network(tokens).logits
    network.save_pretrained(folder / "hf")
    save_file({"input_ids": tokens}, folder / "tokens.safetensors")
    save_file({"logits": logits.contiguous()}, folder / "expected.safetensors")
    return folder


def judged(step: Path, folder: Path, tp: int, pp: int, *more: str) -> torch.Tensor:
    """The logits of the real nanotron for a step folder, in a topology of its own."""
    out = folder / f"judged-{tp}-{pp}.safetensors"
    command = [
        sys.executable,
        str(JUDGE),
        str(step),
        str(folder / "tokens.safetensors"),
        str(out),
        "--tp",
        str(tp),
        "--pp",
        str(pp),
        *more,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)["logits"]


@pytest.mark.parametrize(
    ("tp", "pp", "loaded_tp", "loaded_pp"),
    [(1, 1, 1, 1), (2, 1, 2, 1), (2, 2, 2, 2), (3, 2, 1, 1), (1, 2, 2, 1)],
    ids=lambda value: str(value),
)
def test_nanotron_computes_what_transformers_computes(
    model: Path, tmp_path: Path, tp: int, pp: int, loaded_tp: int, loaded_pp: int
) -> None:
    # a vocabulary of 203 must be padded for the ranks that will load it, not only for those it is written for
    options = {"target": "0.4", "make_vocab_size_divisible_by": str(loaded_tp)}
    convert(model / "hf", tmp_path / "run", to="nanotron", tp=tp, pp=pp, options=options)
    logits = judged(tmp_path / "run" / "0", model, loaded_tp, loaded_pp)
    expected = load_file(model / "expected.safetensors")["logits"]
    assert (logits[..., : expected.shape[-1]] - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(("groups", "tp"), [(1, 1), (3, 1), (6, 2), (12, 2)], ids=str)
def test_transformers_computes_what_nanotron_saved(tmp_path: Path, groups: int, tp: int) -> None:
    """Starcoder2 with `grouped_query`, whose attention has tensors of its own even if it has one key-value head."""
    config = {
        "activation_function": "gelu_pytorch_tanh", "grouped_query": True, "multi_query": False, "num_kv_heads": groups,
        "num_attention_heads": 12, "num_hidden_layers": 3,
        "hidden_size": 96, "intermediate_size": 144, "max_position_embeddings": 64, "vocab_size": 204, "is_starcoder2_config": True,
    }  # fmt: skip
    step = tmp_path / "run" / "0"
    step.mkdir(parents=True)
    (step / "model_config.json").write_text(json.dumps(config))
    tokens = torch.randint(0, 204, (2, 37), generator=torch.Generator().manual_seed(1))
    save_file({"input_ids": tokens}, tmp_path / "tokens.safetensors")
    expected = judged(step, tmp_path, tp, 1, "--save")
    assert any(path.name == "query_key_value" for path in step.rglob("*"))
    convert(step, tmp_path / "hf", to="hf")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert (network(tokens).logits - expected).abs().max() < TOLERANCE
    convert(tmp_path / "hf", tmp_path / "back", to="nanotron", tp=tp)
    assert (judged(tmp_path / "back" / "0", tmp_path, tp, 1) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_the_judge_sees_a_wrong_rotary_order(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: heads written half-split, as release 0.4 does not read them, are seen."""
    interleaved, half = "(q[g r (e c + o)] + k[g (e c + o)] + v[g d]) h", "(q[g r d] + k[g d] + v[g d]) h"
    wrong_sentences(monkeypatch, {interleaved: half})
    convert(model / "hf", tmp_path / "run", to="nanotron", options={"target": "0.4"})
    logits = judged(tmp_path / "run" / "0", model, 1, 1)
    expected = load_file(model / "expected.safetensors")["logits"]
    assert (logits[..., : expected.shape[-1]] - expected).abs().max() > 0.1


def test_nanotron_accepts_the_training_config(model: Path, tmp_path: Path) -> None:
    """dacite refuses unknown keys at every level; a union of config classes silently falls back to a dict."""
    convert(model / "hf", tmp_path / "run", to="nanotron", tp=2, options={"target": "0.4"})
    script = (
        "import sys, nanotron_stubs; nanotron_stubs.install()\n"
        "from nanotron.config import get_config_from_file\n"
        "config = get_config_from_file(sys.argv[1])\n"
        "print(type(config.model.model_config).__name__, config.model.init_method.path, config.parallelism.tp)"
    )
    step = tmp_path / "run" / "0"
    done = subprocess.run(
        [sys.executable, "-c", script, str(step / "config.yaml")], capture_output=True, text=True, cwd=JUDGE.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = "Starcoder2Config" if model.name.startswith("starcoder2") else "LlamaConfig"
    assert done.stdout.split() == [expected, str(step), "2"]


@pytest.mark.parametrize("model", ["llama", "starcoder2"], indirect=True)
def test_verify_names_nanotron(model: Path, tmp_path: Path) -> None:
    """`ckpt verify --logits` asks nanotron: as released it says why it cannot judge here, with the stand-ins it judges."""
    convert(model / "hf", tmp_path / "run", to="nanotron", tp=2, pp=2, options={"target": "0.4"})
    said = verified(model / "hf", tmp_path / "run")
    assert f"{tmp_path / 'run'} by the reference forward alone: nanotron 0.4: " in said
    folders = (JUDGE.parent / "nanotron_site", JUDGE.parent)  # of sitecustomize, and of the stand-ins that it imports
    site = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    said = verified(model / "hf", tmp_path / "run", site)
    assert f"{tmp_path / 'run'} loaded by its own framework, nanotron 0.4: " in said


def verified(source: Path, run: Path, environment: dict[str, str] | None = None) -> str:
    """What `ckpt verify --logits` prints, which must pass."""
    command = [sys.executable, "-m", "ckpt_core", "verify", source, run, "--logits"]
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
