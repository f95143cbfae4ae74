"""Which pages of the output files a transfer fills alone, so that no two workers write into one.

Where two machines write into one page of a file, a network file system may send the whole page from both, each with what it last saw
of the other's bytes, and others pass the page's lock to and fro. A page has one owner: the transfer that writes every byte of it,
or else the coordinator, which is given the bytes with the result. Those are at most two pages' bytes for each run of a transfer
in a file, and a run is long: see `tensors.pieces.step_of`.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable

from ckpt_core import numpy as np
from ckpt_core.engine.pieces import Transfer
from ckpt_core.layout import Tile
from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes.files import pwrite_all, written

PAGE = 4096
_MOST = 16 << 20  # bytes of a transfer that may go by the coordinator, in one file
_RUNS = 1 << 18  # of one tile


@dataclass(frozen=True, slots=True)
class Edge:
    """Bytes of an output file in a page that is not its transfer's own. `path` is that of the file on all machines."""

    path: str
    offset: int
    data: bytes


def write_edges(edges: Iterable[Edge]) -> None:
    """Write what the coordinator is given: each file is opened once."""
    for path, of_file in itertools.groupby(sorted(edges, key=lambda edge: edge.path), lambda edge: edge.path):
        with written(path) as descriptor:
            for edge in of_file:
                pwrite_all(descriptor, memoryview(edge.data), edge.offset)


class Pages:
    """The pages of a transfer.

    Codes and scales are written a group of rows at a time: of these each run is looked at by itself. Where far too much would go by
    the coordinator, for tensors that take turns in a file and are not written together (`weaving`), pages have several owners, and what is left
    to keep them apart is that nobody reads there (`transfer.TargetFiles`).
    """

    def __init__(self, transfer: Transfer) -> None:
        found: defaultdict[str, list[np.ndarray] | None] = defaultdict(list)
        for delivery in transfer.deliveries:
            block = delivery.block
            for tile in () if delivery.encoded else transfer.written(delivery):
                runs = runs_of(tile, block.offset, block.dtype.size)
                if runs is None:
                    found[block.path] = None
                elif (known := found[block.path]) is not None:
                    known.append(runs)
        self._runs: dict[str, np.ndarray | None] = {}
        for path, parts in found.items():
            merged = None if parts is None else _merged(np.concatenate(parts))
            self._runs[path] = merged if merged is None or _shared(merged) <= _MOST else None

    def own(self, path: str, start: int, stop: int) -> tuple[int, int]:
        """Which of the bytes of a write are in pages of its own: a range within it, perhaps an empty one.

        `path` is that of the output file.
        """
        first, end = start, stop
        if path in self._runs:
            runs = self._runs[path]
            if runs is None:
                return start, stop
            number = int(np.searchsorted(runs[:, 0], start, "right")) - 1
            if number >= 0 and stop <= runs[number, 1]:
                first, end = int(runs[number, 0]), int(runs[number, 1])
        low, high = max(start, -(-first // PAGE) * PAGE), min(stop, end // PAGE * PAGE)
        return (low, high) if low < high else (start, start)


def runs_of(tile: Tile, offset: int, itemsize: int) -> np.ndarray | None:
    """The runs of bytes of a flat tile in a file, [run, (start, stop)]; None where they are very many. `offset` is that of its tensor."""
    links = sorted((link for link in tile.links if link.size > 1), key=lambda link: link.stride)
    length = 1
    while links and links[0].stride == length:
        length *= links.pop(0).size
    if math.prod(link.size for link in links) > _RUNS:
        return None
    starts = np.array([tile.native_base[0]], np.int64)
    for link in reversed(links):
        starts = (starts[:, None] + np.arange(link.size, dtype=np.int64) * link.stride).reshape(-1)
    first = offset + starts * itemsize
    return np.stack([first, first + length * itemsize], axis=1)


def _merged(runs: np.ndarray) -> np.ndarray:
    """The same bytes in as few runs as possible, in their order. No byte is in two of them."""
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    begins = np.concatenate([[True], runs[1:, 0] != runs[:-1, 1]])
    ends = np.concatenate([begins[1:], [True]])
    return np.stack([runs[begins, 0], runs[ends, 1]], axis=1)


def _shared(runs: np.ndarray) -> int:
    """How many bytes of runs are in pages that they do not fill."""
    own = runs[:, 1] // PAGE * PAGE - -(-runs[:, 0] // PAGE) * PAGE
    return int((runs[:, 1] - runs[:, 0] - np.maximum(own, 0)).sum())
