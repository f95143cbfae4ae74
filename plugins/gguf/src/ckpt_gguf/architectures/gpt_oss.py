"""gpt-oss and Seed-OSS, whose norm before the MLP is called after the attention (openai-moe.cpp, seed-oss.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import Activation, ignore, key, layouts, row, values
from ckpt_gguf import weights
from ckpt_gguf.config import DENSE, MIXTURE, NO_BIASES, ROUTER, UNTIED, Model, always, own_theta, windows
from ckpt_gguf.rotary import rotary

# fmt: off
SEED_OSS = DENSE.replace("seed_oss", without=NO_BIASES)

_BIASED = ["attention.out_bias", "mlp.up_bias", "mlp.down_bias", f"{ROUTER}.bias"]

GPT_OSS = DENSE.replace("gpt-oss",
    *MIXTURE,
    key("expert_feed_forward_length", "mlp.moe.ffn", type=values.whole),
    *ignore("feed_forward_length", why="every layer has experts", written=lambda facts: facts["mlp.moe.ffn"], uses=["mlp.moe.ffn"]),
    # ggml computes the clamped activation with these numbers (ggml_swiglu_oai)
    *always({"mlp.activation": Activation.GELU_QUICK, "mlp.clamp": 7.0, "mlp.up_offset": 1.0}),
    *always(dict.fromkeys((*_BIASED, f"{ROUTER}.normalise", "attention.sinks"), True)),
    *windows(2),
    own_theta(),
    # it is trained without whole ends of yarn's ramp, and llama.cpp computes it with them
    rotary(truncates=False),
    *UNTIED,
    without=["mlp.ffn", "output.weight", *(f"blk.*.{name}.bias" for name in ("attn_output", "ffn_up", "ffn_down"))],
)

_SEED_OSS_LAYER = weights.LAYER.without("ffn_norm.weight").extend(
    row("post_attention_norm.weight", "h", "mlp.norm.weight", dtype="fp32"),
)

_GPT_OSS_LAYER = _SEED_OSS_LAYER.without(*weights.MLP).extend(
    row("attn_sinks.weight",  "(g r)", "attention.sinks.weight", dtype="fp32"),
    *weights.EXPERTS,
    row("ffn_gate_inp.bias",  "x",     "mlp.router.bias",        dtype="fp32"),
    row("ffn_gate_exps.bias", "x f",   "mlp.experts.gate.bias",  dtype="fp32"),
    row("ffn_up_exps.bias",   "x f",   "mlp.experts.up.bias",    dtype="fp32"),
    row("ffn_down_exps.bias", "x h",   "mlp.experts.down.bias",  dtype="fp32"),
)
# fmt: on

MODELS = [
    Model("gpt-oss", GPT_OSS, layouts.Tables([weights.MODEL, _GPT_OSS_LAYER]), ("gpt_oss",), rounds=True),
    Model("seed_oss", SEED_OSS, layouts.Tables([weights.MODEL, _SEED_OSS_LAYER]), ("seed_oss",)),
]
