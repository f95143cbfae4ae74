"""The order of the work: nothing is lost, neighbours write to different files, and nothing large comes late."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ckpt_core.engine.order import in_order

WORK = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), max_size=30)


@given(WORK)
def test_work_is_dealt_out_in_rounds(work: list[tuple[str, int]]) -> None:
    ordered = in_order(work, lambda one: one[1], lambda one: one[0])
    assert Counter(ordered) == Counter(work)
    seen: Counter[str] = Counter()
    rounds: list[list[tuple[str, int]]] = []
    for file, size in ordered:
        seen[file] += 1
        if seen[file] > len(rounds):
            rounds.append([])
        assert seen[file] == len(rounds), "a file comes again only when every other that has work left had its turn"
        rounds[-1].append((file, size))
    for file in seen:
        sizes = [size for name, size in ordered if name == file]
        assert sizes == sorted(sizes, reverse=True)
    assert all(len(set(files)) == len(files) for files in ([file for file, _ in one] for one in rounds))
