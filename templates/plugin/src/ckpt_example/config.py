"""What the keys of `model.json` mean."""

from ckpt_core.sdk import Activation, Config, const, field, fixed, ignore, note, one_of

ACTIVATION = one_of({"silu": Activation.SILU, "gelu": Activation.GELU_TANH})
NORMS = ("attention.norm", "mlp.norm", "final_norm")

# fmt: off
EXAMPLE = Config("ExampleModel", [
    fixed("kind", "decoder"),
    fixed("causal", True),
    fixed("mlp.gated", True),
    *(fixed(f"{norm}.kind", "rms") for norm in NORMS),
    const("version", 2),
    ignore("ranks", why="read with the files"),
    field("width", "hidden"),                                 # the framework's own name for the hidden size
    field("layers", "layers"),
    field("heads", "attention.heads"),
    field("kv_heads", "attention.groups"),
    field("head_dim", "attention.head_dim"),
    field("ffn_width", "mlp.ffn"),
    field("activation", "mlp.activation", via=ACTIVATION),
    field("norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    field("rope_base", "attention.rotary.theta", default=10000.0),
    field("tied", "head.tied", default=False),
    field("vocabulary", "tokens.vocabulary"),
    field("vocabulary_rows", "tokens.padded_vocabulary"),     # padded, so that every rank gets as many
    note("eos", "eos"),
])
