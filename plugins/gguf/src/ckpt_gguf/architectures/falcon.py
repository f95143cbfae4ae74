"""Falcon: attention and MLP beside one another, behind one layer norm or each behind its own, without biases (falcon.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import configs, fact_is, key, key_is, layouts, one_of, row, values
from ckpt_gguf import weights
from ckpt_gguf.config import BIAS_TENSORS, LAYER_NORMED, Model

# fmt: off
FALCON = LAYER_NORMED.replace("falcon",
    key("attention.layer_norm_epsilon", "attention.norm.eps", "final_norm.eps", type=values.positive),
    fact_is("parallel", True),
    key("blk.*.attn_norm_2.weight", "shared_norm", default=False, via=one_of({False: True, True: False})),
    configs.where("!shared_norm", [configs.all_agree("attention.norm", "mlp.norm", why="all norms are alike")]),
    # that queries, keys and values lie one after the other, and not group by group as elsewhere
    key_is("tensor_data_layout", "jploski", or_absent=True),
    without=[*BIAS_TENSORS, "mlp.norm.kind", "mlp.norm.bias"],
)

_LAYER = weights.FUSED_LAYER.without("attn_norm.weight", "attn_norm.bias", "ffn_norm.weight", "ffn_norm.bias").extend(
    *(one for kind in ("weight", "bias") for one in (
        row(f"attn_norm.{kind}",   "h", f"attention.norm.{kind}", dtype="fp32", when="shared_norm"),
        # of two norms the first is that of the MLP
        row(f"attn_norm.{kind}",   "h", f"mlp.norm.{kind}",       dtype="fp32", when="!shared_norm"),
        row(f"attn_norm_2.{kind}", "h", f"attention.norm.{kind}", dtype="fp32", when="!shared_norm"),
    )),
)
# fmt: on

MODELS = [Model("falcon", FALCON, layouts.Tables([weights.MODEL_WITH_BIAS, _LAYER]), ("falcon",), square=True)]
