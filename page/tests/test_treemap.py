"""The geometry of treemaps and strips."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_page.strips import ranges_text, runs_of
from ckpt_page.treemap import Frame, Leaf, placed, squarified, treemap

FRAME = Frame(3.0, 5.0, 1152.0, 560.0)
SIZES = st.lists(st.integers(1, 10**12), min_size=1, max_size=60).map(lambda sizes: sorted(sizes, reverse=True))


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_areas_are_in_proportion_and_inside(sizes):
    frames = squarified(sizes, FRAME)
    assert len(frames) == len(sizes)
    for size, frame in zip(sizes, frames, strict=True):
        assert frame.area / FRAME.area == pytest.approx(size / sum(sizes), rel=1e-3, abs=1e-9)
        assert frame.x >= 3 - 1e-6 and frame.x + frame.width <= 1155 + 1e-6
        assert frame.y >= 5 - 1e-6 and frame.y + frame.height <= 565 + 1e-6


@settings(max_examples=30, deadline=None)
@given(SIZES)
def test_frames_do_not_overlap(sizes):
    frames = squarified(sizes, FRAME)
    for number, one in enumerate(frames):
        for two in frames[:number]:
            across = min(one.x + one.width, two.x + two.width) - max(one.x, two.x)
            down = min(one.y + one.height, two.y + two.height) - max(one.y, two.y)
            assert across <= 1e-6 or down <= 1e-6


def test_equal_sizes_are_nearly_squares():
    for frame in squarified([1] * 80, Frame(0, 0, 1152, 560)):
        assert 0.5 < frame.width / frame.height < 2


def leaf(name: str, size: int, *groups: str) -> Leaf:
    return Leaf(groups, name, size, "mlp", name, f"#{name}")


def test_groups_lie_together():
    leaves = [leaf(f"{group}{part}{n}", 7 + n, group, part) for n in range(4) for group in "ab" for part in "xy"]
    found = {one.label: frame for one, frame in placed(leaves, FRAME)}
    assert len(found) == 16
    for prefix in ("a", "b", "ax", "by"):
        frames = [frame for name, frame in found.items() if name.startswith(prefix)]
        right, bottom = max(f.x + f.width for f in frames), max(f.y + f.height for f in frames)
        hull = (right - min(f.x for f in frames)) * (bottom - min(f.y for f in frames))
        assert hull == pytest.approx(sum(frame.area for frame in frames))


def test_too_small_leaves_are_said_not_drawn():
    picture, missing = treemap([leaf("large", 10**9, "g"), leaf("small", 5, "g")], str, "test")
    assert [one.label for one in missing] == ["small"]
    assert "#large" in picture and "#small" not in picture


def test_runs():
    assert runs_of([1, 1, None, 1, 2]) == [(0, 2, 1), (3, 4, 1), (4, 5, 2)]
    assert ranges_text([7, 3, 2, 1]) == "1–3, 7" and ranges_text([]) == ""
