"""The conformance kit, run on format fsdp."""

from __future__ import annotations

from ckpt_core.testing import Quirks, example
from ckpt_tests.conformance import FirstParty
from ckpt_tests.distributed import DistributedEntries


class Entries(DistributedEntries):
    """What errors call a tensor is its key."""

    name_of = staticmethod(lambda key: key)


class TestFSDP(FirstParty):
    format = "fsdp"
    quirks = Quirks(
        models={"llama": example("llama", layers=2)},
        dtypes=("fp32",),
        entries=Entries(),
        frameworks=("torch", "transformers", "accelerate"),
    )
    # What a transformers model expresses is the matter of format hf, and so are its configs.
    test_a_fact_is_expressed_or_refused_by_name = None
    test_what_it_expresses_is_known = None


class TestTorchtitan(FirstParty):
    format = "torchtitan"
    quirks = Quirks(
        models={"llama": example("llama", layers=2)},
        dtypes=("fp32",),
        entries=Entries(),
        frameworks=("torch", "transformers", "torchtitan"),
    )
    # What its models express is what the classes of transformers do that it has.
    test_a_fact_is_expressed_or_refused_by_name = None
    test_what_it_expresses_is_known = None
