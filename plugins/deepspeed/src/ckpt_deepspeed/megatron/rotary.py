"""The buffer of rotary positions: computed from the base, and yet stored in every layer's file (rotary.py).

A strict loader refuses a layer without it. It is also all that tells a fork with another base from the original.
"""

from __future__ import annotations

import numpy as np

from ckpt_core.sdk import FormatError, StoredTensor, disk, dtypes

INVERSE_FREQUENCIES = "self_attention.rotary_emb.inv_freq"
_EXACT, _ROUNDING = 1e-5, 2.0**-7  # of float32 powers, and of bfloat16


def check_buffer(stored: StoredTensor, expected: np.ndarray | None) -> float:
    """By how much at most a stored buffer is off, relative to the model's frequencies: 0 but for its rounding to 16 bits.

    Raises `FormatError` if it is that of another model.
    """
    if expected is None or stored.shape != expected.shape:
        found = (
            f"shape {stored.shape}"
            if expected is not None
            else "rotary frequencies in a model without rotary positions"
        )
        raise FormatError(f"{INVERSE_FREQUENCIES} is not that of the model", file=stored.file, found=found)
    raw = np.frombuffer(
        disk.read_range(stored.file, stored.offset, stored.elements * stored.dtype.size), stored.dtype.numpy
    )
    values = dtypes.decode(raw, stored.dtype)
    off = float(np.abs(values / expected - 1).max())
    if not off <= (_EXACT if stored.dtype.size > 2 else _ROUNDING):
        raise FormatError(
            f"{INVERSE_FREQUENCIES} has other frequencies than the base of 10000 gives",
            file=stored.file,
            found=str(values[:4]),
            expected=str(expected[:4]),
        )
    return off if stored.dtype.size <= 2 else 0.0
