"""Which tensor of `lit_model.pth` holds what."""

from ckpt_core.sdk import Table, row

# fmt: off
TABLES = [
    Table(rows=[
        row("transformer.wte.weight",  "v h", "embedding.tokens.weight"),
        row("transformer.ln_f.weight", "h",   "final_norm.weight"),
        row("transformer.ln_f.bias",   "h",   "final_norm.bias"),
        row("lm_head.weight",          "v h", "head.weight"),
        row("lm_head.bias",            "v",   "head.bias"),
    ]),
    Table("transformer.h.{l}", to="layers.{l}", rows=[
        row("norm_1.weight",     "h",         "attention.norm.weight"),
        row("norm_1.bias",       "h",         "attention.norm.bias"),
        row("attn.qkv.weight",   "(q[g r d] + k[g d] + v[g d]) h", "attention.{part}.weight"),
        row("attn.qkv.bias",     "(q[g r d] + k[g d] + v[g d])",   "attention.{part}.bias"),
        row("attn.norm_q.weight", "d",        "attention.q_norm.weight"),
        row("attn.norm_q.bias",  "d",         "attention.q_norm.bias"),
        row("attn.norm_k.weight", "d",        "attention.k_norm.weight"),
        row("attn.norm_k.bias",  "d",         "attention.k_norm.bias"),
        row("attn.proj.weight",  "h (g r d)", "attention.out.weight"),
        row("attn.proj.bias",    "h",         "attention.out.bias"),
        row("post_attention_norm.weight", "h", "attention.out_norm.weight"),
        row("post_attention_norm.bias",   "h", "attention.out_norm.bias"),
        row("norm_2.weight",     "h",         "mlp.norm.weight"),
        row("norm_2.bias",       "h",         "mlp.norm.bias"),
        row("mlp.fc_1.weight",   "f h",       "mlp.gate.weight"),
        row("mlp.fc_1.bias",     "f",         "mlp.gate.bias"),
        row("mlp.fc_2.weight",   "f h",       "mlp.up.weight",   when="mlp.gated"),
        row("mlp.fc_2.bias",     "f",         "mlp.up.bias",     when="mlp.gated"),
        row("mlp.fc.weight",     "f h",       "mlp.up.weight",   when="!mlp.gated"),
        row("mlp.fc.bias",       "f",         "mlp.up.bias",     when="!mlp.gated"),
        row("mlp.proj.weight",   "h f",       "mlp.down.weight"),
        row("mlp.proj.bias",     "h",         "mlp.down.bias"),
        row("post_mlp_norm.weight", "h",      "mlp.out_norm.weight"),
        row("post_mlp_norm.bias",   "h",      "mlp.out_norm.bias"),
    ]),
]
