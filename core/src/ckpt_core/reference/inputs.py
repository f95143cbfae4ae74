"""Inputs for a model about which nothing is known but its architecture."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ckpt_core.architecture import Architecture
from ckpt_core.errors import CkptError
from ckpt_core.reference.model import Inputs

_BATCH = 2
_SEED = 20240229


def random_inputs(architectures: Sequence[Architecture], positions: int) -> Inputs:
    """Two rows of seeded random inputs that all of `architectures` can read.

    Tokens are below every vocabulary, `positions` of them (as many as a table of positions has, if that is less), and a
    few more before a decoder, with types where every model has them; images have the size that the models were made for. Raises `CkptError` for models of different kinds.
    """
    generator = torch.Generator().manual_seed(_SEED)
    first = architectures[0]
    if first.patches is not None:
        size = (_BATCH, first.patches.channels, first.patches.height, first.patches.width)
        return Inputs(pixels=torch.randn(size, generator=generator))
    sizes = [one.tokens.vocabulary for one in architectures if one.tokens is not None]
    if len(sizes) < len(architectures):
        raise CkptError("one of the models reads tokens, the other images")

    def tokens(count: int, source: bool) -> torch.Tensor:
        stacks = [one.encoder if source or one.decoder is None else one.decoder for one in architectures]
        tables = [stack.positions.count - stack.positions.offset for stack in stacks if stack and stack.positions]
        return torch.randint(0, min(sizes), (_BATCH, min([count, *tables])), generator=generator)

    if first.encoder is not None and first.decoder is not None:
        return Inputs(tokens=tokens(positions, False), source=tokens(positions + 5, True))
    known = min(one.tokens.types for one in architectures if one.tokens is not None)
    row = tokens(positions, False)
    return Inputs(tokens=row, types=torch.randint(0, known, row.shape, generator=generator) if known else None)


def given_inputs(tokens: Sequence[int], architectures: Sequence[Architecture]) -> Inputs:
    """One row of given tokens; what comes before a decoder is the same row. Raises `CkptError` for a token that a model lacks."""
    for architecture in architectures:
        if architecture.tokens is None:
            raise CkptError("a model that reads images takes no prompt")
        largest = architecture.tokens.vocabulary - 1
        if not tokens or min(tokens) < 0 or max(tokens) > largest:
            raise CkptError(
                "the prompt has a token that the model lacks",
                found=max(tokens, default=None),
                expected=f"0 to {largest}",
            )
    row = torch.tensor([list(tokens)], dtype=torch.int64)
    both = architectures[0].encoder is not None and architectures[0].decoder is not None
    return Inputs(tokens=row, source=row if both else None)
