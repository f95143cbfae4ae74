"""The conformance kit on one format in several classes: what a class leaves to another one of the same file."""

from __future__ import annotations

from ckpt_core.testing import FormatConformance


class FirstParty(FormatConformance):
    """A format of this repository. Not all of the goldens that its sentences name are shipped: tests/verify holds the sentences
    against the whole set. And its tables are for more models than a class of the kit tries."""

    test_what_bears_a_sentence_out_exists = None
    test_every_row_and_key_is_reached = None


class Ranks(FirstParty):
    """Models that can't have every kind of rank that the format has."""

    test_it_loads_and_describes_itself = None  # it asks for every kind


class Containers(Ranks):
    """Another container, or other names of tensors; the config, and so what of a model it says, is the same in all of them."""

    test_a_fact_is_expressed_or_refused_by_name = None
    test_what_it_expresses_is_known = None
    test_every_choice_of_an_option = None


class OtherModels(FirstParty):
    """Models of another kind; what does not depend on the kind is tested with the first."""

    test_it_imports_no_framework = None
    test_it_detects_its_own_and_nothing_else = None
    test_every_layout_leads_to_every_other = None
    test_every_dtype_is_kept = None
    test_sidecars_travel = None
    test_a_fact_is_expressed_or_refused_by_name = None
    test_what_it_expresses_is_known = None
    test_memory_is_bounded = None
    test_a_missing_tensor_is_named = None
    test_a_tensor_too_many_is_named = None
    test_a_wrong_shape_is_named = None
    test_integer_weights_are_refused = None
    test_a_truncated_file_is_named = None
