"""The conformance kit: what every format plugin is tested with.

    from ckpt_core.testing import FormatConformance, Quirks, example

    class TestConformance(FormatConformance):
        format = "myformat"
        quirks = Quirks(models={"llama": example("llama")}, tp=(1, 2, 4), configs=("config.json",))

Needs pytest. See `docs/plugin-author.md`.
"""

import pytest

pytest.register_assert_rewrite("ckpt_core.testing.laws")

from ckpt_core.testing.conformance import FormatConformance  # noqa: E402
from ckpt_core.testing.entries import Entries, Entry, SafetensorsEntries, TorchEntries  # noqa: E402
from ckpt_core.testing.examples import ABSENT, example, example_architectures, write_ir  # noqa: E402
from ckpt_core.testing.quirks import Golden, Quirks  # noqa: E402
from ckpt_core.testing.variations import variations  # noqa: E402

__all__ = [
    "ABSENT", "Entries", "Entry", "FormatConformance", "Golden", "Quirks", "SafetensorsEntries", "TorchEntries", "example", "example_architectures",
    "variations", "write_ir",
]  # fmt: skip
