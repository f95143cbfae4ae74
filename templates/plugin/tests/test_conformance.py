"""The conformance kit of ckpt, run on this plugin."""

from ckpt_core.testing import FormatConformance, Quirks, example


class TestConformance(FormatConformance):
    format = "example"
    quirks = Quirks(
        models={name: example(name) for name in ("llama", "llama-padded", "llama-tied")},
        tp=(1, 2, 4),
        configs=("model.json",),
        expresses=("attention.rotary.theta", "attention.head_dim", "head.tied", "mlp.activation=gelu_tanh"),
    )
