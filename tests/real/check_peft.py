"""Adapters merged into their base, judged by the released PEFT: each tensor of ours is that of its own `merge_and_unload`, bit for bit.

Run in the environment of `requirements-peft.txt`; needs no GPU. What PEFT takes from MKL and from AVX2 is what torch has on a CPU of x86.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from ckpt_core import convert
from ckpt_tests import families
from ckpt_tests.models import load, logits_of, weights

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@dataclass(frozen=True)
class Case:
    """A base of `families`, what its adapter is, and the dtype of the base."""

    base: str
    lora: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def built(self) -> LoraConfig:
        return LoraConfig(
            **{"r": 4, "lora_alpha": 6, "init_lora_weights": False, "task_type": "CAUSAL_LM", **self.lora}
        )


PATTERNS = {
    "rank_pattern": {"q_proj": 6, "layers.1.mlp.down_proj": 2},
    "alpha_pattern": {"v_proj": 20, r".*\.1\..*_proj": 5},
}
CASES = {
    "ranks and alphas by pattern": Case("qwen3", {"target_modules": LINEAR, **PATTERNS}),
    "the same in bf16": Case("qwen3", {"target_modules": LINEAR, **PATTERNS}, torch.bfloat16),
    "in fp16": Case("qwen3", {"target_modules": LINEAR}, torch.float16),
    "rslora": Case("qwen3", {"target_modules": LINEAR, "use_rslora": True, "r": 5}, torch.bfloat16),
    "rank 1": Case("qwen3", {"target_modules": LINEAR, "r": 1}),
    "rank 64": Case("qwen3", {"target_modules": LINEAR, "r": 64}),
    "ranks that MKL sums in two parts": Case("qwen3", {"target_modules": ["q_proj", "gate_proj"], "r": 200}),
    "and in three": Case("qwen3", {"target_modules": ["q_proj", "down_proj"], "r": 400}),
    "DoRA": Case("qwen3", {"target_modules": LINEAR, "use_dora": True}),
    "DoRA in bf16": Case("qwen3", {"target_modules": LINEAR, "use_dora": True, "use_rslora": True}, torch.bfloat16),
    "targets by a regular expression, in some layers": Case("qwen3", {"target_modules": r".*\.1\.self_attn\.(q|v)_proj"}),
    "layers by number": Case("qwen3", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "all linear layers": Case("qwen3", {"target_modules": "all-linear"}),
    "head and embedding": Case("qwen3", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "embedding in bf16": Case("qwen3", {"target_modules": ["embed_tokens"]}, torch.bfloat16),
    "DoRA of the embedding": Case("qwen3", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "DoRA of the embedding in bf16": Case("qwen3", {"target_modules": ["embed_tokens"], "use_dora": True}, torch.bfloat16),
    "whole modules": Case("qwen3", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}, torch.bfloat16),
    "biases": Case("gpt2", {"target_modules": ["c_attn"], "bias": "lora_only", "fan_in_fan_out": True}),
    "all biases": Case("gpt2", {"target_modules": ["c_fc"], "bias": "all", "fan_in_fan_out": True}),
    "a bias of B": Case("starcoder2", {"target_modules": ["q_proj", "c_fc"], "lora_bias": True}, torch.bfloat16),
    "GPT-2": Case("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "DoRA of GPT-2": Case("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "fused experts": Case("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "fused experts in bf16": Case("qwen3_moe", {"target_modules": [], "target_parameters": EXPERTS}, torch.bfloat16),
    "one of the fused experts": Case("qwen3_moe", {"target_modules": [], "target_parameters": EXPERTS[:1]}, torch.bfloat16),
    "fused experts and router": Case("mixtral", {"target_modules": [], "target_parameters": [*EXPERTS, "mlp.gate.weight"]}, torch.bfloat16),
    "fused q, k and v": Case("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}, torch.bfloat16),
    "interleaved q, k and v": Case("gpt_neox", {"target_modules": ["query_key_value", "dense_4h_to_h"]}),
    "BLOOM": Case("bloom", {"target_modules": ["query_key_value", "dense"]}),
    "Falcon": Case("falcon_new", {"target_modules": ["query_key_value", "dense_h_to_4h"]}),
    "latent attention": Case("deepseek_v3", {"target_modules": ["q_a_proj", "q_b_proj", "kv_b_proj", "kv_a_proj_with_mqa", "o_proj"]}),
    "a tied model": Case("gemma2", {"target_modules": LINEAR}, torch.bfloat16),
}  # fmt: skip


def random_adapter(case: Case, base: Path, folder: Path) -> None:
    """An adapter of random numbers, saved by PEFT."""
    torch.manual_seed(11)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=case.dtype), case.built())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 1.0 if "magnitude" in name else 0.3
            parameter.data += scale * torch.randn(parameter.shape)  # in place, as tied adapters share their memory
    model.save_pretrained(folder)


def merged_by_peft(base: Path, adapter: Path, folder: Path, dtype: torch.dtype) -> None:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), adapter)
    model.merge_and_unload().save_pretrained(folder)


@pytest.mark.parametrize("name", CASES)
def test_the_merged_tensors_are_those_of_peft(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    base, adapter, theirs, ours = (tmp_path / part for part in ("base", "adapter", "theirs", "ours"))
    families.made(case.base, base).to(case.dtype).save_pretrained(base)
    random_adapter(case, base, adapter)
    merged_by_peft(base, adapter, theirs, case.dtype)
    convert(adapter, ours, to="hf", options={"base": str(base)})
    assert_equal(weights(ours), weights(theirs))
    before = weights(base)
    assert any(not torch.equal(tensor, before[key]) for key, tensor in weights(ours).items())


TIED = {
    "embedding": Case("gemma2", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding, both trained as one": Case("gemma2", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "head": Case("gemma2", {"target_modules": ["lm_head"]}),
    "both": Case("gemma2", {"target_modules": ["embed_tokens", "lm_head"]}),
    "head saved whole": Case("gemma2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "embedding saved whole": Case("gemma2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "both saved whole": Case("gemma2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "saved whole, both trained as one": Case(
        "gemma2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    ),
    "DoRA of the embedding": Case("gemma2", {"target_modules": ["embed_tokens"], "use_dora": True}),
}


@pytest.mark.parametrize("name", TIED)
def test_of_a_tied_model_the_merged_one_computes_what_the_adapted_one_did(name: str, tmp_path: Path) -> None:
    """PEFT's own merge writes into the tensor that both share; what its model computes before is what the adapter means."""
    case = TIED[name]
    base, adapter, ours = (tmp_path / part for part in ("base", "adapter", "ours"))
    families.made(case.base, base)
    random_adapter(case, base, adapter)
    wanted = logits_of(
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter), families.tokens()
    )
    convert(adapter, ours, to="hf", options={"base": str(base)})
    assert (logits_of(load(ours), families.tokens()) - wanted).abs().max() <= 1e-4
    plain = logits_of(AutoModelForCausalLM.from_pretrained(base), families.tokens())
    assert (plain - wanted).abs().max() > 1e-2


def test_added_tokens_come_with_the_adapter(tmp_path: Path) -> None:
    for tied in (False, True):
        base, adapter, ours = (tmp_path / f"{part}-{tied}" for part in ("base", "adapter", "ours"))
        families.build(families.CASES["qwen3"], base, tie_word_embeddings=tied)
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(67)
        case = Case("qwen3", {"target_modules": ["q_proj"]})
        model = get_peft_model(model, case.built())
        model.save_pretrained(adapter, save_embedding_layers=True)
        wanted = logits_of(model.eval(), families.tokens())
        convert(adapter, ours, to="hf", options={"base": str(base)})
        made = load(ours)
        assert made.config.vocab_size == 67 and made.config.tie_word_embeddings is tied
        assert (logits_of(made, families.tokens()) - wanted).abs().max() <= 1e-4


WRITTEN = {
    "linear layers": (Case("qwen3", {"target_modules": LINEAR}), "Qwen3ForCausalLM"),
    "a part of what Megatron fuses, and of the layers": (Case("qwen3", {"target_modules": r".*\.1\.(self_attn\.(q|v)|mlp\.up)_proj"}), "Qwen3ForCausalLM"),
    "DoRA": (Case("qwen3", {"target_modules": ["gate_proj", "up_proj"], "use_dora": True}), "Qwen3ForCausalLM"),
    "fused q, k and v": (Case("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}), "Phi3ForCausalLM"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_an_adapter_that_was_one_of_megatron_is_loaded_and_means_the_same(name: str, tmp_path: Path) -> None:
    case, family = WRITTEN[name]
    base, adapter, run, back = (tmp_path / part for part in ("base", "adapter", "run", "back"))
    families.made(case.base, base)
    random_adapter(case, base, adapter)
    convert(adapter, run, to="megatron-lora", config=base / "config.json")
    convert(run, back, to="peft", options={"hf_class": family})
    first, second = (
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), one).merge_and_unload().state_dict()
        for one in (adapter, back)
    )
    assert_equal(second, first)


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    different = {}
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape), name
        count = int((tensor != theirs[name]).sum())
        if count:
            different[name] = (
                f"{count} of {tensor.numel()}, by {(tensor.float() - theirs[name].float()).abs().max():.3g}"
            )
    assert not different, different
