"""The conformance kit on the litgpt format."""

from ckpt_core.testing import ABSENT, FormatConformance, Quirks, TorchEntries, example

EPS = {
    f"{norm}.eps": 1e-5 for norm in ("attention.norm", "attention.out_norm", "mlp.norm", "mlp.out_norm", "final_norm")
}


class TestConformance(FormatConformance):
    format = "litgpt"
    quirks = Quirks(
        models={
            "llama": example("llama"),
            "qwen": example("llama", attention__qk_norm__kind="rms", attention__qk_norm__eps=1e-5),
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
        configs=("model_config.yaml",),
        entries=TorchEntries(),
        unreached={
            "lm_head.bias (*)": "phi has it, of which the kit has no example",
            "attn.norm_*.bias (*)": "the models with norms of q and k have RMSNorms",
            "post_*_norm.bias (*)": "no model of litgpt has a LayerNorm there",
            "mlp.fc_*.bias (*)": "litgpt has one flag for all biases, and the models with gates have none",
        },
        frameworks=("litgpt", "lightning"),
    )
