"""The conformance kit, run on format nemo2."""

from __future__ import annotations

from ckpt_tests import config_classes
from ckpt_tests.conformance import OtherModels, Ranks


class TestNemo2Dense(Ranks):
    format = "nemo2"
    quirks = config_classes.dense(
        expresses=("attention.rotary.scaling=llama3",),
        frameworks=("nemo", "fiddle", "megatron", "lightning", "transformer_engine"),
    )


class TestNemo2Experts(OtherModels):
    format = "nemo2"
    quirks = config_classes.experts(mlp__moe__shared__gate=False)
    test_what_is_read_writes_back = None


class TestNemo2Latent(OtherModels):
    format = "nemo2"
    quirks = config_classes.latent()
    test_it_loads_and_describes_itself = None
