"""The conformance kit, run on format megatron-bridge."""

from __future__ import annotations

from dataclasses import replace

from ckpt_tests import config_classes
from ckpt_tests.conformance import OtherModels, Ranks

OF_TOWERS = dict.fromkeys(
    ("dsa_indexer_k_norm_epsilon", "moe_input_jitter_eps"),
    "the norms of a vision tower have the epsilon of its class, for which there is no field",
)


class TestBridgeDense(Ranks):
    format = "megatron-bridge"
    quirks = replace(
        config_classes.dense(
            expresses=("attention.window?", "attention.sinks", "attention.out_gate"),
            frameworks=("megatron", "transformer_engine", "nemo"),
        ),
        misnamed=OF_TOWERS,
    )


class TestBridgeExperts(OtherModels):
    format = "megatron-bridge"
    quirks = replace(config_classes.experts(), misnamed=OF_TOWERS)
    test_what_is_read_writes_back = None


class TestBridgeLatent(OtherModels):
    format = "megatron-bridge"
    quirks = replace(config_classes.latent(), misnamed=OF_TOWERS)
    test_it_loads_and_describes_itself = None
