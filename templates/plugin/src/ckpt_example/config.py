"""What the keys of `model.json` mean."""

from ckpt_core.sdk import Activation, Config, fact_is, key, key_is, note, one_of

ACTIVATION = one_of({"silu": Activation.SILU, "gelu": Activation.GELU_TANH})
NORMS = ("attention.norm", "mlp.norm", "final_norm")

# fmt: off
EXAMPLE = Config("ExampleModel", [
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    fact_is("mlp.gated", True),
    *(fact_is(f"{norm}.kind", "rms") for norm in NORMS),
    key_is("version", 2),
    key("width", "hidden"),                                 # the framework's own name for the hidden size
    key("layers", "layers"),
    key("heads", "attention.heads"),
    key("kv_heads", "attention.groups"),
    key("head_dim", "attention.head_dim"),
    key("ffn_width", "mlp.ffn"),
    key("activation", "mlp.activation", via=ACTIVATION),
    key("norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    key("rope_base", "attention.rotary.theta", default=10000.0),
    key("tied", "head.tied", default=False),
    key("vocabulary", "tokens.vocabulary"),
    key("vocabulary_rows", "tokens.padded_vocabulary"),     # padded, so that every rank gets as many
    note("eos", "eos"),
])
