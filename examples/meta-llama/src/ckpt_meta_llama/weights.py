"""Which tensor of a rank holds what. The two elements of a rotary pair are neighbours: e pairs of c = 2."""

from ckpt_core.sdk import Table, drop, row

# fmt: off
TABLES = [
    Table(rows=[
        row("tok_embeddings.weight", "v h", "embedding.tokens.weight", tp="v"),     # Llama 3: VocabParallelEmbedding
        row("norm.weight",           "h",   "final_norm.weight"),
        row("output.weight",         "v h", "head.weight",             tp="v"),
        drop("rope.freqs",           why="computed from theta"),
    ]),
    Table("layers.{l}", to="layers.{l}", rows=[
        row("attention_norm.weight",  "h",             "attention.norm.weight"),
        row("attention.wq.weight",    "(g r (e c + o)) h", "attention.q.weight",   tp="g"),
        row("attention.wk.weight",    "(g (e c + o)) h",   "attention.k.weight",   tp="g"),
        row("attention.wv.weight",    "(g d) h",       "attention.v.weight",       tp="g"),
        row("attention.wo.weight",    "h (g r d)",     "attention.out.weight",     tp="g"),
        row("ffn_norm.weight",        "h",             "mlp.norm.weight"),
        row("feed_forward.w1.weight", "f h",           "mlp.gate.weight",          tp="f"),
        row("feed_forward.w3.weight", "f h",           "mlp.up.weight",            tp="f"),
        row("feed_forward.w2.weight", "h f",           "mlp.down.weight",          tp="f"),
    ]),
]
