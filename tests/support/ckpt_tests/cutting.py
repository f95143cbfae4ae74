"""Tiny models in many pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ckpt_core.tensors import digest, pieces


@contextlib.contextmanager
def pieces_of(elements: int, *, whole: bool = False) -> Iterator[None]:
    """Inside the block, a leaf has so many elements and a piece is one leaf, or, with `whole`, a tensor. What a file has in another order
    of axes is cut only between units."""
    before = digest.LEAF, pieces.PIECE, pieces._RAGGED
    digest.LEAF, pieces.PIECE, pieces._RAGGED = elements, 1 << 60 if whole else 1, 0
    try:
        yield
    finally:
        digest.LEAF, pieces.PIECE, pieces._RAGGED = before
