"""OLMo 3: OLMo 2 with windows in three of four layers, which rotate without the scaling of the others."""

from __future__ import annotations

from ckpt_core.sdk import layouts
from ckpt_hf import heads
from ckpt_hf.common import ALL_BIASES_OR_NONE, Family, alternating_windows
from ckpt_hf.families.olmo2 import OLMO2, OLMO2_LAYER
from ckpt_hf.rotary import rotary_by_window
from ckpt_hf.weights import MODEL

# fmt: off
OLMO3 = OLMO2.replace("Olmo3ForCausalLM",
    alternating_windows(4096, period=4),
    rotary_by_window(default_theta=500000.0, sliding_theta=500000.0),
)
# fmt: on

FAMILIES = [
    Family(
        "olmo3",
        OLMO3,
        layouts.Tables([MODEL, OLMO2_LAYER]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE, heads.SCORED),
        padding=1,
    )
]
