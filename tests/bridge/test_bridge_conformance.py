"""The conformance kit, run on format megatron-bridge."""

from __future__ import annotations

import pytest
from support.distributed import DistributedEntries

from ckpt_core.testing import FormatConformance, Quirks, example

EXPRESSES = (
    "head.tied", "attention.head_dim", "attention.rotary.theta", "attention.rotary.fraction", "attention.rotary?",
    "attention.rotary.scaling=linear", "attention.window", "attention.qkv_bias",
    "attention.scale", "mlp.moe.router.normalise", "mlp.moe.router.scale", "attention.window?",
    "attention.sinks",
)  # fmt: skip
OPTIONS = {"make_vocab_size_divisible_by": "1"}
FRAMEWORKS = ("megatron", "transformer_engine", "nemo")
LATENT = {f"latent_attention__{norm}__eps": 1e-5 for norm in ("norm", "q_norm", "kv_norm")}


class TestBridgeDense(FormatConformance):
    format = "megatron-bridge"
    quirks = Quirks(
        models={name: example(name) for name in ("llama", "llama-padded", "gpt2", "starcoder2", "smollm3")},
        tp=(1, 2),
        write_options=OPTIONS,
        expresses=EXPRESSES,
        entries=DistributedEntries(),
        frameworks=FRAMEWORKS,
    )
    test_it_loads_and_describes_itself = None  # it asks for ranks that the next class has

    def test_a_fact_is_expressed_or_refused_by_name(self, workshop, variation) -> None:
        own = variation.fact.startswith(("attention.", "mlp.")) and "relative" not in variation.fact
        if own and variation.fact.endswith("bias"):
            pytest.skip("biases that others go with are written as zeros: see test_megatron_layouts")
        super().test_a_fact_is_expressed_or_refused_by_name(workshop, variation)


class Other(FormatConformance):
    """Models of another kind; what does not depend on the kind is tested above."""

    __test__ = False

    format = "megatron-bridge"
    test_it_imports_no_framework = None
    test_it_detects_its_own_and_nothing_else = None
    test_every_layout_leads_to_every_other = None  # one set of files serves all
    test_every_dtype_is_kept = None
    test_sidecars_travel = None
    test_a_fact_is_expressed_or_refused_by_name = None
    test_what_it_expresses_is_known = None
    test_memory_is_bounded = None


class TestBridgeExperts(Other):
    __test__ = True
    quirks = Quirks(
        models={"moe-mixed": example("moe-mixed")},
        tp=(1, 2),
        pp=(1, 3),
        ep=(1, 2),
        write_options={**OPTIONS, "names": "local"},
        entries=None,
    )
    test_what_is_read_writes_back = None


class TestBridgeLatent(Other):
    __test__ = True
    quirks = Quirks(models={"latent": example("latent", **LATENT)}, write_options=OPTIONS, entries=None)
    test_it_loads_and_describes_itself = None
