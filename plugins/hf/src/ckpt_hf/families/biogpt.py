"""BioGPT: OPT with a scaled embedding, and names of its own."""

from __future__ import annotations

from ckpt_core.sdk import Table, fact_is, ignore, key, layouts, note, row
from ckpt_hf import heads
from ckpt_hf.common import (
    ALL_BIASES_OR_NONE,
    ATTENTION_BIASES,
    MLP_BIASES,
    NORMS,
    Family,
    activation,
    norms,
    scaled_embedding,
)
from ckpt_hf.families.opt import OPT, positions
from ckpt_hf.weights import FAIRSEQ_ATTENTION, FAIRSEQ_MLP

# fmt: off
BIOGPT = OPT.replace("BioGptForCausalLM",
    scaled_embedding("scale_embedding", "hidden_size", default=True),
    key("intermediate_size", "mlp.ffn", default=4096),
    key("hidden_act", "mlp.activation", default="gelu", via=activation("gelu")),
    norms("layer", *NORMS, bias=True, eps=1e-5),
    ignore("layer_norm_eps", why="the class reads it nowhere: its norms have the epsilon of nn.LayerNorm (modeling_biogpt.py)"),
    *(fact_is(bias, True) for bias in (*ATTENTION_BIASES, *MLP_BIASES)),
    ignore("activation_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", why="training only"),
    positions(1024),
    note("initializer_range", "initializer_range"),
    without=["ffn_dim", "activation_function", "layer_norm_elementwise_affine", "enable_bias", "do_layer_norm_before",
             "_remove_final_layer_norm", "init_std", "word_embed_proj_dim"],
)

MODEL = Table(rows=[
    row("biogpt.embed_tokens.weight",    "v h", "embedding.tokens.weight"),
    row("biogpt.embed_positions.weight", "p h", "positions.weight"),
    row("biogpt.layer_norm.weight",      "h",   "final_norm.weight"),
    row("biogpt.layer_norm.bias",        "h",   "final_norm.bias"),
    row("output_projection.weight",      "v h", "head.weight"),
    row("output_projection.weight",      "v h", "embedding.tokens.weight", when="head.tied", copy=True),
])

LAYER = Table("biogpt.layers.{l}", to="layers.{l}", rows=[*FAIRSEQ_ATTENTION, *FAIRSEQ_MLP])
# fmt: on

FAMILIES = [
    Family(
        "biogpt",
        BIOGPT,
        layouts.Tables([MODEL, LAYER]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=heads.BY_CLASSIFIER,
        padding=1,
    )
]
