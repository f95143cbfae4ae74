"""Does it matter that tensor parallel ranks sum partial products, where one machine computes a single product?

The columns of two matrices of every layer (attention.out, mlp.down) are divided over the ranks of a training run: each
multiplies its columns, and the partial products are summed. The weights are the same numbers either way, and so is the
sum; only its rounding is not. This runs one model both ways, and says by how much.
"""

from __future__ import annotations

import torch

from ckpt_core.checkpoint import Checkpoint
from ckpt_core.lean import dataclass
from ckpt_core.opened import OpenCheckpoint
from ckpt_core.reference import Inputs, forward
from ckpt_core.reference.weights import Arithmetic
from ckpt_core.verify.logits import LOGITS, LogitDifference, apart


@dataclass(frozen=True, slots=True)
class RowParallelReport:
    """The logits of sums over `ranks` partial products against those of single ones, by the dtype of the products."""

    ranks: int
    by_dtype: dict[str, LogitDifference]


def compare_row_parallel(checkpoint: Checkpoint, inputs: Inputs, ranks: int, memory: int) -> RowParallelReport:
    """Run a model with single products and with sums over `ranks`, with products in float32 and rounded to bfloat16."""
    found = {}
    with OpenCheckpoint(checkpoint) as model:
        block = max(1 << 20, memory // 8)
        for name, rounded in (("fp32", None), ("bf16", torch.bfloat16)):
            single, summed = (
                [step.values for step in forward(model, inputs, block, Arithmetic(count, rounded))][-1]
                for count in (1, ranks)
            )
            found[name] = apart(LOGITS, summed, single, inputs)
    return RowParallelReport(ranks, found)
