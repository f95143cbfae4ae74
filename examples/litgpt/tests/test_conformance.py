"""The conformance kit on the litgpt format."""

from ckpt_core.testing import ABSENT, FormatConformance, Quirks, example

EPS = {
    f"{norm}.eps": 1e-5 for norm in ("attention.norm", "attention.out_norm", "mlp.norm", "mlp.out_norm", "final_norm")
}


class TestConformance(FormatConformance):
    format = "litgpt"
    quirks = Quirks(
        models={
            "llama": example("llama"),
            "pythia": example("neox", mlp__activation="gelu_erf"),
            "gemma": example(
                "gemma",
                attention__scale=None,
                attention__qk_norm=ABSENT,
                tokens__scale=132**0.5,
                head__tied=False,
                **EPS,
            ),
        },
        expresses=(
            "attention.rotary.theta",
            "attention.head_dim",
            "attention.window",
            "attention.rotary.scaling=llama3",
        ),
        entries=None,
        frameworks=("litgpt", "lightning"),
    )
