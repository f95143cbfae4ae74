"""The conformance kit, run on the format of the core."""

from __future__ import annotations

from ckpt_core.testing import FormatConformance, Quirks, example_architectures


class TestIr(FormatConformance):
    format = "ir"
    quirks = Quirks(models=example_architectures(), dtypes=("fp32",))  # it always stores float32
