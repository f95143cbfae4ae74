"""One owner for each page of an output file: the transfer that fills it, or the coordinator."""

from __future__ import annotations

import itertools
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_core import convert
from ckpt_core.engine import pages
from ckpt_core.engine.pages import Pages, runs_of
from ckpt_core.engine.transfer import TargetFiles
from ckpt_core.layout import Link, Tile
from ckpt_core.receipt.places import RECEIPT
from ckpt_core.testing import example, write_ir
from ckpt_core.testing.examples import calm_numbers
from ckpt_tests.cutting import pieces_of
from ckpt_tests.folders import contents


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=3), st.integers(0, 5), st.sampled_from([1, 2, 4])
)
def test_runs_are_the_bytes_of_a_tile(loops: list[tuple[int, int]], base: int, itemsize: int) -> None:
    """Loops of any size, with gaps between their rows."""
    links, reach = [], 1
    for size, gap in loops:
        links.append(Link(size, 0, 1, 0, reach + gap))
        reach += (size - 1) * (reach + gap)
    found = runs_of(Tile(tuple(links), (0,), (base,)), 100, itemsize)
    places = [
        base + sum(i * link.stride for i, link in zip(index, links, strict=True))
        for index in itertools.product(*(range(link.size) for link in links))
    ]
    expected = sorted(100 + place * itemsize + byte for place in places for byte in range(itemsize))
    assert found is not None
    assert sorted(byte for start, stop in found.tolist() for byte in range(start, stop)) == expected


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=12), st.data())
def test_a_page_is_written_by_whom_fills_it(runs: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """A file of runs of three transfers, each written in chunks: all bytes are owned or left over, and no page by two."""
    place, of_transfer = 0, defaultdict(list)
    for length, gap, transfer in runs:
        of_transfer[transfer].append((place + gap, place + gap + length))
        place += gap + length
    owners: dict[int, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "PAGE", 4)
        for transfer, extents in of_transfer.items():
            own = Pages.__new__(Pages)
            own._runs = {"file": pages._merged(np.array(extents))}
            mine = {byte for start, stop in extents for byte in range(start, stop)}
            written = set()
            for start, stop in extents:
                cut = data.draw(st.integers(start, stop))
                for first, end in ((start, cut), (cut, stop)):
                    low, high = own.own("file", first, end)
                    assert first <= low <= high <= end
                    written |= set(range(low, high))
            assert written <= mine
            for page in {byte // 4 for byte in written}:
                assert owners.setdefault(page, transfer) == transfer
            full = {page for page in range(place // 4 + 1) if set(range(4 * page, 4 * page + 4)) <= mine}
            assert written == {byte for page in full for byte in range(4 * page, 4 * page + 4)}


WAYS: dict[str, dict[str, object]] = {
    "hf": {"to": "hf"},
    "hf in FP8": {"to": "hf", "options": {"quantise": "fp8-block"}},
    "gguf in Q8_0": {"to": "gguf", "options": {"type": "Q8_0", "tokenizer": "none"}},
    "megatron": {"to": "megatron", "tp": 2, "options": {"container": "torch"}},
    "ir": {"to": "ir", "dtype": "bf16"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "ir"
    sizes = {"hidden": 256, "attention__heads": 8, "attention__groups": 4, "attention__head_dim": 32, "mlp__ffn": 384}
    write_ir(folder, example("llama", layers=1, **sizes), values=calm_numbers)
    return folder


@pytest.mark.parametrize("arguments", WAYS.values(), ids=WAYS)
def test_no_two_workers_write_into_one_page(
    model: Path, arguments: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where workers write. The rest is in the file too, for the output is what one process writes."""
    out, owners, most = tmp_path / "out", {}, []
    put = TargetFiles._put

    def counted(sink, path, descriptor, view, offset):
        for page in range(offset // 512, -(-(offset + len(view)) // 512)):
            assert owners.setdefault((path, page), sink) is sink
        most.append(len(view))
        put(sink, path, descriptor, view, offset)

    with pieces_of(4999):
        convert(model, out, **arguments)
        expected = {name: held for name, held in contents(tmp_path).items() if not name.endswith(RECEIPT)}
        for file in [*tmp_path.rglob("*")][::-1]:
            file.rmdir() if file.is_dir() else file.unlink()
        monkeypatch.setattr(pages, "PAGE", 512)
        monkeypatch.setattr(TargetFiles, "_put", counted)
        with ThreadPoolExecutor(3) as executor:
            convert(model, out, **arguments, executor=executor)
    assert {name: held for name, held in contents(tmp_path).items() if not name.endswith(RECEIPT)} == expected
    assert len({id(sink) for sink in owners.values()}) > 8
    assert sum(most) > 0.5 * sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
