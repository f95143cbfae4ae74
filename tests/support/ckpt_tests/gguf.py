"""A small model for each architecture of llama.cpp that GGUF files are written of, and a tokenizer for them."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ckpt_core.architecture import Activation, Architecture, PerLayer
from ckpt_core.testing import example
from ckpt_core.testing.examples import ABSENT
from ckpt_gguf.splitting import BY_NAME, pre_tokenizer_of

_HIDDEN = 216  # heads times head_dim, as llama.cpp wants it of many
_FRACTION = 10 / 18  # of a head
_QK = {"attention__qk_norm__kind": "rms", "attention__qk_norm__eps": 1e-5}
_NORMALISED = {"mlp__moe__router__normalise": True}
_UNSHARED = {"mlp__moe__shared": ABSENT}
_EPS = {f"{norm}__eps": 1e-6 for norm in ("attention__norm", "mlp__norm", "final_norm")}
_GEMMA = {"mlp__activation": Activation.GELU_TANH, "attention__scale": ABSENT, "tokens__scale": 132**0.5, **_EPS}
_LATER = PerLayer((False, True, True, True, True, True))
_MULTIPLIED = {"tokens__scale": 6.5, "residual_scale": 0.25, "attention__scale": 0.125, "head__scale": 0.25}
_COHERE = {
    "parallel": True,
    "shared_norm": True,
    "mlp__norm": ABSENT,
    "attention__norm__kind": "layer",
    "final_norm__kind": "layer",
}
_UNWEIGHTED = {
    f"{norm.removesuffix('__eps')}__{name}": value
    for norm in _EPS
    for name, value in (("kind", "layer"), ("weight", False))
}
_UNBIASED = {
    **{f"attention__{part}_bias": False for part in ("q", "k", "v", "out")}, "mlp__up_bias": False, "mlp__down_bias": False,
}  # fmt: skip
_OF_FOUR = PerLayer((True, True, True, False, True, True))
_OUT = {
    f"{norm}__{name}": value
    for norm in ("attention__out_norm", "mlp__out_norm")
    for name, value in (("kind", "rms"), ("eps", 1e-5))
}
# Experts as DeepSeek has them, in layers after a dense one.
_SIGMOID = {
    "mlp__ffn?": PerLayer(not one for one in _LATER), "mlp__moe?": _LATER, "mlp__moe__experts": 10, "mlp__moe__ffn": 20, "mlp__moe__shared__ffn": 40,
    "mlp__moe__router__top_k": 3, "mlp__moe__router__score": "sigmoid", "mlp__moe__router__correction_bias": True,
}  # fmt: skip

_DEEPSEEK = {
    "mlp__norm__eps": 1e-6, "final_norm__eps": 1e-6, "mlp__ffn?": PerLayer(not one for one in _LATER), "mlp__moe?": _LATER, "mlp__moe__experts": 10,
    "mlp__moe__ffn": 20, "mlp__moe__router__top_k": 3, "mlp__moe__router__score": "sigmoid", "mlp__moe__router__correction_bias": True,
    "mlp__moe__shared__ffn": 40,
}  # fmt: skip
_PREDICTORS = {
    f"predictors__{part}_norm__{name}": value
    for part in ("embed", "hidden", "out")
    for name, value in (("kind", "rms"), ("eps", 1e-6))
}
MODELS: dict[str, Architecture] = {
    "llama-tied": example("llama-tied"),
    "llama-padded": example("llama-padded"),
    "llama": example("llama"),
    "mixtral": example("moe", **_NORMALISED, **_UNSHARED),
    "smollm3": example("smollm3", **{"attention__rotary?": PerLayer((True, True, True, False, True, True))}),
    "qwen2": example("qwen", hidden=_HIDDEN),
    "qwen3": example("llama", **_QK),
    "qwen2moe": example("moe", hidden=_HIDDEN),
    "qwen3moe": example("moe", **_QK, **_NORMALISED, **_UNSHARED),
    "olmoe": example("moe", hidden=_HIDDEN, attention__groups=12, attention__qk_norm_whole=True, **_QK, **_UNSHARED),
    "olmo2": example(
        "llama", hidden=_HIDDEN, attention__norm=ABSENT, mlp__norm=ABSENT, attention__qk_norm_whole=True, **_QK,
        **{f"{norm}__{name}": value for norm in ("attention__out_norm", "mlp__out_norm") for name, value in (("kind", "rms"), ("eps", 1e-5))},
    ),
    "gemma": example("llama-tied", **_GEMMA, **{f"{norm.removesuffix('__eps')}__zero_centred": True for norm in _EPS}),
    "gemma2": example("gemma", **_GEMMA, attention__qk_norm=ABSENT),
    "gemma3": example(
        "gemma", **_GEMMA, attention__softcap=ABSENT, attention__qk_norm__zero_centred=True,
        **{"attention__window?": PerLayer((True, True, True, True, True, False)),
           "attention__rotary__theta": PerLayer((1e4, 1e4, 1e4, 1e4, 1e4, 1e6))},
    ),
    "phi3": example("llama", hidden=_HIDDEN, attention__rotary__fraction=_FRACTION),
    "starcoder2": example("starcoder2", hidden=_HIDDEN, attention__window=ABSENT),
    "gpt2": example("gpt2", hidden=_HIDDEN),
    "gptneox": example("neox", hidden=_HIDDEN, attention__rotary__fraction=_FRACTION),
    "stablelm": example(
        "neox", hidden=_HIDDEN, attention__groups=4, attention__rotary__fraction=_FRACTION, parallel=False, mlp__gated=True,
        mlp__activation="silu", attention__out_bias=False, mlp__up_bias=False, mlp__down_bias=False,
    ),
    "granite": example("llama", **_MULTIPLIED),
    "granite_swa": example(
        "llama", **_MULTIPLIED, attention__sinks=True, attention__window=16,
        **{"attention__window?": _OF_FOUR, "attention__rotary?": PerLayer((True, False, True, True, False, True))},
    ),
    "granitemoe": example("moe", mlp__moe__shared__gate=False, **_NORMALISED, **_MULTIPLIED),
    "command-r": example("llama-tied", hidden=_HIDDEN, attention__rotary__fraction=_FRACTION, head__scale=0.25, **_COHERE),
    "cohere2": example(
        "llama-tied", hidden=_HIDDEN, head__scale=0.25, attention__window=16, **_COHERE,
        **{"attention__window?": _OF_FOUR, "attention__rotary?": _OF_FOUR},
    ),
    "nemotron": example(
        "neox", hidden=_HIDDEN, attention__groups=4, attention__rotary__fraction=_FRACTION, parallel=False, mlp__activation="relu_squared",
        **{f"{norm.removesuffix('__eps')}__zero_centred": True for norm in _EPS},
    ),
    "olmo": example("llama", hidden=_HIDDEN, **_UNWEIGHTED),
    "chatglm": example("qwen", hidden=_HIDDEN, attention__rotary__fraction=_FRACTION),
    "glm4": example(
        "qwen", attention__rotary__fraction=_FRACTION,
        **{f"{norm}__{name}": value for norm in ("attention__out_norm", "mlp__out_norm") for name, value in (("kind", "rms"), ("eps", 1e-5))},
    ),
    "glm4moe": example("predicting", attention__rotary__fraction=_FRACTION, **_QK, **_SIGMOID),
    "falcon": example(
        "neox", hidden=_HIDDEN, attention__groups=4, shared_norm=True, mlp__norm=ABSENT, attention__rotary__fraction=ABSENT, **_UNBIASED
    ),
    "falcon, of two norms": example("neox", hidden=_HIDDEN, attention__groups=4, attention__rotary__fraction=ABSENT, **_UNBIASED),
    "bloom": example("bloom", hidden=_HIDDEN),
    "mpt": example("bloom", hidden=_HIDDEN, tokens__norm=ABSENT, **_UNBIASED, **{f"{norm.removesuffix('__eps')}__bias": False for norm in _EPS}),
    "phi2": example(
        "neox", hidden=_HIDDEN, attention__rotary__fraction=_FRACTION, shared_norm=True, mlp__norm=ABSENT, head__bias=True,
    ),
    "starcoder": example("gpt2", hidden=_HIDDEN, attention__groups=1),
    "deepseek2": example("latent", **_DEEPSEEK),
    "deepseek2, with predictors": example("latent", **_DEEPSEEK, predictors__count=1, **_PREDICTORS),
    "olmo3": example(
        "llama", hidden=_HIDDEN, attention__norm=ABSENT, mlp__norm=ABSENT, attention__qk_norm_whole=True, attention__window=16, **_QK, **_OUT,
        **{"attention__window?": _OF_FOUR},
    ),
    "gpt-oss": example(
        "moe", attention__q_bias=True, attention__k_bias=True, attention__v_bias=True, attention__out_bias=True, attention__sinks=True,
        attention__window=16, mlp__up_bias=True, mlp__down_bias=True, mlp__activation=Activation.GELU_QUICK, mlp__clamp=7.0, mlp__up_offset=1.0,
        mlp__moe__router__bias=True, **_NORMALISED, **_UNSHARED, **{"attention__window?": PerLayer((True, False) * 3)},
    ),
    "seed_oss": example("qwen"),
    "exaone": example("llama"),
    "exaone4": example("llama", hidden=_HIDDEN, attention__norm=ABSENT, mlp__norm=ABSENT, **_QK, **_OUT),
    "exaone-moe": example(
        "llama", attention__window=16, **_QK, **_SIGMOID, **{"attention__window?": _OF_FOUR, "attention__rotary?": _OF_FOUR},
    ),
    "ernie4_5": example("llama"),
    "ernie4_5-moe": example("llama", **{**_SIGMOID, "mlp__moe__router__score": "softmax", "mlp__moe__router__normalise": True}),
    "hunyuan-dense": example("llama", attention__qk_norm_after_rotary=True, **_QK),
    "hunyuan-moe": example("moe", attention__qk_norm_after_rotary=True, mlp__moe__shared__gate=False, **_QK, **_NORMALISED),
    "dots1": example("llama", attention__groups=12, **_QK, **_SIGMOID),
    "minimax-m2": example(
        "moe", attention__rotary__fraction=_FRACTION, attention__qk_norm_whole=True, mlp__moe__router__score="sigmoid",
        mlp__moe__router__correction_bias=True, **_QK, **_NORMALISED, **_UNSHARED,
    ),
    "bailingmoe2": example("llama", hidden=_HIDDEN, attention__rotary__fraction=_FRACTION, **_QK, **_SIGMOID),
    "mellum": example("moe", attention__window=16, **_QK, **_NORMALISED, **_UNSHARED, **{"attention__window?": _OF_FOUR}),
    "arcee": example("llama", mlp__gated=False, mlp__activation=Activation.RELU_SQUARED),
    "afmoe": example(
        "llama", tokens__scale=132**0.5, attention__out_gate=True, attention__window=16, **_QK, **_OUT, **_SIGMOID,
        **{"attention__window?": _OF_FOUR, "attention__rotary?": _OF_FOUR},
    ),
    "hy_v3": example("llama", **_QK, **{**_SIGMOID, "mlp__ffn?": PerLayer((True, False) * 3), "mlp__moe?": PerLayer((False, True) * 3)}),
    "llama4": example(
        "llama", attention__chunk=8192, **_QK, attention__qk_norm__weight=False, attention__qk_norm_after_rotary=_OF_FOUR,
        attention__temperature__interval=8192, attention__temperature__scale=0.1, attention__temperature__shift=1,
        **{"attention__rotary?": _OF_FOUR, "attention__chunk?": _OF_FOUR, "attention__qk_norm?": _OF_FOUR,
           "attention__temperature?": PerLayer(not one for one in _OF_FOUR),
           "mlp__ffn?": PerLayer((True, False) * 3), "mlp__moe?": PerLayer((False, True) * 3)},
        mlp__moe__experts=10, mlp__moe__ffn=20, mlp__moe__shared__ffn=20, mlp__moe__router__top_k=3, mlp__moe__router__score="sigmoid",
        mlp__moe__router__on_input=True,
    ),
    "apertus": example("xielu", **_QK),
    "mistral3": example(
        "llama", attention__temperature__interval=16, attention__temperature__scale=0.1, attention__rotary__scaling__kind="yarn",
        attention__rotary__scaling__factor=4.0, attention__rotary__scaling__original_positions=16, attention__rotary__scaling__beta_fast=24.0,
        attention__rotary__scaling__beta_slow=2.0,
    ),
    "jais2": example("neox", hidden=_HIDDEN, attention__rotary__fraction=1.0, parallel=False, mlp__activation=Activation.RELU_SQUARED),
}  # fmt: skip

SPECIAL = ["<|begin|>", "<|end|>"]
CORPUS = [
    "the cat sat on the mat, and the hat 1234567 is not the cat's",
    "def f(x):\n    return x ** 22  # isn't it?\n\n\tso",
    "naïve café 你好 мир",
] * 3


def byte_pairs(name: str) -> Tokenizer:
    """Byte pairs, words cut as llama.cpp calls it."""
    splitting = BY_NAME[name]
    tokenizer = Tokenizer(models.BPE(ignore_merges=splitting.whole))
    body = json.loads(tokenizer.to_str())
    body["pre_tokenizer"] = pre_tokenizer_of(splitting)
    tokenizer = Tokenizer.from_str(json.dumps(body))
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken("mat", normalized=False)])
    framed = processors.TemplateProcessing(
        "<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
    )
    tokenizer.post_processor = framed
    return tokenizer
