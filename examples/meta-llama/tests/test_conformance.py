"""The conformance kit on the meta-llama format."""

from ckpt_core.testing import FormatConformance, Quirks, TorchEntries, example


class TestConformance(FormatConformance):
    format = "meta-llama"
    quirks = Quirks(
        models={"llama": example("llama", hidden=216)},  # heads fill the width
        tp=(1, 2, 4),
        configs=("params.json",),
        expresses=("attention.rotary.theta",),
        entries=TorchEntries(),
        unreached={"key rope_*_factor": "Llama 3.1 and later; the variation with llama3 scaling writes them"},
        frameworks=("llama", "llama_models", "fairscale"),
    )
