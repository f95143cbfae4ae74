"""vLLM's own code takes the folders that we write: its config, its class, its loader of weights, and logits of its model.

vLLM's wheel has kernels for CUDA alone. So its models run here with torch's attention in the place of its kernels, and with its own native
implementations of everything else; the loader that cuts and fuses weights (q, k, v; gate, up) is vLLM's. Mixtures are not run: their kernel is
Triton's. Run in the environment of `requirements-vllm.txt`, by `nox -s real_vllm`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from transformers import AutoModelForCausalLM
from vllm.config import CompilationConfig, DeviceConfig, LoadConfig, ModelConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import (
    destroy_distributed_environment,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.forward_context import set_forward_context
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import get_model_architecture, initialize_model

from ckpt_core import convert
from ckpt_tests.goldens import root

CASES = {
    "nanotron/main_llama_tp2_pp1_bf16": "LlamaForCausalLM",
    "nanotron/main_llama_tied_tp2_pp2": "LlamaForCausalLM",
    "megatron/qwen3_tied_tp2_pp2_torch_dist": "Qwen3ForCausalLM",
    "megatron/legacy_ckptver0_gpt2_tp2": "GPT2LMHeadModel",
    "megatron-bridge/gpt_shouldpad_tp2": "GPT2LMHeadModel",
    "nemo-gpt/mcore-llama-gqa-tp2-nemo-distckpt": "LlamaForCausalLM",
    "nemo2/llama31_gqa_tp2": "LlamaForCausalLM",
}
TOLERANCE = 1e-5
"""Of the largest logit; vLLM and transformers fuse and add up in other orders."""


class Attention(nn.Module):
    """Causal attention of one sequence, as vLLM's of the same arguments: q [token, heads * d], k and v [token, groups * d]."""

    def __init__(self, num_heads: int, head_size: int, scale: float, num_kv_heads: int | None = None, **rest: Any):
        super().__init__()
        assert not rest.get("per_layer_sliding_window") and not rest.get("alibi_slopes"), rest
        self.heads, self.size, self.scale, self.groups = num_heads, head_size, scale, num_kv_heads or num_heads

    def forward(self, *qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            one.view(len(one), count, self.size).transpose(0, 1).repeat_interleave(self.heads // count, 0)
            for one, count in zip(qkv, (self.heads, self.groups, self.groups), strict=True)
        )
        seen = functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=self.scale)
        return seen[0].transpose(0, 1).flatten(1)


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    """vLLM's layers ask how many ranks there are."""
    config = VllmConfig(device_config=DeviceConfig(device="cpu"))
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, "tcp://127.0.0.1:29518", 0, "gloo")
        initialize_model_parallel(1, 1)
        yield
    destroy_distributed_environment()


@pytest.mark.parametrize("case", CASES)
def test_its_logits_are_those_of_transformers(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = root() / case / "checkpoint"
    convert(next(source.glob("*.nemo"), source), tmp_path / "hf", to="hf")
    folder = str(tmp_path / "hf")
    model_config = ModelConfig(
        model=folder, tokenizer=folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True
    )
    config = VllmConfig(
        model_config=model_config,
        load_config=LoadConfig(load_format="safetensors", use_tqdm_on_load=False),
        device_config=DeviceConfig(device="cpu"),
        compilation_config=CompilationConfig(custom_ops=["none"]),
    )
    kind, name = get_model_architecture(model_config)
    assert name == CASES[case]
    for module in {one.__module__ for one in kind.__mro__ if one.__module__.startswith("vllm.model_executor.models.")}:
        monkeypatch.setattr(importlib.import_module(module), "Attention", Attention, raising=False)
    with set_current_vllm_config(config), torch.no_grad():
        model = initialize_model(vllm_config=config)
        get_model_loader(config.load_config).load_weights(model, model_config)
        count = min(24, model_config.max_model_len)
        tokens = torch.randint(model_config.get_vocab_size(), (count,), generator=torch.Generator().manual_seed(0))
        with set_forward_context(None, config):
            logits = model.compute_logits(model(tokens, torch.arange(count), None))
        wanted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens[None]).logits[0]
    assert torch.allclose(logits, wanted, rtol=0, atol=TOLERANCE * float(wanted.abs().max()))
