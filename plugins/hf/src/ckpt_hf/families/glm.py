"""GLM-4, dense and mixtures, and Solar Open: heads of which the first half rotates, in the dense classes in adjacent pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Facts,
    Table,
    configs,
    decided,
    ignore,
    key,
    key_is,
    layouts,
    row,
    rules,
    schema,
    values,
)
from ckpt_hf import heads
from ckpt_hf.common import NORMS, QKV_BIASES, SPARSE, Family, groups, head_dim, norms, qk_norm, sparse_layers, unbiased
from ckpt_hf.families.deepseek import (
    CORRECTION,
    DEEPSEEK_V3,
    DEEPSEEK_V32,
    INDEX_ROPE,
    INDEXED,
    PREDICTING_LAYER,
    ROPE,
    SHARED_EXPERTS,
    SIGMOID_ROUTER,
    TABLES,
    dense_layers,
    groups_by_two_best,
    indexer,
)
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.predictors import AFTER, BLOCK, NUMBERED_ON, predictors, stored_predictors
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import ADJACENT, EXPERTS, LAYER, MLP, MODEL, NAMES, QK_NORMS

_OUT_NORMS = ("attention.out_norm", "mlp.out_norm")
_EPS = 1.5625e-7


_SPARSE = ("mlp_layer_types", "first_k_dense_replace")


def _read_sparse(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    dense = values.checked(_SPARSE[1], config.get(_SPARSE[1], 1), values.count)
    sparse = sparse_layers(config, facts["layers"], dense)
    first = schema.PerLayer(index >= dense for index in range(len(sparse)))
    if sparse != first and _SPARSE[1] in config:  # of the code beside the files; transformers does not read it
        kinds = config[_SPARSE[0]]
        raise CkptError(f"keys {_SPARSE[0]!r} and {_SPARSE[1]!r} disagree", found=f"{kinds} and {dense}"[:80])
    if not all(sparse):
        facts["mlp.moe?"] = sparse


_INDEXERS = ("indexer_types", "index_topk_pattern", "index_topk_freq", "index_skip_topk_offset")


def _read_indexers(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    kinds, pattern = config.get(_INDEXERS[0]), config.get(_INDEXERS[1])
    if kinds is None and isinstance(pattern, str):
        kinds = [{"F": "full", "S": "shared"}.get(letter) for letter in pattern]
    elif kinds is None:
        kinds = pattern
    if kinds is None:
        every = max(values.checked(_INDEXERS[2], config.get(_INDEXERS[2], 1), values.count), 1)
        offset = values.checked(_INDEXERS[3], config.get(_INDEXERS[3], 2), values.count)
        kinds = ["shared" if max(index - offset + 1, 0) % every else "full" for index in range(facts["layers"])]
    full = rules.each(having="full", lacking="shared").read(kinds, facts["layers"])
    if full is None or not full[0]:
        raise CkptError(
            "keys 'indexer_types' and 'index_topk_pattern' do not say for every layer whether it has an indexer, the first among them",
            found=str(kinds)[:80],
            expected=f"a list of {facts['layers']}, full or shared",
        )
    if not all(full):
        facts["latent_attention.indexer?"] = schema.PerLayer(full)
        facts["latent_attention.index_from_before"] = schema.PerLayer(not one for one in full)


# fmt: off
GLM = LLAMA.replace("GlmForCausalLM",
    groups(2),
    head_dim(default=128),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=_EPS),
    key("attention_bias", *QKV_BIASES, default=True),
    rotary_keys(partial=0.5),
    unbiased("mlp_bias"),
)

GLM4 = GLM.replace("Glm4ForCausalLM",
    key("rms_norm_eps", *(f"{norm}.eps" for norm in (*NORMS, *_OUT_NORMS)), default=_EPS),
    norms("rms", *_OUT_NORMS),
)

GLM4_MOE = LLAMA.replace("Glm4MoeForCausalLM",
    groups(8),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    key("attention_bias", *QKV_BIASES, default=False),
    qk_norm("use_qk_norm", default=False, kind="rms"),
    rotary_keys(partial=0.5),
    dense_layers(1),
    key("moe_intermediate_size", "mlp.moe.ffn"),
    key("n_routed_experts", "mlp.moe.experts", also=["num_local_experts"], default=128),
    key("n_shared_experts", "mlp.moe.shared.ffn", default=1, null=configs.REQUIRED, type=values.whole, times="moe_intermediate_size"),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=8),
    key("norm_topk_prob", "mlp.moe.router.normalise", default=True),
    key("routed_scaling_factor", "mlp.moe.router.scale", default=1.0),
    groups_by_two_best(1, 1),
    SIGMOID_ROUTER,
    predictors(),
    unbiased("mlp_bias"),
)

# Solar Open: GLM-4.5's experts in every layer, and Llama's attention.
SOLAR_OPEN = GLM4_MOE.replace("SolarOpenForCausalLM",
    head_dim(default=128),
    key("num_hidden_layers", "layers"),
    rotary_keys(default_theta=1000000.0),
    ignore("intermediate_size", "first_k_dense_replace", why="every layer has experts"),
    key_is("use_qk_norm", False, or_absent=True, written=False),
    without=["mlp.ffn", "mlp.moe?", "attention.qk_norm.*", "predictors.*"],
)

# GLM-4.7-Flash: DeepSeek's latent attention and experts, with other defaults.
GLM4_MOE_LITE = DEEPSEEK_V3.replace("Glm4MoeLiteForCausalLM",
    key("kv_lora_rank", "latent_attention.kv_rank", default=512),
    key("qk_nope_head_dim", "latent_attention.nope_dim", default=192),
    key("v_head_dim", "latent_attention.value_dim", default=256),
    key("q_lora_rank", "latent_attention.q_rank", default=768, null=None, type=values.whole),
    key("rms_norm_eps", "latent_attention.norm.eps", "mlp.norm.eps", "final_norm.eps", default=1e-5),
    configs.repeats("num_key_value_heads", "num_attention_heads", default=20),
    decided(_SPARSE, ["mlp.moe?"], read=_read_sparse, values={"mlp_layer_types": [SPARSE]}, uses=["layers", "mlp.moe.*"],
            why="mlp_layer_types says which layers have experts; without it all but the first"),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=4),
    key("routed_scaling_factor", "mlp.moe.router.scale", default=1.8),
    key("n_routed_experts", "mlp.moe.experts", also=["num_local_experts"]),
    groups_by_two_best(1, 1),
    configs.repeats("head_dim", "qk_rope_head_dim", written=False),  # an alias of it (configuration_glm4_moe_lite.py)
    *ignore("qk_head_dim", why="follows from qk_nope_head_dim and qk_rope_head_dim"),
)

# GLM-5: DeepSeek V3.2, where a layer may attend to what the indexer of a layer below chose.
GLM_MOE_DSA = DEEPSEEK_V32.replace("GlmMoeDsaForCausalLM",
    key("kv_lora_rank", "latent_attention.kv_rank", default=512),
    key("qk_nope_head_dim", "latent_attention.nope_dim", default=192),
    key("v_head_dim", "latent_attention.value_dim", default=256),
    key("q_lora_rank", "latent_attention.q_rank", default=2048, null=configs.REQUIRED, type=values.whole),
    key("rms_norm_eps", "latent_attention.norm.eps", "mlp.norm.eps", "final_norm.eps", default=1e-5),
    configs.repeats("num_key_value_heads", "num_attention_heads", default=64),
    key_is("indexer_rope_interleave", True, or_absent=True),  # asked for by Megatron-Bridge; transformers looks at no such key
    key("n_routed_experts", "mlp.moe.experts", also=["num_local_experts"]),
    ignore("num_experts", why="transformers 5.11 and 5.12 write 256 of their own beside n_routed_experts, at which alone the class looks"),
    groups_by_two_best(1, 1),
    indexer(32, 128, 2048),
    decided(_INDEXERS, ["latent_attention.indexer?", "latent_attention.index_from_before"], read=_read_indexers, uses=["layers"],
            values={_INDEXERS[0]: [configs.layers_of("latent_attention.indexer", rules.each(having="full", lacking="shared"))]},
            why="indexer_types says which layers have an indexer, and which attend to what the one below chose; without it all have one, or those of a pattern"),
)

GLM_LAYER = LAYER.replace(*ADJACENT).without(*MLP).extend(
    row("mlp.gate_up_proj.weight", "((gate + up) f) h", "mlp.{part}.weight"),
    row("mlp.down_proj.weight",    "h f",               "mlp.down.weight"),
)

GLM4_LAYER = GLM_LAYER.extend(
    row("post_self_attn_layernorm.weight", "h", "attention.out_norm.weight"),
    row("post_mlp_layernorm.weight",       "h", "mlp.out_norm.weight"),
)

GLM4_MOE_LAYER = LAYER.extend(
    *QK_NORMS,
    CORRECTION,
    *SHARED_EXPERTS,
    *EXPERTS,
)
GLM4_MOE_PREDICTOR = Table(AFTER, to=BLOCK, rows=GLM4_MOE_LAYER.rows)
# fmt: on

FAMILIES = [
    Family("glm", GLM, layouts.Tables([MODEL, GLM_LAYER]), padding=151329),
    Family("glm4", GLM4, layouts.Tables([MODEL, GLM4_LAYER]), padding=151329),
    Family(
        "glm4_moe",
        GLM4_MOE,
        layouts.Tables([MODEL, GLM4_MOE_LAYER, *NUMBERED_ON, GLM4_MOE_PREDICTOR], [NAMES]),
        leftovers=PREDICTING_LAYER,
        heads=(heads.BARE,),
        as_stored=stored_predictors,
    ),
    Family(
        "solar_open",
        SOLAR_OPEN,
        layouts.Tables([MODEL, GLM4_MOE_LAYER], [NAMES]),
        heads=(heads.BARE,),
    ),
    Family(
        "glm_moe_dsa",
        GLM_MOE_DSA,
        layouts.Tables(
            INDEXED, [NAMES], [ROPE, INDEX_ROPE], decided={"rope_interleave": True, "index_interleave": True}
        ),
        leftovers=PREDICTING_LAYER,
        as_stored=stored_predictors,
        heads=(heads.BARE,),
    ),
    Family(
        "glm4_moe_lite",
        GLM4_MOE_LITE,
        TABLES,
        arrangement="rope_interleave",
        leftovers=PREDICTING_LAYER,
        heads=(heads.BARE,),
        as_stored=stored_predictors,
    ),
]
