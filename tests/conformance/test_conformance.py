"""The conformance kit, run on the format of the core."""

from __future__ import annotations

from ckpt_core.testing import Quirks, example_architectures
from ckpt_tests.conformance import FirstParty


class TestIr(FirstParty):
    format = "ir"
    quirks = Quirks(models=example_architectures(), dtypes=("fp32",))  # it always stores float32
