"""Steps that we write, judged by the released torchtitan: its own models load every tensor, and compute what transformers computes.

torchtitan's Llama3Model and Qwen3Model with fused queries, keys and values, built from its own config classes; its attention is that of torch,
as FlexAttention is for a GPU. Run in the environment of `requirements-torchtitan.txt`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torchtitan.models import llama3, qwen3
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import ScaledDotProductAttention

from ckpt_core import convert
from ckpt_core.testing import example
from ckpt_core.testing.examples import calm_numbers, write_ir
from ckpt_tests.models import load, weights

TOLERANCE = 1e-4
EPS = 1e-6
SIZES = {"attention__head_dim": 12, "hidden": 144}
SIZES |= {f"{norm}__eps": EPS for norm in ("attention__norm", "mlp__norm", "final_norm")}
QK = {"attention__qk_norm__kind": "rms", "attention__qk_norm__eps": EPS}
MODELS = {
    "llama3": example("llama", layers=2, **SIZES),
    "llama3, tied": example("llama", layers=2, head__tied=True, **SIZES),
    "qwen3": example("llama", layers=2, **SIZES, **QK),
    "qwen3, tied": example("llama", layers=2, head__tied=True, **SIZES, **QK),
}


def own_model(folder: Path, family: ModuleType) -> torch.nn.Module:
    """torchtitan's model of the sizes in transformers' config, with numbers of its own."""
    said = load(folder).config
    dim, vocabulary, halves = said.hidden_size, said.vocab_size, family is qwen3
    rotary = (CosSinRoPE if halves else ComplexRoPE).Config
    layers = (qwen3._build_qwen3_layers if halves else llama3._build_llama3_layers)(
        n_layers=said.num_hidden_layers,
        dim=dim,
        n_heads=said.num_attention_heads,
        n_kv_heads=said.num_key_value_heads,
        hidden_dim=said.intermediate_size,
        rope=rotary(dim=said.head_dim, max_seq_len=64, theta=said.rope_parameters["rope_theta"]),
        fuse_qkv=True,
        attn_backend="flex",
        **({"head_dim": said.head_dim} if halves else {}),
    )
    for layer in layers:
        layer.attention_norm.eps = layer.ffn_norm.eps = EPS
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    config = (qwen3.Qwen3Model if halves else llama3.Llama3Model).Config(
        dim=dim,
        vocab_size=vocabulary,
        enable_weight_tying=said.tie_word_embeddings,
        tok_embeddings=Embedding.Config(num_embeddings=vocabulary, embedding_dim=dim),
        norm=RMSNorm.Config(normalized_shape=dim, eps=EPS),
        lm_head=Linear.Config(in_features=dim, out_features=vocabulary),
        layers=layers,
    )
    return config.build()


@pytest.mark.parametrize("model", MODELS)
def test_its_own_model_loads_every_tensor_and_computes_the_same(model: str, tmp_path: Path) -> None:
    source = write_ir(tmp_path / "ir", MODELS[model], values=calm_numbers)
    convert(source, tmp_path / "hf", to="hf")
    convert(source, tmp_path / "step", to="torchtitan")
    family = qwen3 if model.startswith("qwen3") else llama3
    own = own_model(tmp_path / "hf", family)
    state = own.state_dict()
    dcp.load(state, checkpoint_id=str(tmp_path / "step"), no_dist=True)
    own.load_state_dict(state)
    kind = qwen3.Qwen3StateDictAdapter if family is qwen3 else llama3.Llama3StateDictAdapter
    adapter = kind(own.config, None)
    exported, wanted = adapter.to_hf(own.state_dict()), weights(tmp_path / "hf")
    assert exported.keys() - wanted.keys() <= {"lm_head.weight"}
    assert all(torch.equal(exported[name], tensor) for name, tensor in wanted.items())
    tokens = torch.arange(24).reshape(2, 12) % 61
    with torch.no_grad():
        assert (own(tokens) - load(tmp_path / "hf")(tokens).logits).abs().max() < TOLERANCE
