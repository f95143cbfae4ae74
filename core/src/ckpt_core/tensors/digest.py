"""Hashes of canonical tensors that do not depend on format, layout, chunking or storage dtype.

A value is hashed as its float32 bits, the high and the low halves apart: a bf16 tensor is all high
halves, so it is hashed at the speed of its own bytes and still equals the same values stored in float32.

    leaf   = BLAKE3(BLAKE3(high halves) || BLAKE3(low halves))      low part empty if every low half is zero
    digest = BLAKE3(leaf || leaf || ...)                            a leaf for every 2**24 elements, in their order

Elements come in canonical row-major order, without vocabulary padding. A fingerprint is the BLAKE3 of the
sorted lines "name shape digest" of all tensors. Leaves are hashed by anyone in any order, so a tensor can be cut (`tensors.pieces`).

That is version 2, and its digests and fingerprints begin with `v2-`. In version 1 the digest of a tensor was one leaf, however many
elements it had; there its digests and fingerprints are hex alone. They are still computed to verify what records them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from blake3 import blake3

from ckpt_core import numpy as np
from ckpt_core.errors import FormatError
from ckpt_core.lean import dataclass
from ckpt_core.storage.dtypes import DType, decode
from ckpt_core.storage.floats import BLOCK

VERSION = 2
LEAF = 1 << 24
"""How many elements a leaf has; the last one of a tensor has the rest."""

_ZEROS = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class Digests:
    """The digest of a tensor as it was written, and of what was read where that may be another one."""

    digest: str
    source_digest: str | None = None


class Hash(Protocol):
    """Hashes elements that are fed chunk by chunk in canonical order; `leaves` are the digests of theirs, in hex."""

    def update(self, raw: np.ndarray, dtype: DType) -> None: ...
    @property
    def leaves(self) -> list[str]: ...


class LeafDigest:
    """A leaf, fed chunk by chunk in canonical order; of a whole tensor it is the digest of version 1."""

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

    @property
    def leaves(self) -> list[str]:
        return [self.hexdigest()]

    def hexdigest(self) -> str:
        low = b"" if self._low is None else self._low.digest()
        return blake3(self._high.digest() + low).hexdigest()


class TreeDigest:
    """The leaves of a tensor, or of a part of it that begins where a leaf does, fed chunk by chunk in canonical order."""

    def __init__(self) -> None:
        self._closed: list[str] = []
        self._open = LeafDigest()
        self._room = LEAF

    def update(self, raw: np.ndarray, dtype: DType) -> None:
        """Add the next elements, given as raw values of `dtype`."""
        rest = np.ascontiguousarray(raw).reshape(-1)
        if 0 < rest.size < self._room:  # most are far smaller than a leaf
            self._open.update(rest, dtype)
            self._room -= rest.size
            return
        while rest.size:
            part, rest = rest[: self._room], rest[self._room :]
            self._open.update(part, dtype)
            self._room -= part.size
            if not self._room:
                self._closed.append(self._open.hexdigest())
                self._open, self._room = LeafDigest(), LEAF

    @property
    def leaves(self) -> list[str]:
        """The digests of all leaves so far, in hex."""
        return self._closed if self._room == LEAF else [*self._closed, self._open.hexdigest()]


HASHES: dict[int, type[Hash]] = {1: LeafDigest, 2: TreeDigest}
"""How a tensor is hashed in each version."""


def of_leaves(leaves: Sequence[str], version: int = VERSION) -> str:
    """The digest of a tensor, of its leaves in their order."""
    if version == 1:
        (whole,) = leaves
        return whole
    return _spelled(version, blake3(bytes.fromhex("".join(leaves))).hexdigest())


def version_of(text: str) -> int:
    """The version of a digest or a fingerprint. `FormatError` if it is none, or of a version that is not known here.

    >>> version_of("v2-" + 64 * "0"), version_of(64 * "0")
    (2, 1)
    """
    found = re.fullmatch("(?:v([0-9]{1,9})-)?([0-9a-f]{64})", text)
    version = 0 if found is None else int(found[1] or 1)
    if found is None or version not in HASHES or text != _spelled(version, found[2]):
        known = ", ".join(map(str, HASHES))
        raise FormatError(
            "a digest that is not known",
            found=f"{text:.80}",
            expected=f"64 hexadecimal digits, alone or after v{VERSION}- (versions {known})",
            fix="a later ckpt may know it",
        )
    return version


def _spelled(version: int, digest: str) -> str:
    return digest if version == 1 else f"v{version}-{digest}"


def _view(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def fingerprint(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> str:
    """The fingerprint of a model from (canonical name, true shape, digest) of its tensors; its version is that of all digests."""
    listed = list(tensors)
    version, *others = {version_of(digest) for *_, digest in listed} or {VERSION}
    if others:
        raise ValueError("digests of several versions")
    lines = sorted(f"{name} {'x'.join(map(str, shape))} {digest}\n" for name, shape, digest in listed)
    return _spelled(version, blake3("".join(lines).encode()).hexdigest())
