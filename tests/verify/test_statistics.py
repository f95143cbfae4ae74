"""Statistics of tensors: what NumPy finds, whatever holds the values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ckpt_core.api import convert, read_checkpoint
from ckpt_core.storage.dtypes import BF16, decode, encode
from ckpt_core.verify import statistics as module
from ckpt_core.verify.statistics import Statistics, Sums, statistics
from ckpt_tests.pages import tiny_llama, tiny_values
from ckpt_tests.program import ckpt

BAD = {"layers.1.mlp.up.weight": (3, 0), "layers.2.attention.q.weight": (0, 1)}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("statistics") / "tiny", tiny_values())


@pytest.fixture(scope="module")
def found(source):
    return statistics(read_checkpoint(source))


def of(*values: float, dtype: type = np.float32) -> Statistics:
    sums = Sums()
    sums.add(np.array(values, dtype))
    return sums.statistics()


@pytest.mark.parametrize(
    ("canonical", "native"),
    [
        ("embedding.tokens.weight", "model.embed_tokens.weight"),
        ("layers.1.mlp.up.weight", "model.layers.1.mlp.up_proj.weight"),
        ("layers.2.attention.q.weight", "model.layers.2.self_attn.q_proj.weight"),
        ("layers.0.mlp.norm.weight", "model.layers.0.post_attention_layernorm.weight"),
    ],
)
def test_against_numpy(found, canonical, native):
    values = tiny_values()[native].astype(np.float64)
    if "norm" not in native:
        values = decode(encode(tiny_values()[native], BF16), BF16).astype(np.float64)
    numbers, one = values[np.isfinite(values)], found[canonical]
    assert (one.count, one.nans, one.infinities) == (values.size, np.isnan(values).sum(), np.isinf(values).sum())
    assert (one.low, one.high, one.zeros) == (numbers.min(), numbers.max(), (numbers == 0).sum())
    assert one.norm == pytest.approx(np.linalg.norm(numbers), rel=1e-12)
    assert one.mean == pytest.approx(numbers.mean(), rel=1e-9)


def test_bad_values_are_those_that_were_put_in(found):
    assert {name: (one.nans, one.infinities) for name, one in found.items() if not one.finite} == BAD
    assert found["layers.2.attention.q.weight"].zeros == 2, "zeros of both signs count"


def test_equal_models_have_equal_statistics_and_padding_has_none(source, found, tmp_path):
    convert(source, tmp_path / "padded", to="megatron", tp=2)
    padded = read_checkpoint(tmp_path / "padded")
    tokens = padded.architecture.tokens
    assert tokens is not None and tokens.padded_vocabulary > tokens.vocabulary == 61
    assert statistics(padded) == found


def test_pieces_add_up(source, found, monkeypatch):
    monkeypatch.setattr(module, "_ELEMENTS", 7)
    for name, one in statistics(read_checkpoint(source)).items():
        whole = found[name]
        assert (one.count, one.nans, one.infinities, one.zeros) == (
            whole.count,
            whole.nans,
            whole.infinities,
            whole.zeros,
        )
        assert (one.low, one.high) == (whole.low, whole.high)
        assert one.norm == pytest.approx(whole.norm, rel=1e-12) and one.mean == pytest.approx(whole.mean, abs=1e-12)


def test_sums_do_not_round_to_float32():
    assert of(2.0**24, 1.0, 1.0).mean == (2.0**24 + 2) / 3
    assert of(3e38, 3e38).norm == pytest.approx(float(np.float32(3e38)) * math.sqrt(2))


@pytest.mark.parametrize("size", [1e300, 1e-300])
def test_float64_squares_neither_overflow_nor_vanish(size):
    assert of(3 * size, 4 * size, dtype=np.float64).norm == pytest.approx(5 * size)


def test_no_finite_value():
    one = of(np.nan, -np.inf)
    assert one == Statistics(2, 1, 1, 0, None, None, None, None) and not one.finite


def test_text_points_the_bad_ones_out(source):
    code, text = ckpt("inspect", source, "--stats")
    assert code == 0
    assert (
        "not finite   layers.1.mlp.up.weight: 3 NaN\n" in text and "layers.2.attention.q.weight: 1 infinite\n" in text
    )
    row = next(line for line in text.splitlines() if line.strip().startswith("layers.2.attention.q.weight "))
    assert row.split()[-3:] == ["2", "0", "1"]


def test_json(source, found):
    _, text = ckpt("inspect", source, "--stats", "--json")
    body = json.loads(text)
    assert body["not_finite"] == list(BAD)
    assert {name: one["statistics"] for name, one in body["tensors"].items()} == {
        name: one.to_json() for name, one in found.items()
    }
    _, text = ckpt("inspect", source, "--json")
    assert '"statistics"' not in text and "not_finite" not in text
