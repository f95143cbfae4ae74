"""Numbers that are computed of codes and scales while they are read, a few rows at a time.

To whoever reads them they are bytes at an offset, as those of a file are: the numbers of a `Quantised` tensor, rounded to a dtype and
laid out row by row. So all that works on stored tensors (shards, views, interleaved rows, transposes) works on them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np

from ckpt_core.errors import FormatError
from ckpt_core.storage.dtypes import BY_NAME, DType, decode, encode
from ckpt_core.storage.tensor import Operand, Quantised, contiguous_strides
from ckpt_core.tensors.scratch import scratch
from ckpt_core.tensors.strided import ReadInto

_PIECE = 1 << 18
"""How many numbers are computed at a time, but for a single row: they stay in the cache from the codes to the rounded values."""

_E8M0 = BY_NAME["fp8_e8m0"]

Open = Callable[[str], contextlib.AbstractContextManager[ReadInto]]
"""Opens a file for reading by its path."""


def shared_rows(stored: np.ndarray, per: int, first: int, rows: int) -> np.ndarray:
    """A stored row for each of the `rows` rows of numbers from row `first` on, where each is shared by `per` rows of a matrix.

    `stored` are the stored rows from that of row `first` on, [stored rows, width].

    >>> shared_rows(np.array([[5], [7]]), 4, first=2, rows=3).tolist()
    [[5], [5], [7]]
    """
    if per == 1:
        return stored
    return np.take(stored, (first % per + np.arange(rows)) // per, axis=0)


def read_numbers(quantised: Quantised, dtype: DType, open_: Open, view: memoryview, offset: int) -> None:
    """Fill `view` with the bytes from `offset` on that the numbers take in `dtype`. `FormatError` for a scale that is no number,
    and where a file is too short."""
    out = np.frombuffer(view, dtype.numpy)
    columns = quantised.columns
    at, done = offset // dtype.size, 0
    while done < out.size:
        row, column = divmod(at + done, columns)
        matrix, inner = divmod(row, quantised.rows)
        rows = 1
        if not column:
            rows = min(quantised.rows - inner, (out.size - done) // columns, max(1, _PIECE // columns)) or 1
        numbers = _decoded(quantised, matrix, inner, rows, open_).reshape(-1)
        taken = min(rows * columns - column, out.size - done)
        out[done : done + taken] = encode(numbers[column : column + taken], dtype)
        done += taken


def _decoded(quantised: Quantised, matrix: int, first: int, rows: int, open_: Open) -> np.ndarray:
    raw = [
        stored_rows(operand, place, quantised.matrices, matrix, first, rows, open_)
        for place, operand in enumerate(quantised.operands)
    ]
    return decoded(quantised, raw, first, rows)


def decoded(quantised: Quantised, raw: Sequence[np.ndarray], first: int, rows: int) -> np.ndarray:
    """The numbers of rows of a matrix, float32 [rows, columns], of the raw stored rows of each operand. `FormatError` for a scale
    that is no number, and for what the scheme refuses."""
    operands = quantised.operands
    handed = [_finite(one, operand) if operand.scale else one for one, operand in zip(raw, operands, strict=True)]
    try:
        return quantised.scheme.decode(handed, first, rows)
    except FormatError as problem:
        problem.file = problem.file or operands[0].stored.file
        problem.problem = f"{operands[0].name!r} can't be dequantised: {problem.problem}"
        raise


def stored_rows(
    operand: Operand, place: int, matrices: int, matrix: int, first: int, rows: int, open_: Open
) -> np.ndarray:
    """The stored rows of an operand that belong to `rows` rows of a matrix from row `first` on: raw elements [stored rows, width], in
    this thread's buffer number `place`."""
    held = operand.stored
    if held.strides != contiguous_strides(held.shape):
        raise FormatError(
            f"tensor {operand.name!r} is a view of another one, in which its elements do not lie in their order",
            file=held.file,
            fix="save its `contiguous()`",
        )
    start, stop = operand.span(matrices, first, rows)
    raw = scratch(f"operand {place}", (stop - start, operand.width), held.dtype.numpy)
    with open_(held.file) as read:
        read(raw.reshape(-1).view(np.uint8).data, operand.place(matrices, matrix, start))
    return raw


def _finite(raw: np.ndarray, operand: Operand) -> np.ndarray:
    scales = decode(raw, _E8M0 if operand.stored.dtype.name == "uint8" else operand.stored.dtype)
    if not np.isfinite(scales).all():
        wrong = scales[~np.isfinite(scales)]
        raise FormatError(
            f"tensor {operand.name!r} has {wrong.size} scales that are no numbers",
            file=operand.stored.file,
            found=f"{wrong[0]:g} among those that are read together",
            expected="finite scales",
            fix="the file is damaged, or its quantiser divided by zero: copy it again, or quantise the model again",
        )
    return scales
