"""HyperCLOVA X (NAVER): Granite whose logits are multiplied, not divided, and whose blocks may have a norm on their output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Facts, configs, decided, key, layouts, row, values
from ckpt_hf import heads
from ckpt_hf.common import Family, head_dim
from ckpt_hf.families.granite import GRANITE
from ckpt_hf.weights import LAYER, MODEL


def _read_scale(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    scale = config.get("attention_multiplier")
    if scale is not None and scale != facts["attention.head_dim"] ** -0.5:
        facts["attention.scale"] = values.checked("attention_multiplier", scale, values.positive)


# fmt: off
HYPERCLOVAX = GRANITE.replace("HyperCLOVAXForCausalLM",
    head_dim(),
    key("logits_scaling", "head.scale", type=values.positive, default=1.0, null=configs.REQUIRED),
    decided(["attention_multiplier"], ["attention.scale"], read=_read_scale, uses=["attention.head_dim"],
            values={"attention_multiplier": [configs.value_of("attention.scale"), configs.LEFT_OUT]},
            why="what multiplies the scores; without it they are divided by the root of head_dim, as the class then says in its config"),
    configs.switched("use_post_norm", [
        configs.all_agree("attention.norm", "attention.out_norm", "mlp.out_norm", why="all norms of the class are of one kind"),
    ], default=True),
)

HYPERCLOVAX_LAYER = LAYER.extend(
    row("post_norm1.weight", "h", "attention.out_norm.weight"),
    row("post_norm2.weight", "h", "mlp.out_norm.weight"),
)
# fmt: on

FAMILIES = [Family("hyperclovax", HYPERCLOVAX, layouts.Tables([MODEL, HYPERCLOVAX_LAYER]), heads=(heads.BARE,))]
