"""Granite 3: a Llama whose embedding, blocks, scores and logits are each multiplied by a number; dense and mixtures (granite.cpp).

Granite Swash has sinks, and lists of which layers have a window and which rotate (granite-swa.cpp).
"""

from __future__ import annotations

from ckpt_core.sdk import by_layer, configs, fact_is, ignore, key, key_is, layouts, row, rules, values
from ckpt_gguf import weights
from ckpt_gguf.config import LLAMA, MIXTURE, PERIOD, ROUTER, WINDOW, Model
from ckpt_gguf.rotary import STRETCHING, rotary

# fmt: off
GRANITE = LLAMA.replace("granite",
    key("embedding_scale", "tokens.scale", default=1.0, type=values.positive),
    key("residual_scale", "residual_scale", default=1.0, type=values.positive),
    key("attention.scale", "attention.scale", default=None, type=values.positive),
    key("logit_scale", "head.scale", type=values.positive, via=values.reciprocal),
    # of this architecture it says whether there are rotary positions at all
    key_is("rope.scaling.finetuned", True, or_absent=True, written=False),
)

GRANITE_MOE = GRANITE.replace("granitemoe",
    *MIXTURE,
    key("feed_forward_length", "mlp.moe.ffn", type=values.whole),
    fact_is(f"{ROUTER}.normalise", True),
    key("expert_shared_feed_forward_length", "mlp.moe.shared.ffn", default=None, type=values.whole),
    without=["mlp.ffn", "mlp.up_bias", "mlp.down_bias"],
)

GRANITE_SWA = GRANITE.replace("granite_swa",
    key(WINDOW, "attention.window", type=values.whole),
    by_layer(PERIOD, "attention.window", rules.each(having=True, lacking=False), default=configs.REQUIRED),
    rotary(always=False, loads=STRETCHING),
    by_layer("attention.rope_pattern", "attention.rotary", rules.each(having=True, lacking=False)),
    fact_is("attention.sinks", True),
    *ignore("rope.scaling.finetuned", why="it says how it was trained, and changes no output"),
)
# fmt: on

_SWA_LAYER = weights.PAIRED_LAYER.extend(row("attn_sinks.weight", "(g r)", "attention.sinks.weight", dtype="fp32"))
_MOE_LAYER = weights.PAIRED_LAYER.without(*weights.MLP).extend(*weights.EXPERTS, *weights.SHARED_EXPERT)

MODELS = [
    Model("granite", GRANITE, layouts.Tables([weights.MODEL, weights.PAIRED_LAYER]), ("granite",)),
    Model("granite_swa", GRANITE_SWA, layouts.Tables([weights.MODEL, _SWA_LAYER]), ("granite_swa",)),
    Model("granitemoe", GRANITE_MOE, layouts.Tables([weights.MODEL, _MOE_LAYER]), ("granitemoe", "granitemoeshared")),
]
