"""The weights of a model, read in blocks of rows while they are used."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping

import torch

from ckpt_core import numpy as np
from ckpt_core.architecture import Norm
from ckpt_core.lean import dataclass
from ckpt_core.opened import LazyTensor

DEFAULT_BLOCK = 64 << 20
ROW_PARALLEL = (
    ".out.weight",
    ".down.weight",
)  # the products of which tensor parallel ranks compute parts that are summed


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How products are formed: in float32, or `rounded` to a narrower dtype like the kernels of a training run.

    `ranks`: the products that tensor parallel ranks share are sums of so many partial products, as they compute them.
    """

    ranks: int = 1
    rounded: torch.dtype | None = None

    def product(self, x: torch.Tensor, weight: torch.Tensor, row_parallel: bool) -> torch.Tensor:
        """x W^T."""
        ranks = self.ranks if row_parallel else 1
        parts = zip(x.tensor_split(ranks, -1), weight.tensor_split(ranks, -1), strict=True)
        return functools.reduce(
            lambda total, part: self._stored(total + part), (self._stored(a @ b.T) for a, b in parts)
        )

    def _stored(self, values: torch.Tensor) -> torch.Tensor:
        return values if self.rounded is None else values.to(self.rounded).float()


class Weights:
    """Canonical tensors as float32, of which no more than about `block` bytes are held at a time.

    A single row (one output of a projection) is never cut.
    """

    def __init__(
        self, tensors: Mapping[str, LazyTensor], block: int = DEFAULT_BLOCK, arithmetic: Arithmetic = Arithmetic()
    ) -> None:
        self._tensors = tensors
        self._elements = block // 4
        self._arithmetic = arithmetic

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def vector(self, name: str, expert: int | None = None) -> torch.Tensor:
        """A small tensor, whole: a norm, a bias, a table of positions."""
        tensor = self._tensors[name]
        return torch.from_numpy(np.ascontiguousarray(tensor[...] if expert is None else tensor[expert]))

    def rows(self, name: str, indices: torch.Tensor) -> torch.Tensor:
        """Rows of an embedding, [*indices.shape, h]; each row that occurs is read once."""
        tensor = self._tensors[name]
        needed, places = torch.unique(indices, return_inverse=True)
        table = torch.empty(len(needed), *tensor.shape[1:])
        for place, row in enumerate(needed.tolist()):
            table[place] = torch.from_numpy(tensor[row])
        return table[places]

    def linear(self, x: torch.Tensor, name: str, expert: int | None = None, contracted: int = 1) -> torch.Tensor:
        """x W^T + b for `NAME.weight` and, where it exists, `NAME.bias`; see `product`."""
        y, bias = self.product(x, f"{name}.weight", expert, contracted), f"{name}.bias"
        return y + self.vector(bias, expert).reshape(-1) if bias in self._tensors else y

    def product(self, x: torch.Tensor, name: str, expert: int | None = None, contracted: int = 1) -> torch.Tensor:
        """x W^T.

        The last `contracted` axes of the weight meet as many last axes of `x`; its other axes, flattened, are the last
        axis of the result. `expert` picks one of the weights that are stacked along the first axis.
        """
        tensor = self._tensors[name]
        shape = tensor.shape if expert is None else tensor.shape[1:]
        inner = math.prod(shape[len(shape) - contracted :])
        flat = x.reshape(*x.shape[: x.dim() - contracted], inner)
        blocks = self._blocks(tensor, shape, expert)
        row_parallel = name.endswith(ROW_PARALLEL)
        return torch.cat(
            [self._arithmetic.product(flat, block.reshape(-1, inner), row_parallel) for block in blocks], dim=-1
        )

    def _blocks(self, tensor: LazyTensor, shape: tuple[int, ...], expert: int | None) -> Iterator[torch.Tensor]:
        step = max(1, self._elements // max(1, math.prod(shape[1:])))
        for start in range(0, shape[0], step):
            part = slice(start, start + step)
            yield torch.from_numpy(np.ascontiguousarray(tensor[part] if expert is None else tensor[expert, part]))

    def norm(
        self, x: torch.Tensor, name: str, norm: Norm | None, axes: int = 1, parts: int = 1, part: int | None = None
    ) -> torch.Tensor:
        """A normalisation over the last `axes` axes of `x`, or over each of so many equal `parts` of the last one; None leaves it alone.
        `part` picks one of the weights that are stacked along the first axis.
        """
        if norm is None:
            return x
        shape, over = x.shape, tuple(range(-axes, 0))
        if parts > 1:
            x = x.unflatten(-1, (parts, -1))
        if norm.kind == "layer":
            x = x - x.mean(over, keepdim=True)
        x = (x * torch.rsqrt(x.square().mean(over, keepdim=True) + norm.eps)).reshape(shape)
        if norm.weight:
            weight = self.vector(f"{name}.weight", part).reshape(shape[-axes:])
            x = x * (1 + weight if norm.zero_centred else weight)
        return x + self.vector(f"{name}.bias", part).reshape(shape[-axes:]) if norm.bias else x
