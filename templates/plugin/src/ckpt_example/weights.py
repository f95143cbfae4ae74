"""Which tensor of a rank holds what."""

from ckpt_core.sdk import Table, row

# fmt: off
MODEL = Table(rows=[
    row("embed",      "v h", "embedding.tokens.weight", tp="v"),
    row("final_norm", "h",   "final_norm.weight"),
    row("head",       "v h", "head.weight",             tp="v"),
])

LAYER = Table("block{l}", to="layers.{l}", rows=[
    row("norm1",   "h",                          "attention.norm.weight"),
    row("qkv",     "(g (q[r] + k + v) d) h",     "attention.{part}.weight", tp="g"),
    row("out",     "h (g r d)",                  "attention.out.weight",    tp="g"),
    row("norm2",   "h",                          "mlp.norm.weight"),
    row("gate_up", "h ((gate + up) f)",          "mlp.{part}.weight",       tp="f"),   # stored input-major
    row("down",    "h f",                        "mlp.down.weight",         tp="f"),
])

TABLES = (MODEL, LAYER)
