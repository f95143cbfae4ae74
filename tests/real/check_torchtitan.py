"""Steps that we write, judged by the released torchtitan: its own models load every tensor, and compute what transformers computes.

Llama3Model, Qwen3Model (dense and mixtures) and DeepSeekV3Model, built from torchtitan's own config classes. Its attention is that of torch, as
FlexAttention is for a GPU, and experts are computed one after the other in float32, where torchtitan has a kernel in bfloat16. Run in the environment
of `requirements-torchtitan.txt`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
import transformers
from torchtitan.models import deepseek_v3, llama3, qwen3
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import FlexAttention, ScaledDotProductAttention
from torchtitan.models.common.moe import GroupedExperts

from ckpt_core import convert
from ckpt_core.api import config_architecture
from ckpt_core.testing import example
from ckpt_core.testing.examples import ABSENT, calm_numbers, write_ir
from ckpt_tests.models import load, weights

TOLERANCE = 1e-4
EPS = 1e-6
SIZES = {"attention__head_dim": 12, "hidden": 144}
SIZES |= {f"{norm}__eps": EPS for norm in ("attention__norm", "mlp__norm", "final_norm")}
QK = {"attention__qk_norm__kind": "rms", "attention__qk_norm__eps": EPS}
MIXTURE = {"mlp__moe__router__normalise": True, "mlp__moe__shared__ffn": ABSENT, "mlp__moe__shared__gate": ABSENT}
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.7,
    "mscale_all_dim": 0.7,
}  # fmt: skip
DEEPSEEK = {
    "hidden_size": 132, "vocab_size": 212, "kv_lora_rank": 24, "qk_nope_head_dim": 14, "qk_rope_head_dim": 10, "v_head_dim": 16, "rms_norm_eps": EPS,
    "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 3, "intermediate_size": 56, "moe_intermediate_size": 20,
    "first_k_dense_replace": 1, "n_routed_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "n_shared_experts": 2,
    "max_position_embeddings": 128,
}  # fmt: skip
MODELS = {
    "llama3": example("llama", layers=2, **SIZES),
    "llama3, tied": example("llama", layers=2, head__tied=True, **SIZES),
    "qwen3": example("llama", layers=2, **SIZES, **QK),
    "qwen3, tied": example("llama", layers=2, head__tied=True, **SIZES, **QK),
    "qwen3, mixture": example("moe", layers=2, **SIZES, **QK, **MIXTURE),
    "deepseek_v3, groups": {**DEEPSEEK, "q_lora_rank": 44, "n_group": 2, "topk_group": 1},
    "deepseek_v3, yarn": {**DEEPSEEK, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "rope_parameters": YARN},
}


def source_of(model: str, folder: Path) -> Path:
    """The model as an HF folder."""
    made = MODELS[model]
    if not isinstance(made, dict):
        convert(write_ir(folder / "ir", made, values=calm_numbers), folder / "hf", to="hf")
        return folder / "hf"
    torch.manual_seed(3)
    built = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**made))
    with torch.no_grad():
        for name, tensor in (*built.named_parameters(), *built.named_buffers()):
            if "norm" in name:
                tensor.add_(torch.randn_like(tensor) / 8)
            elif "correction_bias" in name:
                tensor.copy_(torch.randn_like(tensor) / 4)
            elif "inv_freq" not in name:
                tensor.mul_(4)  # what transformers begins with is too small to tell one routing from another
    built.save_pretrained(folder / "hf")
    return folder / "hf"


def grouped(said: Any) -> list[Any]:
    """The layers of a model with grouped attention."""
    family = qwen3 if said.model_type != "llama" else llama3
    rotary = CosSinRoPE if family is qwen3 else ComplexRoPE
    common = {
        "n_layers": said.num_hidden_layers,
        "dim": said.hidden_size,
        "n_heads": said.num_attention_heads,
        "n_kv_heads": said.num_key_value_heads,
        "rope": rotary.Config(dim=said.head_dim, max_seq_len=64, theta=said.rope_parameters["rope_theta"]),
        "fuse_qkv": True,
        "attn_backend": "flex",
    }
    if said.model_type == "qwen3_moe":
        sizes = {
            "moe_hidden_dim": said.moe_intermediate_size,
            "num_experts": said.num_experts,
            "top_k": said.num_experts_per_tok,
        }
        return qwen3._build_qwen3_moe_layers(**common, **sizes, head_dim=said.head_dim, moe_comm_backend="standard")
    build: Callable[..., list[Any]] = qwen3._build_qwen3_layers if family is qwen3 else llama3._build_llama3_layers
    return build(
        **common, hidden_dim=said.intermediate_size, **({"head_dim": said.head_dim} if family is qwen3 else {})
    )


def latent(said: Any) -> list[Any]:
    """The layers of a DeepSeek V3."""
    rotary, groups = said.rope_parameters, said.n_group if said.n_group > 1 else None
    yarn = (
        {
            "scaling": "yarn",
            "rope_factor": rotary["factor"],
            "beta_fast": rotary["beta_fast"],
            "beta_slow": rotary["beta_slow"],
            "original_seq_len": rotary["original_max_position_embeddings"],
        }
        if rotary["rope_type"] == "yarn"
        else {}
    )
    return deepseek_v3._build_dsv3_layers(
        n_layers=said.num_hidden_layers,
        n_dense_layers=said.first_k_dense_replace,
        dim=said.hidden_size,
        n_heads=said.num_attention_heads,
        q_lora_rank=said.q_lora_rank or 0,
        kv_lora_rank=said.kv_lora_rank,
        qk_nope_head_dim=said.qk_nope_head_dim,
        qk_rope_head_dim=said.qk_rope_head_dim,
        v_head_dim=said.v_head_dim,
        mscale=rotary.get("mscale", 1.0),
        dense_hidden_dim=said.intermediate_size,
        moe_hidden_dim=said.moe_intermediate_size,
        num_experts=said.n_routed_experts,
        num_shared_experts=said.n_shared_experts,
        router_top_k=said.num_experts_per_tok,
        router_score_func="sigmoid",
        router_num_expert_groups=groups,
        router_num_limited_groups=groups and said.topk_group,
        router_route_scale=said.routed_scaling_factor,
        router_route_norm=said.norm_topk_prob,
        attn_backend="flex",
        moe_comm_backend="standard",
        non_blocking_capacity_factor=None,
        rope=ComplexRoPE.Config(dim=said.qk_rope_head_dim, max_seq_len=64, theta=rotary["rope_theta"], **yarn),
    )


def own_config(folder: Path) -> Any:
    """torchtitan's config of the sizes in transformers' config."""
    said = load(folder).config
    is_latent = said.model_type == "deepseek_v3"
    kind = {"llama": llama3.Llama3Model, "deepseek_v3": deepseek_v3.DeepSeekV3Model}.get(
        said.model_type, qwen3.Qwen3Model
    )
    dim, vocabulary = said.hidden_size, said.vocab_size
    config = kind.Config(
        dim=dim,
        vocab_size=vocabulary,
        enable_weight_tying=said.tie_word_embeddings,
        tok_embeddings=Embedding.Config(num_embeddings=vocabulary, embedding_dim=dim),
        norm=RMSNorm.Config(normalized_shape=dim),
        lm_head=Linear.Config(in_features=dim, out_features=vocabulary),
        layers=latent(said) if is_latent else grouped(said),
    )
    for _, norm, _, _ in config.traverse(RMSNorm.Config):
        norm.eps = EPS
    return config


def in_float32(self: GroupedExperts, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """What GroupedExperts computes, in float32."""
    parts = rows.split(counts.tolist())
    return torch.cat(
        [
            (F.silu(part @ self.w1_EFD[number].T) * (part @ self.w3_EFD[number].T)) @ self.w2_EDF[number].T
            for number, part in enumerate(parts)
        ]
    )


@pytest.mark.parametrize("model", MODELS)
def test_its_own_model_loads_every_tensor_and_computes_the_same(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(model, tmp_path)
    convert(source, tmp_path / "step", to="torchtitan")
    config = own_config(source)
    said = {"model_spec": {"name": model.partition(",")[0], "flavor": "own", "model": config.to_dict()}}
    (tmp_path / "run.json").write_text(json.dumps(said))
    for _, _, around, name in config.traverse(FlexAttention.Config):
        setattr(around, str(name), ScaledDotProductAttention.Config())
    monkeypatch.setattr(GroupedExperts, "forward", in_float32)
    own = config.build()
    state = own.state_dict()
    dcp.load(state, checkpoint_id=str(tmp_path / "step"), no_dist=True)
    own.load_state_dict(state)
    adapters = {
        llama3.Llama3Model: llama3.Llama3StateDictAdapter,
        qwen3.Qwen3Model: qwen3.Qwen3StateDictAdapter,
        deepseek_v3.DeepSeekV3Model: deepseek_v3.DeepSeekV3StateDictAdapter,
    }
    exported = adapters[type(own)](config, None).to_hf(own.state_dict())
    wanted = weights(source)
    assert exported.keys() - wanted.keys() <= {"lm_head.weight"}
    assert all(torch.equal(exported[name], tensor) for name, tensor in wanted.items())
    tokens = torch.arange(48).reshape(2, 24) % 61
    with torch.no_grad():
        assert (own(tokens) - load(source)(tokens).logits).abs().max() < TOLERANCE
    # its own config says of the model what transformers' says
    architecture = config_architecture(str(tmp_path / "run.json"))
    assert architecture == config_architecture(str(source / "config.json"))
    (tmp_path / "step/config.json").unlink()
    (tmp_path / "step/ckpt-receipt.json").unlink()
    convert(tmp_path / "step", tmp_path / "back", to="hf", config=str(tmp_path / "run.json"))
    back = weights(tmp_path / "back")
    assert back.keys() == wanted.keys() and all(torch.equal(back[name], tensor) for name, tensor in wanted.items())
