"""Hashes of canonical tensors that do not depend on format, layout, chunking or storage dtype.

A value is hashed as its float32 bits, the high and the low halves apart: a bf16 tensor is all high
halves, so it is hashed at the speed of its own bytes and still equals the same values stored in float32.

    digest = BLAKE3(BLAKE3(high halves) || BLAKE3(low halves))      low part empty if every low half is zero

Elements come in canonical row-major order, without vocabulary padding. A fingerprint is the BLAKE3 of the
sorted lines "name shape digest" of all tensors.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from blake3 import blake3

from ckpt_core.storage.dtypes import BLOCK, DType, decode

_ZEROS = bytes(1 << 20)


class TensorDigest:
    """The digest of one canonical tensor, fed chunk by chunk in canonical order."""

    def __init__(self) -> None:
        self._high = blake3()
        self._low: blake3 | None = None
        self._zero_bytes = 0

    def update(self, raw: np.ndarray, dtype: DType) -> None:
        """Add the next elements, given as raw values of `dtype`."""
        if dtype.name == "bf16":
            self._high.update(_view(raw))
            self._low_zeros(raw.size * 2)
            return
        bits = np.ascontiguousarray(decode(raw, dtype)).reshape(-1).view(np.uint32)
        for start in range(0, bits.size, BLOCK):
            self._halves(bits[start : start + BLOCK])

    def _halves(self, bits: np.ndarray) -> None:
        self._high.update(_view((bits >> 16).astype(np.uint16)))
        if self._low is None and not np.bitwise_or.reduce(bits) & 0xFFFF:
            self._zero_bytes += bits.size * 2
            return
        if self._low is None:
            self._low, zeros, self._zero_bytes = blake3(), self._zero_bytes, 0
            self._low_zeros(zeros)
        self._low.update(_view(bits.astype(np.uint16)))  # modulo 2**16

    def _low_zeros(self, count: int) -> None:
        if self._low is None:
            self._zero_bytes += count
            return
        while count:
            part = min(count, len(_ZEROS))
            self._low.update(_ZEROS[:part])
            count -= part

    def hexdigest(self) -> str:
        low = b"" if self._low is None else self._low.digest()
        return blake3(self._high.digest() + low).hexdigest()


def _view(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def fingerprint(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> str:
    """The fingerprint of a model from (canonical name, true shape, digest) of its tensors."""
    lines = sorted(f"{name} {'x'.join(map(str, shape))} {digest}\n" for name, shape, digest in tensors)
    return blake3("".join(lines).encode()).hexdigest()
