"""An opened checkpoint: a mapping of canonical tensors that are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import EllipsisType
from typing import Any, SupportsIndex

from ckpt_core import numpy as np
from ckpt_core.addresses import spelled
from ckpt_core.architecture import Architecture, Axis
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.errors import did_you_mean
from ckpt_core.storage.dtypes import DType, decode
from ckpt_core.tensors.assembly import LazyParameter
from ckpt_core.tensors.source import SourceFiles
from ckpt_core.text import plural
from ckpt_core.training import Kind, Training

Index = SupportsIndex | slice | EllipsisType
"""One index of a tensor: an int, a slice with a positive step, or `...`."""

_CPU = 1  # as DLPack numbers devices


class LazyTensor:
    """A canonical tensor that is still on disk: name, axes, shape and dtype now, values when they are asked for.

    `np.asarray(tensor)` and `torch.as_tensor(tensor)` read all of it, as float32.
    """

    def __init__(self, parameter: LazyParameter, source: SourceFiles) -> None:
        self._lazy, self._source = parameter, source

    @property
    def name(self) -> str:
        """The canonical name."""
        return self._lazy.parameter.name

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The named axes, with sizes."""
        return self._lazy.parameter.axes

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes, vocabulary padding included."""
        return self._lazy.parameter.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> DType:
        """The dtype that the values are stored in."""
        return self._lazy.dtype

    def numpy(self) -> np.ndarray:
        """All values as a float32 array of `shape`. `FormatError` where the files changed or are damaged."""
        return self[...]

    def raw(self) -> np.ndarray:
        """All values as an array of `shape` of raw elements of `dtype` (bf16 as uint16), without any conversion."""
        return self._source.read(self._lazy, tuple((0, size) for size in self.shape))

    def __getitem__(self, index: Index | tuple[Index, ...]) -> np.ndarray:
        """Values as float32, in the shape that NumPy gives to the index; only the bytes of the first axes' slices are read.

        Indices are ints, slices with a positive step and `...`; anything else, or too many, is an `IndexError`.
        """
        box, squeeze, strides = _box_of(index, self.shape)
        values = decode(self._source.read(self._lazy, box), self._lazy.value_dtype)
        return values[tuple(slice(None, None, step) for step in strides)].reshape(
            [
                len(range(0, stop - start, step))
                for n, ((start, stop), step) in enumerate(zip(box, strides, strict=True))
                if n not in squeeze
            ]
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All values, for NumPy: float32 unless another dtype is asked for. `ValueError` for `copy=False`: they are on disk."""
        if copy is False:
            raise ValueError("the values are on disk, and reading them makes an array: do not ask for copy=False")
        return self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)

    def __dlpack__(self, **asked: Any) -> Any:
        """All values as float32, for `torch.as_tensor` and what else takes DLPack."""
        return self.numpy().__dlpack__(**asked)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU, 0

    def __repr__(self) -> str:
        return f"<{self._lazy.parameter} {self.dtype}>"


def _box_of(index: Any, shape: tuple[int, ...]) -> tuple[tuple[tuple[int, int], ...], set[int], list[int]]:
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in parts):
        at = next(place for place, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(shape) - len(parts) + 1)
    parts += [slice(None)] * (len(shape) - len(parts))
    if len(parts) > len(shape):
        raise IndexError(f"{len(parts)} indices for {len(shape)} axes")
    box, squeeze, strides = [], set(), []
    for axis, (part, size) in enumerate(zip(parts, shape, strict=True)):
        if isinstance(part, slice):
            start, stop, step = part.indices(size)
            if step < 1:
                raise IndexError("a step must be positive")
            box.append((start, max(start, stop)))
            strides.append(step)
        elif isinstance(part, SupportsIndex) and not isinstance(part, bool | np.bool_ | np.ndarray):
            position = range(size)[part]
            box.append((position, position + 1))
            strides.append(1)
            squeeze.add(axis)
        else:
            raise IndexError(f"{part!r:.60} is not an index of a tensor on disk: give ints, slices and ...")
    return tuple(box), squeeze, strides


class OpenCheckpoint(Mapping[str, LazyTensor]):
    """An opened checkpoint: its architecture, and a lazy mapping of canonical tensors by name.

    It holds files open: use it as a context, or `close` it. `checkpoint` is what its reader made of the files.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._source = SourceFiles(checkpoint.files)

    @property
    def architecture(self) -> Architecture:
        """What the model is."""
        return self.checkpoint.architecture

    @property
    def format(self) -> str:
        """The format that it is read as."""
        return self.checkpoint.format

    @property
    def path(self) -> str:
        """Where it lies: a path, or the address that was given."""
        return spelled(self.checkpoint.path)

    @property
    def training(self) -> Training | None:
        """The state of its training, where there is one and it was opened with `training_state`."""
        return self.checkpoint.training

    def moment(self, kind: Kind, name: str) -> LazyTensor:
        """`exp_avg`, `exp_avg_sq` or `master` of a canonical parameter; `KeyError` if it is not trained, or no state was opened."""
        return LazyTensor(({} if self.training is None else self.training.of(kind))[name], self._source)

    def __getitem__(self, name: str) -> LazyTensor:
        try:
            return LazyTensor(self.checkpoint.tensors[name], self._source)
        except KeyError:
            known = did_you_mean(name, self.checkpoint.tensors) if isinstance(name, str) else None
            raise KeyError(f"{name!r}: no tensor of that name{f'; {known}' if known else ''}") from None

    def __contains__(self, name: object) -> bool:
        return name in self.checkpoint.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoint.tensors)

    def __len__(self) -> int:
        return len(self.checkpoint.tensors)

    def close(self) -> None:
        """Close the files that were read."""
        self._source.close()

    def __enter__(self) -> OpenCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        stacks = " and ".join(
            f"{name}{len(stack.layers)} layers".replace(".", " of ") for name, stack in self.architecture.towers.items()
        )
        said = f"{stacks}, hidden {self.architecture.hidden}, {plural(len(self), 'tensor')}"
        return f"<OpenCheckpoint {self.format} {self.path}: {said}>"
