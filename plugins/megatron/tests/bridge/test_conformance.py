"""The conformance kit, run on format megatron-bridge."""

from __future__ import annotations

from ckpt_tests import config_classes
from ckpt_tests.conformance import OtherModels, Ranks


class TestBridgeDense(Ranks):
    format = "megatron-bridge"
    quirks = config_classes.dense(
        expresses=("attention.window?", "attention.sinks", "attention.out_gate"),
        frameworks=("megatron", "transformer_engine", "nemo"),
    )


class TestBridgeExperts(OtherModels):
    format = "megatron-bridge"
    quirks = config_classes.experts()
    test_what_is_read_writes_back = None


class TestBridgeLatent(OtherModels):
    format = "megatron-bridge"
    quirks = config_classes.latent()
    test_it_loads_and_describes_itself = None
