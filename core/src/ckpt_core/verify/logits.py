"""Running two checkpoints on the same input and comparing them block by block.

Both are run by the reference forward (`ckpt_core.reference`), which needs no framework and holds one block of weights at
a time; the first block after which they differ is where the error is. What a reference cannot see is a config that the
*framework* reads differently: so where the framework of a side's format is installed and runs here (transformers, for
hf), it loads the side by itself, and is compared with the reference. It holds the whole model, so it runs only where
that is allowed. A side that its framework does not judge says why; that is not a difference, but files that it refuses are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import field

import torch

from ckpt_core import numpy as np
from ckpt_core.architecture import Architecture, parameters
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.engine.run import Listener, Progress
from ckpt_core.errors import CkptError
from ckpt_core.lean import dataclass
from ckpt_core.opened import OpenCheckpoint
from ckpt_core.plugins.discovery import require
from ckpt_core.plugins.judgement import Judgement, said
from ckpt_core.reference import Inputs, Step, forward
from ckpt_core.storage.bytes.remote import stand_in

LOGITS = "logits"


@dataclass(frozen=True, slots=True)
class LogitDifference:
    """How far two results are apart: `largest` and `mean` of |a - b|; `scale` is the largest |b|, at least 1.

    `agreement` is the share of positions whose most likely token is the same (1.0 for what are not logits).
    """

    name: str
    largest: float
    mean: float
    scale: float
    agreement: float = 1.0

    @property
    def relative(self) -> float:
        """`largest` in units of `scale`: the rounding of float32 grows with the numbers that are added up."""
        return self.largest / self.scale

    def within(self, tolerance: float) -> bool:
        """Whether nothing differs by more than `tolerance` units of `scale`; NaN is never within."""
        return self.relative <= tolerance


@dataclass
class LogitsReport:
    """Both models after every block (`steps`, logits last, those of further tokens before them), and each side's own framework against the reference.

    By path of a side: `judges` has how far its framework is from the reference, `frameworks` which one that is, `refused`
    what it said where it did not load the files, and `alone` why no framework was asked or could run.
    """

    positions: int
    steps: list[LogitDifference] = field(default_factory=list)
    judges: dict[str, LogitDifference] = field(default_factory=dict)
    frameworks: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    alone: dict[str, str] = field(default_factory=dict)

    @property
    def logits(self) -> LogitDifference:
        return self.steps[-1]

    def first_apart(self, tolerance: float) -> str | None:
        """The block after which the two models first differ."""
        return next((step.name for step in self.steps if not step.within(tolerance)), None)

    def within(self, tolerance: float) -> bool:
        """Whether all logits of both, and those of every judge, are equal up to `tolerance`, and no judge refused the files."""
        logits = [step for step in self.steps if step.name.endswith(LOGITS)]
        return not self.refused and all(one.within(tolerance) for one in (*logits, *self.judges.values()))


def compare_logits(
    left: Checkpoint, right: Checkpoint, inputs: Inputs, memory: int, listener: Listener | None = None
) -> LogitsReport:
    """Run both on `inputs` within about `memory` bytes of weights; engines run only models that fit in it whole.

    Raises `CkptError` if the two are not the same kind of model, so that there is nothing to compare.
    """
    tokens = inputs.tokens if inputs.tokens is not None else inputs.pixels
    assert tokens is not None
    report = LogitsReport(tokens.shape[0] * tokens.shape[1] if inputs.tokens is not None else tokens.shape[0])
    total = _steps(left.architecture)
    last: tuple[Step, Step] | None = None
    with OpenCheckpoint(left) as one, OpenCheckpoint(right) as two:
        block = max(1 << 20, memory // 8)
        pairs = itertools.zip_longest(forward(one, inputs, block), forward(two, inputs, block))
        for number, (first, second) in enumerate(pairs, 1):
            if first is None or second is None or first.name != second.name:
                raise CkptError(
                    "the two models are built differently, so their blocks can't be compared",
                    found=f"{first.name if first else 'nothing'} and {second.name if second else 'nothing'}",
                )
            last = first, second
            if not first.name.endswith("final_norm"):  # a factor may move between it and the head
                report.steps.append(apart(first.name, first.values, second.values, inputs))
            if listener is not None:
                listener(Progress(number, total, first.name))
    assert last is not None
    for side, step in ((left, last[0]), (right, last[1])):
        _judge(side, step.values, inputs, memory, report)
    return report


def _steps(architecture: Architecture) -> int:
    """About how many steps a forward has; only for progress."""
    return 2 + sum(len(stack.blocks) * 2 + 1 for stack in architecture.towers.values())


def apart(name: str, a: torch.Tensor, b: torch.Tensor, inputs: Inputs) -> LogitDifference:
    """How far two results of one step are apart, padding aside."""
    columns = min(a.shape[-1], b.shape[-1])  # vocabularies may be padded
    if a.shape[:-1] != b.shape[:-1]:
        raise CkptError(
            f"the results after {name} have different shapes", found=f"{tuple(a.shape)} and {tuple(b.shape)}"
        )
    a, b = a[..., :columns], b[..., :columns]
    mask = inputs.mask if a.dim() == 3 and not name.startswith("encoder.") else None
    if mask is not None:
        mask = mask[:, mask.shape[1] - a.shape[1] :]  # logits of further tokens count where there are such tokens
        a, b = a[mask.bool()], b[mask.bool()]
    difference = (a - b).abs()
    agreement = float((a.argmax(-1) == b.argmax(-1)).float().mean()) if name.endswith(LOGITS) else 1.0
    largest = float(difference.max()) if bool(torch.isfinite(difference).all()) else math.nan
    return LogitDifference(name, largest, float(difference.mean()), max(1.0, float(b.abs().max())), agreement)


def _judge(side: Checkpoint, values: torch.Tensor, inputs: Inputs, memory: int, report: LogitsReport) -> None:
    """Let the framework of the side's own format, if there is one, load the checkpoint by itself."""
    if side.path in report.judges or side.path in report.refused:
        return
    judgement = _asked(side, inputs, memory)
    report.frameworks[side.path] = judgement.framework
    if judgement.logits is not None:
        report.judges[side.path] = apart(
            LOGITS, torch.from_numpy(np.array(judgement.logits, np.float32)), values, inputs
        )
    elif judgement.refused:
        report.refused[side.path] = judgement.refused
    else:
        report.alone[side.path] = judgement.cannot


def _asked(side: Checkpoint, inputs: Inputs, memory: int) -> Judgement:
    """What the framework says, or why it says nothing."""
    hooks = require(side.format).hooks
    if not hooks.ckpt_logits.get_hookimpls():
        return Judgement("", cannot=f"{side.format} has no framework to ask")
    if stand_in(side.path):
        return Judgement("", cannot="its framework was not asked: the files are not on this machine")
    size = sum(parameter.elements * 4 for parameter in parameters(side.architecture).values())
    if size > memory:
        allow = "allow it with --max-memory"
        return Judgement("", cannot=f"its framework was not asked: it would hold all {size / 1e9:.3g} GB ({allow})")
    try:
        result = hooks.ckpt_logits(checkpoint=side, inputs=arrays(inputs))
    except Exception as problem:  # of code that is not ours: what it means for the files is not known
        return Judgement("", cannot=f"its framework failed: {said(problem)}")
    if result is None:
        return Judgement("", cannot=f"no framework of {side.format} is installed")
    return result if isinstance(result, Judgement) else Judgement("", logits=result)


def arrays(inputs: Inputs) -> Mapping[str, np.ndarray]:
    """The inputs that are given, by name, as numpy arrays."""
    given = {name: getattr(inputs, name) for name in Inputs.__slots__}
    return {name: tensor.numpy() for name, tensor in given.items() if tensor is not None}
