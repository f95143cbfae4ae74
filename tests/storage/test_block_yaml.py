"""YAML that is written without PyYAML is what PyYAML writes."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_core.errors import CkptError
from ckpt_core.storage import block_yaml, plain_yaml
from ckpt_core.storage.documents import dump_yaml

WORDS = st.one_of(
    st.from_regex(r"[A-Za-z_/0-9][A-Za-z0-9_./+-]{0,9}( [A-Za-z]{1,5}){0,3}", fullmatch=True),
    st.sampled_from(
        "1f1b 1e5 1E5 1_000 0x1f 0b1 1b1 1a 0a 2020-01-01 1:20 1:2a a:b .5 .inf - -a a- ~ << = yes No off null y".split()
    ),
    st.text(max_size=3),
)
SCALARS = st.one_of(WORDS, st.none(), st.booleans(), st.integers(), st.floats())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.from_regex(r"[a-z][a-z_0-9]{0,8}", fullmatch=True), inner, max_size=3),
    ),
    max_leaves=6,
)  # fmt: skip


def written(value: object) -> str | None:
    """The text without PyYAML; None where it is left to it."""
    try:
        return block_yaml.text_of(value)
    except block_yaml.Beyond:
        return None


@given(st.dictionaries(st.one_of(st.from_regex(r"[a-z]{1,4}", fullmatch=True), WORDS), VALUES, max_size=3))
def test_any_value_is_written_as_pyyaml_writes_it_or_left_to_it(value: dict[str, Any]) -> None:
    assert written(value) in (None, plain_yaml.text_of(value)) and dump_yaml(value) == plain_yaml.text_of(value)


@pytest.mark.parametrize(
    "value",
    [
        {"a": {"b": [1, {"c": None, "d": [[], {}, [True, [2.0]]]}, "x y"], "e": 1e-05}, "pp_engine": "1f1b"},
        {"path": "/tmp/" + "long/" * 12, "t": (1, 2), "empty": [[], (), {}], "n": -3, "big": 1e22, "small": 1.5e-07},
    ],
)
def test_what_configs_are_made_of_needs_no_pyyaml(value: dict[str, Any]) -> None:
    assert written(value) == plain_yaml.text_of(value)


SHARED = {"one": 1}
NOTHING: list[object] = []


@pytest.mark.parametrize(
    "value",
    [
        {"a": SHARED, "b": [SHARED]},
        {"a": NOTHING, "b": [NOTHING]},
        {"a": OrderedDict(b=1)},
        {"a": "word " * 20 + "end"},
        {"a": float("inf")},
        {"k" * 65: 1},
        {"a b": 1},
        {1: 2},
        {"a": "0.4"},
        {},
        [1],
        "text",
    ],
)
def test_the_rest_is_left_to_pyyaml(value: Any) -> None:
    assert written(value) is None
    if not isinstance(value, dict) or not isinstance(
        value.get("a"), OrderedDict
    ):  # of which PyYAML's safe writer makes none
        assert dump_yaml(value) == plain_yaml.text_of(value)


def test_a_plain_config_is_written_without_an_import() -> None:
    code = "import sys; from ckpt_core.storage.documents import dump_yaml; dump_yaml({'a': [1]}); assert 'yaml' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("value", [{"path": "run-\udcff/0"}, {"run-\udcff": 1}, ["\ud800"]])
def test_text_that_is_not_unicode_is_refused(value: object) -> None:
    """A path may have any bytes. PyYAML writes them as an escape that libyaml does not read."""
    with pytest.raises(CkptError, match="not Unicode"):
        dump_yaml(value)
