"""ERNIE 4.5, dense and mixtures: a Llama, and experts beside a shared one after some layers without (ernie4-5.cpp, ernie4-5-moe.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import fact_is, ignore, key, key_is, layouts, values
from ckpt_gguf import weights
from ckpt_gguf.config import CORRECTED, DENSE, DENSE_FIRST, MIXTURE, NO_BIASES, ROUTER, Model

# fmt: off
# A bias of attn_output is loaded, and left out of what is computed.
ERNIE4_5 = DENSE.replace("ernie4_5", without=NO_BIASES)

ERNIE4_5_MOE = ERNIE4_5.replace("ernie4_5-moe",
    *DENSE_FIRST,
    key_is("interleave_moe_layer_step", 1, why="of the layers between llama.cpp wants experts, too"),
    *MIXTURE,
    CORRECTED,
    fact_is(f"{ROUTER}.normalise", True),
    key("expert_feed_forward_length", "mlp.moe.ffn", type=values.whole),
    key("expert_shared_feed_forward_length", "mlp.moe.shared.ffn", type=values.whole),
    *ignore("expert_shared_count", why="expert_shared_feed_forward_length says it",
            written=lambda facts: facts["mlp.moe.shared.ffn"] // facts["mlp.moe.ffn"], uses=["mlp.moe.shared.ffn", "mlp.moe.ffn"]),
)
# fmt: on

_MOE_LAYER = weights.PAIRED_LAYER.extend(*weights.EXPERTS, *weights.SHARED_EXPERT, weights.OFFSET)

MODELS = [
    Model("ernie4_5", ERNIE4_5, layouts.Tables([weights.MODEL, weights.PAIRED_LAYER]), ("ernie4_5",)),
    Model("ernie4_5-moe", ERNIE4_5_MOE, layouts.Tables([weights.MODEL, _MOE_LAYER]), ("ernie4_5_moe",)),
]
