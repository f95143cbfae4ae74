"""The conformance kit on the meta-llama format."""

from ckpt_core.testing import FormatConformance, Quirks, TorchEntries, example

SCALING = {
    f"attention.rotary.scaling.{name}": value
    for name, value in {
        "kind": "llama3",
        "factor": 32.0,
        "low_frequency_factor": 1.0,
        "high_frequency_factor": 4.0,
        "original_positions": 8192,
    }.items()
}


class TestConformance(FormatConformance):
    format = "meta-llama"
    quirks = Quirks(
        models={
            "llama": example("llama", hidden=216),  # heads fill the width
            "llama-3.2": example("llama", hidden=216, **SCALING),
        },
        tp=(1, 2, 4),
        configs=("params.json",),
        expresses=("attention.rotary.theta",),
        entries=TorchEntries(),
        frameworks=("llama", "llama_models", "fairscale"),
    )
