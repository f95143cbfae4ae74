"""What the values of a checkpoint look like: one pass over the tensors, in bounded memory.

Every tensor is taken apart into boxes of the same number of elements, whatever its dtype and however it is stored, and
their sums are added up in canonical order. So equal models have equal statistics, to the last bit, in every format,
parallel layout and storage dtype that holds their values.
"""

from __future__ import annotations

import math

from ckpt_core import numpy as np
from ckpt_core.api import over_tensors
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.engine.pieces import Transfer
from ckpt_core.engine.run import Listener
from ckpt_core.lean import dataclass
from ckpt_core.storage.dtypes import decode
from ckpt_core.tensors.box import boxes
from ckpt_core.tensors.source import SourceFiles

_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Statistics:
    """The values of one canonical tensor, vocabulary padding left out.

    `norm` (Euclidean), `mean`, `low` (the least) and `high` are those of the finite values, summed in float64, and None
    if there is no finite value. `zeros` counts zeros of both signs.
    """

    count: int
    nans: int
    infinities: int
    zeros: int
    norm: float | None
    mean: float | None
    low: float | None
    high: float | None

    @property
    def finite(self) -> bool:
        """Whether every value is a number."""
        return not self.nans and not self.infinities

    def to_json(self) -> dict[str, int | float | None]:
        return {
            "count": self.count,
            "norm": self.norm,
            "mean": self.mean,
            "min": self.low,
            "max": self.high,
            "zeros": self.zeros,
            "nan": self.nans,
            "inf": self.infinities,
        }


class Sums:
    """What statistics are made of, fed with values piece by piece."""

    def __init__(self) -> None:
        self._count = self._nans = self._infinities = self._zeros = 0
        self._norm = self._total = 0.0
        self._low, self._high = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """Take in float32 or float64 values of any shape."""
        self._count += values.size
        if not values.size:
            return
        low, high = values.min(), values.max()  # a NaN comes out of both, an infinity out of one
        if not (np.isfinite(low) and np.isfinite(high)):
            nans, numbers = int(np.isnan(values).sum()), values[np.isfinite(values)]
            self._nans += nans
            self._infinities += values.size - nans - numbers.size
            if not numbers.size:
                return
            values, low, high = numbers, numbers.min(), numbers.max()
        self._zeros += values.size - int(np.count_nonzero(values))
        self._low, self._high = min(self._low, float(low)), max(self._high, float(high))
        wide = values.astype(np.float64)
        self._total += float(wide.sum())
        # Squares of float32 values fit float64; those of float64 values may not, so they are scaled.
        scale = max(abs(float(low)), abs(float(high))) if values.dtype == np.float64 else 1.0
        if scale not in (0.0, 1.0):
            wide /= scale
        self._norm = math.hypot(self._norm, scale * math.sqrt(float(np.square(wide, out=wide).sum())))

    def statistics(self) -> Statistics:
        """Of everything taken in so far."""
        numbers = self._count - self._nans - self._infinities
        known = (self._norm, self._total / numbers, self._low, self._high) if numbers else (None, None, None, None)
        return Statistics(self._count, self._nans, self._infinities, self._zeros, *known)


def statistics(
    checkpoint: Checkpoint, *, workers: int | None = None, listener: Listener | None = None
) -> dict[str, Statistics]:
    """The statistics of every canonical tensor, read once, in bounded memory."""
    return over_tensors(checkpoint, _of_tensor, workers=workers, listener=listener)


def _of_tensor(transfer: Transfer, source: SourceFiles) -> Statistics:
    assembly, sums = transfer.assembly, Sums()
    for box in boxes(assembly.parameter.true_shape, _ELEMENTS):
        values = source.read(assembly, box, transient=True)
        # A float64 value need not fit float32, which is what `decode` gives.
        sums.add(values if assembly.value_dtype.name == "fp64" else decode(values, assembly.value_dtype))
    return sums.statistics()
