"""Command R: attention and MLP beside one another behind one norm without bias, a tied head, scaled logits (command-r.cpp, cohere2.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import fact_is, key, layouts, values
from ckpt_gguf import weights
from ckpt_gguf.config import DENSE, NO_BIASES, Model, norms, rotated_with_window, windows
from ckpt_gguf.rotary import rotary

# fmt: off
COMMAND_R = DENSE.replace("command-r",
    key("attention.layer_norm_epsilon", "attention.norm.eps", "final_norm.eps", type=values.positive),
    *norms("layer", "attention.norm", "final_norm"),
    fact_is("parallel", True),
    fact_is("shared_norm", True),
    rotary(partial=True, named=True),
    key("logit_scale", "head.scale", default=1.0, type=values.positive),
    fact_is("head.tied", True),
    without=[*NO_BIASES, "attention.layer_norm_rms_epsilon", "mlp.norm.kind", "output.weight"],
)

COHERE2 = COMMAND_R.replace("cohere2",
    *windows(4),
    rotary(partial=True, named=True, always=False),
    rotated_with_window(),
)

_LAYER = weights.PAIRED_LAYER.without("ffn_norm.weight")
# fmt: on

MODELS = [
    Model(
        "command-r",
        COMMAND_R,
        layouts.Tables([weights.MODEL, _LAYER]),
        ("cohere",),
        square=True,
        # with so many llama.cpp asks for norms of each head (Command R+)
        fewer_layers_than=64,
    ),
    Model("cohere2", COHERE2, layouts.Tables([weights.MODEL, _LAYER]), ("cohere2",), square=True),
]
