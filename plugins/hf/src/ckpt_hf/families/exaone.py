"""EXAONE 3, which transformers runs as a Llama, from files with names of its own."""

from __future__ import annotations

from ckpt_core.sdk import Table, ignore, key, layouts, row
from ckpt_hf.common import ACTIVATION, ALL_BIASES_OR_NONE, NORMS, Family, divides, groups
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import LAYER, LM_HEAD, MODEL, NAMES

# fmt: off
# The second names are those of the code beside the first files.
EXAONE = LLAMA.replace("LlamaForCausalLM",
    groups(8),
    key("num_hidden_layers", "layers", also=["num_layers"]),
    key("hidden_act", "mlp.activation", also=["activation_function"], default="silu", via=ACTIVATION),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), also=["layer_norm_epsilon"], default=1e-5),
    rotary_keys(default_theta=500000.0),
    ignore("embed_dropout", why="training only"),
)

TABLES = [
    Table(under={"names": "stored"}, rows=[
        row("transformer.wte.weight",  "v h", "embedding.tokens.weight"),
        row("transformer.ln_f.weight", "h",   "final_norm.weight"),
        *LM_HEAD,
    ]),
    Table("transformer.h.{l}", to="layers.{l}", under={"names": "stored"}, rows=[
        row("ln_1.weight",                    "h",         "attention.norm.weight"),
        row("attn.attention.q_proj.weight",   "(g r d) h", "attention.q.weight"),
        row("attn.attention.q_proj.bias",     "(g r d)",   "attention.q.bias"),
        row("attn.attention.k_proj.weight",   "(g d) h",   "attention.k.weight"),
        row("attn.attention.k_proj.bias",     "(g d)",     "attention.k.bias"),
        row("attn.attention.v_proj.weight",   "(g d) h",   "attention.v.weight"),
        row("attn.attention.v_proj.bias",     "(g d)",     "attention.v.bias"),
        row("attn.attention.out_proj.weight", "h (g r d)", "attention.out.weight"),
        row("attn.attention.out_proj.bias",   "h",         "attention.out.bias"),
        row("ln_2.weight",                    "h",         "mlp.norm.weight"),
        row("mlp.c_fc_0.weight",              "f h",       "mlp.gate.weight"),
        row("mlp.c_fc_0.bias",                "f",         "mlp.gate.bias"),
        row("mlp.c_fc_1.weight",              "f h",       "mlp.up.weight"),
        row("mlp.c_fc_1.bias",                "f",         "mlp.up.bias"),
        row("mlp.c_proj.weight",              "h f",       "mlp.down.weight"),
        row("mlp.c_proj.bias",                "h",         "mlp.down.bias"),
    ]),
    *(Table(table.native, table.to, table.rows, {"names": "held"}) for table in (MODEL, LAYER)),
]
# fmt: on

FAMILIES = [
    Family(
        "exaone",
        EXAONE,
        layouts.Tables(TABLES, [NAMES]),
        divides,
        rewrites=ALL_BIASES_OR_NONE,
        other_names=("ExaoneForCausalLM",),
        heads=(),
    )
]
