"""The conformance kit on transformers folders."""

from __future__ import annotations

from ckpt_core.testing import Quirks, example
from ckpt_tests.conformance import FirstParty, OtherModels

# the class reads it nowhere (modeling_biogpt.py), nor does ModernBERT's
MISNAMED = {"layer_norm_eps": "BioGPT's norms have the epsilon of nn.LayerNorm, whatever the key says"}


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
        misnamed=MISNAMED,
    )


class TestHfThatSees(OtherModels):
    format = "hf"
    test_a_fact_is_expressed_or_refused_by_name = FirstParty.test_a_fact_is_expressed_or_refused_by_name
    test_what_it_expresses_is_known = FirstParty.test_what_it_expresses_is_known
    quirks = Quirks(
        models={name: example(name) for name in ("seeing", "seeing-squares", "seeing-whole")},
        dtypes=("bf16",),
        configs=("config.json",),
        misnamed=MISNAMED,
        varied=("vision", "attention.rotary"),
        expresses=("vision.token", "vision.video_token", "vision.taps", "vision.patch", "attention.rotary.sections"),
    )
