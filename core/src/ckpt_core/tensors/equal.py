"""Whether two tensors in files hold the same elements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ckpt_core.storage.bytes.files import FileState
from ckpt_core.tensors.assembly import Shard, of_shards, tiles_exactly, whole_shape
from ckpt_core.tensors.box import boxes
from ckpt_core.tensors.source import SourceFiles

_STEP = 1 << 20
"""How many elements of each are compared at a time."""


def are_equal(one: Sequence[Shard], other: Sequence[Shard], files: Iterable[FileState]) -> bool:
    """Whether two tensors, each in shards that tile it, have one shape, one dtype and the same bits. Stops at the first difference.

    `files` are those that the shards lie in. `FormatError` where one of them changed or is cut off.
    """
    shape = whole_shape(one)
    whole = shape is not None and tiles_exactly(shape, one) and tiles_exactly(shape, other)
    if shape is None or not whole or len({shard.stored.dtype for shard in (*one, *other)}) != 1:
        return False
    left, right = of_shards("one", shape, one), of_shards("other", shape, other)
    source = SourceFiles(files)
    try:
        return all(source.read(left, box).tobytes() == source.read(right, box).tobytes() for box in boxes(shape, _STEP))
    finally:
        source.close()
