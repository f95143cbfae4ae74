"""The kinds of tensors in GGUF files: how many elements share a block, how many bytes it takes, and which number names it.

The numbers and the sizes are those of ggml.h; a block lies along a row, and a row holds whole blocks.
"""

from __future__ import annotations

from ckpt_core.sdk import dtypes, schema

__all__ = ["BF16", "BY_NUMBER", "F16", "F32", "PLAIN", "Q8_0", "Kind"]


@schema.dataclass(frozen=True, slots=True)
class Kind:
    """A kind of tensor: `block` elements of a row take `size` bytes. `number` is ggml's, `file_type` that of files most of whose
    tensors are of it (`general.file_type`), None where none is named after it."""

    name: str
    number: int
    block: int
    size: int
    file_type: int | None = None

    def bytes_of(self, elements: int) -> int:
        """The bytes of so many elements, which are whole blocks."""
        return elements // self.block * self.size

    def __str__(self) -> str:
        return self.name


# name        number  block  bytes  file type
# fmt: off
_TABLE = [
    Kind("F32",      0,     1,     4,   0),
    Kind("F16",      1,     1,     2,   1),
    Kind("Q4_0",     2,    32,    18,   2),
    Kind("Q4_1",     3,    32,    20,   3),
    Kind("Q5_0",     6,    32,    22,   8),
    Kind("Q5_1",     7,    32,    24,   9),
    Kind("Q8_0",     8,    32,    34,   7),
    Kind("Q2_K",    10,   256,    84,  10),
    Kind("Q3_K",    11,   256,   110,  12),
    Kind("Q4_K",    12,   256,   144,  15),
    Kind("Q5_K",    13,   256,   176,  17),
    Kind("Q6_K",    14,   256,   210,  18),
    Kind("IQ2_XXS", 16,   256,    66,  19),
    Kind("IQ2_XS",  17,   256,    74,  20),
    Kind("IQ3_XXS", 18,   256,    98,  23),
    Kind("IQ1_S",   19,   256,    50,  24),
    Kind("IQ4_NL",  20,    32,    18,  25),
    Kind("IQ3_S",   21,   256,   110,  26),
    Kind("IQ2_S",   22,   256,    82,  28),
    Kind("IQ4_XS",  23,   256,   136,  30),
    Kind("IQ1_M",   29,   256,    56,  31),
    Kind("BF16",    30,     1,     2,  32),
    Kind("TQ1_0",   34,   256,    54,  36),
    Kind("TQ2_0",   35,   256,    66,  37),
    Kind("MXFP4",   39,    32,    17,  38),
]
# fmt: on

BY_NUMBER = {kind.number: kind for kind in _TABLE}
"""The kinds by ggml's number."""
BY_NAME = {kind.name: kind for kind in _TABLE}
"""The kinds by name."""

F32, F16, BF16, Q8_0 = (BY_NAME[name] for name in ("F32", "F16", "BF16", "Q8_0"))

PLAIN = {"F32": dtypes.FP32, "F16": dtypes.FP16, "BF16": dtypes.BF16}
"""The kinds whose elements lie one by one, and what they are."""
