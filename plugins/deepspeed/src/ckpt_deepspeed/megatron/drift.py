"""Tensors that every tensor parallel rank holds whole, and that are not the same on all of them.

Norms and the biases of row-parallel layers get equal gradients on all ranks, and should stay equal. During the training of
BLOOM-176B they drifted apart. No one model computes what such ranks compute together; BLOOM was published with the average
over the ranks, and so we read it, in float32, and say by how much they differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ckpt_core.sdk import Loss, Native, ParameterBuilder, Shard, disk, dtypes, lazy, schema

_BOX = 1 << 20  # elements


@dataclass
class Drift:
    """Compares what ranks hold, and keeps what was found.

    `spreads`: by row of the tables, the tensors that differ and by how much. `unchecked`: the tensors whose masters can't be
    compared with the stored weights, since no one tensor rounds to what several ranks store.
    """

    parameters: Mapping[str, schema.Parameter]
    folder: str
    states: Sequence[disk.FileState]
    spreads: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    unchecked: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._source = lazy.SourceFiles(self.states)

    def __enter__(self) -> Drift:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def spread(self, native: Native, ranks: Sequence[Sequence[Shard]]) -> float | None:
        """The largest difference between what ranks hold of one tensor; None if all are equal, bit for bit."""
        first, *others = (self._assembly(native, shards) for shards in ranks)
        low: float | None = None
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
                    low = max(low or 0.0, float(np.fmax.reduce(most - least, axis=None)))
        return low

    def note(self, native: Native, spread: float) -> None:
        """Keep what `spread` found of a tensor."""
        self.spreads.setdefault(native.row.native, []).append((spread, native.name))

    def _assembly(self, native: Native, shards: Sequence[Shard]) -> lazy.LazyParameter:
        (piece,) = native.pieces
        assembler = ParameterBuilder({piece.parameter: self.parameters[piece.parameter]}, self.folder)
        assembler.add(native, shards)
        return assembler.finish()[piece.parameter]

    def losses(self, ranks: int) -> list[Loss]:
        """What a user must know of it."""
        found = []
        for row, spreads in self.spreads.items():
            largest, where = max(spreads)
            several = f" of {len(spreads)} layers" if len(spreads) > 1 else ""
            reason = (
                f"the average over {ranks} tensor parallel ranks, whose copies differ by up to {largest:.3g} ({where})"
            )
            found.append(Loss("assumed", row + several, reason))
        if self.unchecked:
            largest, where = max(self.unchecked)
            reason = f"not compared with the stored weights, whose copies differ by up to {largest:.3g} between ranks ({where})"
            found.append(Loss("assumed", f"fp32 masters of {len(self.unchecked)} tensors", reason))
        return found
