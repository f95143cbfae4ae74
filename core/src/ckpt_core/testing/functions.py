"""What models compute, by the reference forward: whether two of them are the same function. Needs torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ckpt_core.opened import OpenCheckpoint

if TYPE_CHECKING:
    import torch

    from ckpt_core.reference import Inputs

POSITIONS = 70  # more than every window of an example or a variation, and than every length a rotary scaling knows


def outputs(*models: OpenCheckpoint) -> list[torch.Tensor]:
    """What each model computes on the same random input (for a model of tokens all its logits, see `every_logit`)."""
    import torch

    from ckpt_core.reference import random_inputs

    inputs, found = random_inputs([model.architecture for model in models], POSITIONS), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them only wait for each other over matrices this small
    try:
        for model in models:
            found.append(every_logit(model, inputs))
    finally:
        torch.set_num_threads(threads)
    return found


def every_logit(model: OpenCheckpoint, inputs: Inputs) -> torch.Tensor:
    """The output of a model, and after it, along the positions, the logits of the layers that predict further tokens, and those of
    classes beside the vocabulary.
    """
    import torch

    from ckpt_core.reference import forward

    *further, own = (step.values for step in forward(model, inputs) if step.name.endswith("logits"))
    rows = [one if one.dim() == own.dim() else one[:, None] for one in further]
    wide = [torch.nn.functional.pad(one, (0, own.shape[-1] - one.shape[-1])) for one in rows]
    return torch.cat([own, *wide], 1) if wide else own


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    """The largest difference of two outputs, vocabulary padding aside; infinite where their shapes differ otherwise."""
    if one.shape[:-1] != two.shape[:-1]:
        return math.inf
    columns = min(one.shape[-1], two.shape[-1])
    return float((one[..., :columns] - two[..., :columns]).abs().max())
