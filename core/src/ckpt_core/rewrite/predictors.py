"""Layers that predict further tokens, left out."""

from __future__ import annotations

from dataclasses import replace

from ckpt_core.architecture import parameters
from ckpt_core.rewrite.model import Rewritable, map_stacks


def without_predictors(model: Rewritable) -> Rewritable:
    """The model without the layers that predict further tokens, on which its own logits do not depend.

    This changes what can be done with the model: it is never done unless asked for.
    """
    counts = [stack.predictors.count for stack in model.architecture.stacks.values() if stack.predictors]
    if not counts:
        return model
    architecture = map_stacks(model.architecture, lambda _, stack: replace(stack, predictors=None))
    tensors = {name: model.tensors[name] for name in parameters(architecture)}
    return model.rewritten(architecture, tensors, f"the {sum(counts)} layers that predict further tokens left out")
