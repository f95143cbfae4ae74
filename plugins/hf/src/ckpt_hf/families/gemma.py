"""Gemma 1, 2 and 3, and VaultGemma: zero-centred norms, a scaled embedding; 2 adds norms on outputs, soft caps and windows, 3 norms on q and k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    Activation,
    Facts,
    Refusal,
    configs,
    decided,
    derived,
    ignore,
    key,
    key_is,
    layouts,
    row,
    values,
)
from ckpt_hf import heads, weights
from ckpt_hf.common import (
    ALL_BIASES_OR_NONE,
    NORMS,
    Family,
    activation,
    alias,
    alternating_windows,
    divides,
    groups,
    head_dim,
    norms,
    unbiased,
)
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_by_window
from ckpt_hf.weights import LAYER, MODEL, QK_NORMS

_OUT_NORMS = ("attention.out_norm", "mlp.out_norm")
# The first Gemma files say "gelu" and mean the tanh form.
_GELU_IS_TANH = activation("gelu_pytorch_tanh", "gelu_python", gelu=Activation.GELU_TANH)


def _scalar_of(scale: object) -> int:
    """The whole number whose square root divides the scores, if there is one."""
    scalar = round(float(scale) ** -2)  # type: ignore[arg-type]
    if scalar < 1 or abs(scalar**-0.5 / float(scale) - 1) > 1e-12:  # type: ignore[arg-type]
        raise Refusal("it has only whole numbers for this", found=f"attention.scale = {scale}")
    return scalar


def _read_scalar(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    scalar = values.checked("query_pre_attn_scalar", config.get("query_pre_attn_scalar", 256), values.positive)
    if scalar != facts.get("attention.head_dim"):
        facts["attention.scale"] = scalar**-0.5


# fmt: off
GEMMA = LLAMA.replace("GemmaForCausalLM",
    groups(16),
    head_dim(default=256),
    # some versions of 4 prefer hidden_activation where it is given
    key("hidden_act", "mlp.activation", also=["hidden_activation"], write_all=True, default="gelu_pytorch_tanh", via=_GELU_IS_TANH),
    norms("rms", *NORMS, zero_centred=True),
    # frameworks round the root to their own precision
    derived(None, "tokens.scale", "hidden_size ** 0.5", rounding="none", tolerance=1e-6),
    key("tie_word_embeddings", "head.tied", default=True),
    key_is("use_bidirectional_attention", False, None, or_absent=True, written=False),
    unbiased("mlp_bias"),
)

GEMMA2 = GEMMA.replace("Gemma2ForCausalLM",
    groups(4),
    # unlike in Gemma 1, this key alone decides, and "gelu" is the erf form
    key("hidden_activation", "mlp.activation", default="gelu_pytorch_tanh", via=activation()),
    ignore("hidden_act", why="the class reads hidden_activation"),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in (*NORMS, *_OUT_NORMS)), default=1e-6),
    norms("rms", *_OUT_NORMS, zero_centred=True),
    decided(["query_pre_attn_scalar"], ["attention.scale"], read=_read_scalar, uses=["attention.head_dim"],
            values={"query_pre_attn_scalar": [configs.value_of("attention.head_dim"), configs.value_of("attention.scale", by=_scalar_of)]},
            why="scores are divided by the square root of the key, which must be a whole number"),
    key("attn_logit_softcapping", "attention.softcap", default=50.0, null=None),
    key("final_logit_softcapping", "head.softcap", default=30.0, null=None),
    alternating_windows(4096),
    alias("sliding_window_size", "sliding_window"),
)

GEMMA2_LAYER = LAYER.without("post_attention_layernorm.weight").extend(
    row("post_attention_layernorm.weight",   "h", "attention.out_norm.weight"),
    row("pre_feedforward_layernorm.weight",  "h", "mlp.norm.weight"),
    row("post_feedforward_layernorm.weight", "h", "mlp.out_norm.weight"),
)

# Gemma 2 without the norms on outputs.
VAULT_GEMMA = GEMMA2.replace("VaultGemmaForCausalLM",
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-6),
    without=[f"{norm}.{part}" for norm in _OUT_NORMS for part in ("kind", "zero_centred")],
)

VAULT_GEMMA_LAYER = LAYER.without("post_attention_layernorm.weight").extend(
    row("pre_feedforward_layernorm.weight", "h", "mlp.norm.weight"),
)

GEMMA3 = GEMMA2.replace("Gemma3ForCausalLM",
    key("rms_norm_eps", *(f"{norm}.eps" for norm in (*NORMS, *_OUT_NORMS, "attention.qk_norm")), default=1e-6),
    norms("rms", "attention.qk_norm", zero_centred=True),
    key_is("attn_logit_softcapping", None, or_absent=True, why="the class stores it, and never applies it (modeling_gemma3.py)"),
    key("final_logit_softcapping", "head.softcap", default=None),
    alternating_windows(4096, period=6, period_key="sliding_window_pattern"),
    ignore("_sliding_window_pattern", why="saved by transformers 5 beside the layer_types that it gave"),
    rotary_by_window(default_theta=1000000.0, sliding_theta=10000.0, sliding_key="rope_local_base_freq"),
)

GEMMA3_LAYER = GEMMA2_LAYER.extend(
    *QK_NORMS,
)
# fmt: on

FAMILIES = [
    Family("gemma", GEMMA, weights.LLAMA, rewrites=ALL_BIASES_OR_NONE, padding=0),
    Family("gemma2", GEMMA2, layouts.Tables([MODEL, GEMMA2_LAYER]), divides, rewrites=ALL_BIASES_OR_NONE, padding=0),
    Family(
        "vaultgemma",
        VAULT_GEMMA,
        layouts.Tables([MODEL, VAULT_GEMMA_LAYER]),
        divides,
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE,),
        padding=0,
    ),
    Family(
        "gemma3_text",
        GEMMA3,
        layouts.Tables([MODEL, GEMMA3_LAYER]),
        divides,
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE, heads.SCORED),
        padding=0,
    ),
]
