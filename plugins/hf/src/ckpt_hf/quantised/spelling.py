"""What the codes and the scales of a weight are called in files, and the weight that they make."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping

from ckpt_core.sdk import FormatError, StoredTensor, lazy, schema
from ckpt_hf.quantised.said import FP8, WEIGHT

_SCALE_DTYPES = ("fp32", "fp16", "bf16", "fp8_e8m0", "uint8", "fp8_e4m3")


@schema.dataclass(frozen=True, slots=True)
class Quantity:
    """A stored tensor with its name."""

    name: str
    stored: StoredTensor

    def wrong(self, problem: str, expected: str | None = None, fix: str | None = None) -> FormatError:
        """The error that this tensor is wrong."""
        found = f"{self.stored.dtype} {list(self.stored.shape)}"
        return FormatError(
            f"tensor {self.name!r} {problem}", file=self.stored.file, found=found, expected=expected, fix=fix
        )

    def operand(self, width: int, rows: int = 1, stored_rows: int = 1, *, scale: bool = False) -> lazy.Operand:
        """It as an operand of numbers."""
        return lazy.Operand(self.name, self.stored, width, rows, stored_rows, scale)


@schema.dataclass(frozen=True, slots=True)
class Parts:
    """What was found of one weight: `codes`, and by their roles what else belongs to them. `name` is that of the weight, and `what` the scheme
    in words."""

    name: str
    codes: Quantity
    beside: Mapping[str, Quantity]
    what: str


Made = Callable[[Parts], StoredTensor]
"""The weight that parts make. `FormatError` where they contradict each other or what the config says."""


@schema.dataclass(frozen=True)
class Spelling:
    """How one scheme calls what it stores of a weight.

    `codes` is how the name of the codes ends, and `weight` how that of the weight does, where they differ; a tensor is codes by its
    name and its dtype. `beside` has for each role the endings by which the name of that tensor may replace that of the codes; the
    roles in `optional` need not be there.
    """

    codes: str
    weight: str
    dtypes: tuple[str, ...]
    beside: Mapping[str, tuple[str, ...]]
    made: Made
    optional: tuple[str, ...] = ()

    def fits(self, name: str, tensor: StoredTensor) -> bool:
        """Whether a tensor is codes of this scheme."""
        return name.endswith(self.codes) and tensor.dtype.name in self.dtypes

    def parts(self, name: str, tensors: Mapping[str, StoredTensor], what: str) -> Parts:
        """What there is of a weight whose codes are called `name`, of the scheme `what`. `FormatError` for what is missing, and for what is there twice."""
        stem = name.removesuffix(self.codes) if self.codes else name
        codes = Quantity(name, tensors[name])
        found: dict[str, Quantity] = {}
        for role, endings in self.beside.items():
            named = [full for ending in endings if (full := stem + ending) in tensors]
            if len(named) > 1:
                raise codes.wrong(f"has two tensors that may be its {role}: {named[0]!r} and {named[1]!r}", "one")
            if named:
                found[role] = Quantity(named[0], tensors[named[0]])
            elif role not in self.optional:
                raise codes.wrong(
                    f"has no {role}",
                    " or ".join(repr(stem + ending) for ending in endings),
                    "the checkpoint is incomplete: get the file that has it; codes without their scales are other weights",
                )
        return Parts(stem + self.weight, codes, found, what)


def scaled_codes(
    endings: Callable[[str], tuple[str, ...]], made: Made, dtypes_: tuple[str, ...] = FP8
) -> Iterator[Spelling]:
    """The spellings of codes that lie under the name of their weight; of fused experts that name has no ending."""
    for codes in (WEIGHT, ""):
        yield Spelling(codes, codes, dtypes_, {"scale": endings(codes)}, made)


def matrices_of(codes: Quantity) -> tuple[int, int, int]:
    """How many matrices a tensor has, with how many rows and columns: the last two axes."""
    *stack, rows, columns = codes.stored.shape if len(codes.stored.shape) > 1 else (0, 0)
    if not rows or not columns:
        raise codes.wrong("is no matrix, and has codes", "two axes at least, neither of them empty")
    return math.prod(stack), rows, columns


TENSOR, CHANNEL = "tensor", "channel"

Kind = str | tuple[int, int]
"""Which values share a scale: all of a tensor, those of a row, or those of a block of so many rows and columns."""


@schema.dataclass(frozen=True, slots=True)
class Shared:
    """Which values share a scale: those of a `block` of so many rows and columns; 0 is all of them. `matrices`, `rows` and `columns` are
    how the codes are seen, and `operand` is the scales."""

    operand: lazy.Operand
    block: tuple[int, int]
    matrices: int
    rows: int
    columns: int


def shared_scale(scale: Quantity, codes: Quantity, *kinds: Kind, columns: int = 0) -> Shared:
    """How codes share their scales, by the shape of these: `kinds` are those that may be, the sizes of a block among them.

    `columns` is how many columns the codes have, where they are packed. `FormatError` for any other shape.
    """
    if scale.stored.dtype.name not in _SCALE_DTYPES:
        raise scale.wrong("is no scale by its dtype", ", ".join(_SCALE_DTYPES))
    matrices, rows, stored = matrices_of(codes)
    columns = columns or stored
    way, expected = _way_of(codes.stored.shape[:-2], rows, columns, scale.stored.shape, kinds)
    if way is not None:
        operand = scale.operand(way.width, way.rows, scale=True)
        return Shared(operand, way.block, matrices if way.apart else 1, rows if way.apart else matrices * rows, columns)
    stack = codes.stored.shape[:-2]
    raise scale.wrong(
        f"is no scale for {codes.name!r} by its shape",
        f"{' or '.join(map(str, expected))}: {[*stack, rows, columns]} with scales {_in_words(kinds)}",
        "config and tensors contradict each other: find out which is of another model",
    )


@schema.dataclass(frozen=True, slots=True)
class _Way:
    """A way to share scales: the `width` and the `rows` of their operand, the `block`, and whether matrices have their own (`apart`)."""

    width: int
    rows: int
    block: tuple[int, int]
    apart: bool = True


@functools.lru_cache(1 << 8)
def _way_of(
    stack: tuple[int, ...], rows: int, columns: int, shape: tuple[int, ...], kinds: tuple[Kind, ...]
) -> tuple[_Way | None, list[list[int]]]:
    """The way in which scales of a shape are shared, once for all weights of a shape; and the shapes of all kinds."""
    expected: list[list[int]] = []
    for kind in kinds:
        if not isinstance(kind, str):
            height, width = kind
            grid = (-(-rows // height), -(-columns // width))
            # ModelOpt keeps the axes inside a block, of size one.
            if shape in ((*stack, *grid), (*stack, grid[0], 1, grid[1], 1)):
                return _Way(grid[1], height, kind), expected
            expected.append([*stack, *grid])
        elif kind == TENSOR:
            if math.prod(shape) == 1 and len(shape) <= len(stack) + 2:
                return _Way(1, 0, (0, 0), apart=False), expected
            if stack and shape in (stack, (*stack, 1), (*stack, 1, 1)):
                return _Way(1, 0, (0, 0)), expected
            expected.append([])
        else:
            if shape in ((*stack, rows), (*stack, rows, 1)):
                return _Way(1, 1, (1, 0)), expected
            expected.append([*stack, rows, 1])
    return None, expected


def _in_words(kinds: tuple[Kind, ...]) -> str:
    said = [f"for each {kind}" if isinstance(kind, str) else f"for each {kind[0]} x {kind[1]}" for kind in kinds]
    return " or ".join(said)
