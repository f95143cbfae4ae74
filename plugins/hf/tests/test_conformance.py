"""The conformance kit on transformers folders."""

from __future__ import annotations

from ckpt_core.testing import Quirks, example
from ckpt_tests.conformance import FirstParty


class TestHf(FirstParty):
    format = "hf"
    quirks = Quirks(
        models={
            name: example(name)
            for name in ("llama", "llama-padded", "llama-tied", "qwen", "moe", "moe-mixed", "smollm3", "starcoder2")
        }
        | {"bert": example("bert", hidden=216, mlp__activation="gelu_erf")},
        configs=("config.json",),
        expresses=("head.tied", "attention.head_dim", "attention.rotary.theta", "attention.rotary.scaling=llama3"),
        # the class reads it nowhere (modeling_biogpt.py), nor does ModernBERT's
        misnamed={"layer_norm_eps": "BioGPT's norms have the epsilon of nn.LayerNorm, whatever the key says"},
    )
