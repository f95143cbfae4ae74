"""Tensors that every tensor parallel rank holds whole, and that are not the same on all of them.

Norms and the biases of row-parallel layers get equal gradients on all ranks, and should stay equal. During the training of
BLOOM-176B they drifted apart. No one model computes what such ranks compute together; BLOOM was published with the average
over the ranks, and so we read it, in float32, and say by how much they differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field

import numpy as np

from ckpt_core.sdk import disk, dtypes, errors, layouts, lazy, ledgers, reading, schema

_BOX = 1 << 20  # elements


@schema.dataclass
class Drift:
    """Compares what ranks hold, and keeps what was found.

    `averaged` are the tensors that differ, and `spreads` says by how much, by row of the tables. `unchecked`: the tensors whose
    masters can't be compared with the stored weights, since no one tensor rounds to what several ranks store, and by how much
    the weights differ.
    """

    parameters: Mapping[str, schema.Parameter]
    folder: str
    states: Sequence[disk.FileState]
    averaged: dict[str, reading.Averaged] = field(default_factory=dict)
    spreads: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    unchecked: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._source = lazy.SourceFiles(self.states)

    def __enter__(self) -> Drift:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def compare(
        self,
        native: layouts.Native,
        weights: Sequence[Sequence[lazy.Shard]],
        masters: Sequence[Sequence[lazy.Shard]] = (),
    ) -> None:
        """Compare a tensor that every rank holds: its weights, and its masters if they are what is read.

        Raises `FormatError` if it is not that of the model.
        """
        read = masters or weights
        spread = self._spread(native, read)
        if spread is not None:
            self.averaged[native.name] = reading.Averaged(read)
            self.spreads.setdefault(native.row.native, []).append((spread, native.name))
        if masters:
            apart = self._spread(native, weights)
            if spread is not None or apart is not None:
                self.unchecked[native.name] = apart or 0.0

    def _spread(self, native: layouts.Native, ranks: Sequence[Sequence[lazy.Shard]]) -> float | None:
        """The largest difference between what ranks hold of one tensor; None if all are equal, bit for bit."""
        if len(ranks) < 2:
            return None
        first, *others = (self._tensor(native, shards) for shards in ranks)
        largest: float | None = None
        for box in lazy.boxes(first.parameter.shape, _BOX):
            raw = self._source.read(first, box)
            least = most = dtypes.decode(raw, first.dtype)
            equal = True
            for other in others:
                copy = self._source.read(other, box)
                if other.dtype != first.dtype or not np.array_equal(raw.view(np.uint8), copy.view(np.uint8)):
                    equal = False
                    values = dtypes.decode(copy, other.dtype)
                    least, most = np.fmin(least, values), np.fmax(most, values)
            if not equal:
                with np.errstate(invalid="ignore"):
                    largest = max(largest or 0.0, float(np.fmax.reduce(most - least, axis=None)))
        return largest

    def _tensor(self, native: layouts.Native, shards: Sequence[lazy.Shard]) -> lazy.LazyParameter:
        (piece,) = native.pieces
        builder = lazy.ParameterBuilder({piece.parameter: self.parameters[piece.parameter]}, self.folder)
        builder.add(native, shards)
        return builder.finish()[piece.parameter]

    def losses(self, ranks: int) -> list[ledgers.Loss]:
        """What a user must know of it."""
        found = []
        for row, spreads in self.spreads.items():
            largest, where = max(spreads)
            several = f" of {len(spreads)} layers" if len(spreads) > 1 else ""
            reason = (
                f"the average over {ranks} tensor parallel ranks, whose copies differ by up to {largest:.3g} ({where})"
            )
            found.append(ledgers.Loss("assumed", row + several, reason))
        if self.unchecked:
            largest, where = max((apart, name) for name, apart in self.unchecked.items())
            reason = f"not compared with the stored weights, whose copies differ by up to {largest:.3g} between ranks ({where})"
            found.append(
                ledgers.Loss("assumed", f"fp32 masters of {errors.plural(len(self.unchecked), 'tensor')}", reason)
            )
        return found
