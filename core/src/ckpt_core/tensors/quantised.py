"""Numbers that are computed of codes and scales while they are read, a few rows at a time.

To whoever reads them they are bytes at an offset, as those of a file are: the numbers of a `Quantised` tensor, rounded to a dtype and
laid out row by row. So all that works on stored tensors (shards, views, interleaved rows, transposes) works on them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from ckpt_core import numpy as np
from ckpt_core.errors import FormatError
from ckpt_core.storage.dtypes import BY_NAME, DType, decode, encode
from ckpt_core.storage.scratch import scratch
from ckpt_core.storage.tensor import Operand, Quantised, contiguous_strides
from ckpt_core.tensors.strided import ReadInto
from ckpt_core.text import plural

_PIECE = 1 << 18
"""How many numbers are computed at a time, but for a single row: they stay in the cache from the codes to the rounded values."""

_E8M0 = BY_NAME["fp8_e8m0"]

Open = Callable[[str], contextlib.AbstractContextManager[ReadInto]]
"""Opens a file for reading by its path."""


def read_numbers(quantised: Quantised, dtype: DType, open_: Open, view: memoryview, offset: int) -> None:
    """Fill `view` with the bytes from `offset` on that the numbers take in `dtype`. `FormatError` for a scale that is no number,
    and where a file is too short."""
    out = np.frombuffer(view, dtype.numpy)
    columns = quantised.columns
    at, done = offset // dtype.size, 0
    with contextlib.ExitStack() as opened:
        files = {operand.stored.file for operand in quantised.operands}
        reads = {file: opened.enter_context(open_(file)) for file in files}
        while done < out.size:
            row, column = divmod(at + done, columns)
            matrix, inner = divmod(row, quantised.rows)
            rows = 1
            if not column:
                rows = min(quantised.rows - inner, (out.size - done) // columns, max(1, _PIECE // columns)) or 1
            raw = [
                stored_rows(operand, place, quantised.matrices, matrix, inner, rows, reads[operand.stored.file])
                for place, operand in enumerate(quantised.operands)
            ]
            numbers = decoded(quantised, raw, inner, rows).reshape(-1)
            taken = min(rows * columns - column, out.size - done)
            encode(numbers[column : column + taken], dtype, out[done : done + taken])
            done += taken


def decoded(quantised: Quantised, raw: Sequence[np.ndarray], first: int, rows: int) -> np.ndarray:
    """The numbers of rows of a matrix, float32 [rows, columns], of the raw stored rows of each operand; they may lie in this thread's
    buffer, where those of the next rows replace them. `FormatError` for a scale that is no number, and for what the scheme refuses."""
    operands = quantised.operands
    handed = [_finite(one, operand) if operand.scale else one for one, operand in zip(raw, operands, strict=True)]
    try:
        # A product that float32 does not hold is infinite, as in the tools.
        with np.errstate(over="ignore", invalid="ignore"):
            return quantised.scheme.decode(handed, first, rows)
    except FormatError as problem:
        problem.file = problem.file or operands[0].stored.file
        problem.problem = f"{operands[0].name!r} can't be dequantised: {problem.problem}"
        raise


def stored_rows(
    operand: Operand, place: int, matrices: int, matrix: int, first: int, rows: int, read: ReadInto
) -> np.ndarray:
    """The stored rows of an operand, whose file `read` reads, that belong to `rows` rows of a matrix from row `first` on: raw elements [stored rows, width], in
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
    read(raw.reshape(-1).view(np.uint8).data, operand.place(matrices, matrix, start))
    return raw


def _finite(raw: np.ndarray, operand: Operand) -> np.ndarray:
    scales = decode(raw, _E8M0 if operand.stored.dtype.name == "uint8" else operand.stored.dtype)
    if not np.isfinite(scales).all():
        wrong = scales[~np.isfinite(scales)]
        raise FormatError(
            f"tensor {operand.name!r} has scales that are no numbers",
            file=operand.stored.file,
            found=f"{plural(wrong.size, 'such scale')} among those that are read together, the first {wrong[0]:g}",
            expected="finite scales",
            fix="the file is damaged, or its quantiser divided by zero: copy it again, or quantise the model again",
        )
    return scales
