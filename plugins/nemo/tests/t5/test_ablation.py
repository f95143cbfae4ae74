"""Would the goldens notice? Each thing that makes them right, undone alone, makes them wrong."""

from __future__ import annotations

import pytest

from ablation import ABLATIONS, AFTERWARDS, logits_off
from ckpt_tests.goldens import Golden, goldens
from ckpt_tests.nemo_t5 import exported

TOLERANCE = 1e-4
# The two GELUs differ by little; everything else makes a different model.
WRONG = {"4 tanh for erf": 3 * TOLERANCE, "4 erf for tanh": 3 * TOLERANCE}
# two cases for each
PAIRS = [
    (golden, name)
    for name, (_, matters) in {**ABLATIONS, **AFTERWARDS}.items()
    for golden in [golden for golden in goldens("nemo-t5") if exported(golden) and matters(golden)][:2]
]


@pytest.mark.parametrize(("golden", "name"), PAIRS, ids=str)
def test_undoing_it_shows(golden: Golden, name: str) -> None:
    if name in AFTERWARDS:
        found = logits_off(golden, afterwards=AFTERWARDS[name][0])
    else:
        found = logits_off(golden, ABLATIONS[name][0])
    assert found > WRONG.get(name, 0.1)


def test_each_of_the_five_is_undone_for_some_case() -> None:
    assert {name[0] for _, name in PAIRS} >= set("12345")
