"""What is counted of the plugins, and has reached its goal."""

from __future__ import annotations

import ast

import pytest

import house
from ckpt_core import sdk


def test_the_sdk_is_small() -> None:
    assert house.BUDGETS["names in ckpt_core.sdk"] == 60
    assert len(sdk.__all__) <= 60


def test_no_function_of_a_plugin_builds_a_table() -> None:
    assert house.table_builders() == []


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("row('up', 'f h', 'mlp.up.weight')", True),
        ("layouts.Tables([MODEL])", True),
        ("replace(line, sentence=line.sentence + ' h')", True),
        ("LAYER.extend(*rows)", True),
        ("layouts.BoundTables(TABLES, architecture)", False),
    ],
)
def test_a_call_that_builds_one_is_found(call: str, found: bool) -> None:
    assert house._makes_rows(ast.parse(call, mode="eval").body) is found
