"""Memory is what was asked for, however large the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_core.api import plan_conversion
from ckpt_core.storage.dtypes import BF16
from ckpt_core.storage.safetensors import plan_file

HUNGRY = Path(__file__).with_name("hungry.py")
BUDGET = 128 << 20


def large(folder: Path, layers: int) -> Path:
    """A Llama of sparse files: 78 MB of zeros in bf16 per layer, that occupy no disk. Transposing one takes 34 MB at least."""
    hidden, ffn, vocabulary = 2048, 8192, 16384
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn, "vocab_size": vocabulary,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (hidden,), "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (512, hidden),
                "self_attn.v_proj": (512, hidden), "self_attn.o_proj": (hidden, hidden), "post_attention_layernorm": (hidden,),
                "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn),
            }.items()
        }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    plan = plan_file({name: (BF16, shape) for name, shape in shapes.items()}, {"format": "pt"})
    with open(folder / "model.safetensors", "wb") as file:
        file.write(plan.header)
        file.truncate(plan.size)
    return folder


def measured(source: Path, destination: Path, **arguments: object) -> dict:
    asked = {"source": str(source), "destination": str(destination), "arguments": arguments}
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run([sys.executable, str(HUNGRY), json.dumps(asked)], capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# every row is permuted (interleaved rotary), every column split over ranks
WAYS = {
    "split over ranks": {"to": "nanotron", "tp": 2},
    "interleaved, in fp32": {"to": "nanotron", "tp": 4, "dtype": "fp32", "options": {"target": "0.4"}},
    "into one .bin": {"to": "hf", "options": {"container": "bin"}},
}


@pytest.mark.parametrize("arguments", WAYS.values(), ids=WAYS)
def test_private_memory_stays_within_the_budget(arguments: dict, tmp_path: Path) -> None:
    source = large(tmp_path / "hf", layers=3)
    size = (source / "model.safetensors").stat().st_size
    assert size > 300 << 20
    found = measured(source, tmp_path / "out", **arguments, max_memory=BUDGET, workers=2)
    assert found["samples"] > 20
    assert found["peak"] <= BUDGET, f"{found['peak'] >> 20} MiB for a model of {size >> 20} MiB"


def test_the_plan_says_no_less_than_what_is_used(tmp_path: Path) -> None:
    source = large(tmp_path / "hf", layers=1)
    arguments = {"to": "nanotron", "tp": 2, "max_memory": BUDGET, "workers": 2}
    plan = plan_conversion(source, tmp_path / "out", **arguments)
    found = measured(source, tmp_path / "out", **arguments)
    assert found["peak"] <= plan.peak_memory <= BUDGET


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks = []
    for layers in (1, 4):
        source = large(tmp_path / f"hf{layers}", layers)
        peaks.append(measured(source, tmp_path / f"out{layers}", to="nanotron", tp=2, max_memory=BUDGET, workers=2)["peak"])
    assert peaks[1] <= peaks[0] + (16 << 20)
