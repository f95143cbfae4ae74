"""Sarvam: its mixtures run as GLM-4.5 in transformers, from files with Ling's names, and its latent attention runs as DeepSeek V3."""

from __future__ import annotations

from ckpt_core.sdk import Table, configs, ignore, key, key_is, layouts, values
from ckpt_hf.common import NORMS, QKV_BIASES, Family, divides, groups, head_dim, qk_norm
from ckpt_hf.families.bailing import BAILING_LAYER, CODE, MODEL
from ckpt_hf.families.deepseek import (
    DEEPSEEK_LAYER,
    DEEPSEEK_V3,
    ROPE,
    ROPE_INTERLEAVE,
    dense_layers,
    groups_by_two_best,
)
from ckpt_hf.families.glm import GLM4_MOE, GLM4_MOE_LAYER
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import MODEL as HELD_MODEL
from ckpt_hf.weights import NAMES

# fmt: off
# The second names are those of the code beside the first files.
_EXPERTS = [
    key("n_routed_experts", "mlp.moe.experts", also=["num_local_experts", "num_experts"], default=128),
    key("n_shared_experts", "mlp.moe.shared.ffn", also=["num_shared_experts"], default=1, null=configs.REQUIRED, type=values.whole,
        times="moe_intermediate_size"),
    *ignore("num_nextn_predict_layers", "num_mtp_layers", why="of layers that predict further tokens, which the files do not have"),
    *CODE,
]

SARVAM_MOE = GLM4_MOE.replace("Glm4MoeForCausalLM",
    groups(4),
    head_dim(default=64),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-6),
    key("attention_bias", *QKV_BIASES, also=["use_qkv_bias"], default=False),
    key_is("use_bias", False, or_absent=True, written=False),
    qk_norm("use_qk_norm", default=True, kind="rms"),
    rotary_keys(default_theta=8000000.0, partial=1.0),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=6),
    key("routed_scaling_factor", "mlp.moe.router.scale", default=2.5),
    _EXPERTS,
    without=["predictors.*"],
)

SARVAM_MLA = DEEPSEEK_V3.replace("DeepseekV3ForCausalLM",
    key("q_lora_rank", "latent_attention.q_rank", default=None, type=values.whole),
    configs.repeats("num_key_value_heads", "num_attention_heads"),
    groups_by_two_best(1, 1),
    dense_layers(1),
    rotary_keys("latent_attention.rotary", called={"deepseek_yarn": "yarn"}),
    ignore("q_head_dim", why="follows from qk_nope_head_dim and qk_rope_head_dim"),
    _EXPERTS,
    without=["predictors.*"],
)

_MOE_TABLES = [
    Table(table.native, table.to, table.rows, {"names": names})
    for names, tables in (("stored", [MODEL, BAILING_LAYER]), ("held", [HELD_MODEL, GLM4_MOE_LAYER]))
    for table in layouts.Tables(tables, [NAMES], decided={"names": names})
]
# fmt: on

FAMILIES = [
    Family(
        "sarvam_moe",
        SARVAM_MOE,
        layouts.Tables(_MOE_TABLES, [NAMES]),
        other_names=("SarvamMoEForCausalLM",),
        heads=(),
    ),
    Family(
        "sarvam_mla",
        SARVAM_MLA,
        layouts.Tables([HELD_MODEL, DEEPSEEK_LAYER], [NAMES, ROPE_INTERLEAVE], [ROPE]),
        divides,
        arrangement="rope_interleave",
        other_names=("SarvamMLAForCausalLM",),
        heads=(),
    ),
]
