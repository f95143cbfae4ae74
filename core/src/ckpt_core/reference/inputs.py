"""Inputs for a model about which nothing is known but its architecture."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ckpt_core.architecture import Architecture, Vision
from ckpt_core.errors import CkptError
from ckpt_core.reference.model import Inputs

_BATCH = 2
_SEED = 20240229


def random_inputs(architectures: Sequence[Architecture], positions: int) -> Inputs:
    """Two rows of seeded random inputs that all of `architectures` can read.

    Tokens are below every vocabulary, `positions` of them (as many as a table of positions has, if that is less), and a
    few more before a decoder, with types where every model has them; images have the size that the models were made for, and a
    language model that sees reads one in each row. Raises `CkptError` for models of different kinds.
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
    if first.vision is not None:
        if any(one.vision is None for one in architectures):
            raise CkptError("one of the models sees, the other does not")
        return _with_images(first.vision, tokens(positions, False), generator)
    known = min(one.tokens.types for one in architectures if one.tokens is not None)
    row = tokens(positions, False)
    return Inputs(tokens=row, types=torch.randint(0, known, row.shape, generator=generator) if known else None)


def _with_images(vision: Vision, tokens: torch.Tensor, generator: torch.Generator) -> Inputs:
    """Tokens with one image in each row, after the first token, wherever there is place for it; its rows are more than its columns."""
    side, merge = vision.patch * vision.projector.merge, vision.projector.merge
    stand = [vision.token, *([] if vision.video_token is None else [vision.video_token])]
    text = next(token for token in range(3) if token not in stand)
    tokens = torch.where(torch.isin(tokens, torch.tensor(stand)), text, tokens)
    height, width = (vision.image, vision.image) if vision.image else (3 * side, 2 * side)
    each = (height // vision.patch // merge) * (width // vision.patch // merge)
    if each + 2 > tokens.shape[1]:
        tokens = torch.cat([tokens, tokens[:, :1].expand(-1, each + 2 - tokens.shape[1])], 1)
    tokens[:, 1 : 1 + each] = vision.token
    frames = [vision.frames] if vision.frames > 1 else []
    return Inputs(
        tokens=tokens, pixels=torch.randn(_BATCH, vision.channels, *frames, height, width, generator=generator)
    )


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
