"""What a vision tower makes of images before its layers and after them, and where in a text it stands."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ckpt_core.architecture import Activation, Projector, Vision
from ckpt_core.errors import CkptError
from ckpt_core.reference.mlp import ACTIVATIONS
from ckpt_core.reference.weights import Weights


def patches_of(weights: Weights, vision: Vision, pixels: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """Patches [(image, layer of frames), (row, column), h] with their positions, and how many rows and columns there are.

    `pixels` are [image, channel, y, x], or [image, channel, frame, y, x]; a still image is as many frames as a patch covers.
    Raises `CkptError` for images of a size that the tower does not read.
    """
    video = pixels.float() if pixels.dim() == 5 else pixels.float().unsqueeze(2).expand(-1, -1, vision.frames, -1, -1)
    frames, height, width = video.shape[2:]
    side = vision.patch * vision.projector.merge
    if height % side or width % side or frames % vision.frames or vision.image not in (None, height):
        raise CkptError(
            "the tower does not read images of this size",
            found=f"{frames} frames of {height} x {width} pixels",
            expected=f"frames by {vision.frames}, {vision.image or f'a multiple of {side}'} pixels on a side",
        )
    rows, columns = height // vision.patch, width // vision.patch
    cut = video.unflatten(4, (columns, vision.patch)).unflatten(3, (rows, vision.patch))
    cut = cut.unflatten(2, (-1, vision.frames))  # [image, channel, layer, frame, row, y, column, z]
    cut = cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(2, 3).flatten(0, 1)
    cut = cut if vision.frames > 1 else cut.squeeze(3)
    x = weights.linear(cut, "vision.patches", contracted=cut.dim() - 2)
    x = weights.norm(x, "vision.norm", vision.norm)
    if vision.stack.positions is not None:
        stretched = _cubic if vision.cubic else _stretched
        x = x + stretched(weights.vector("vision.positions.weight"), rows, columns)
    return x, rows, columns


def _stretched(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A square table of positions [(row, column), h] for so many rows and columns: bilinear, with its corners on theirs."""
    side = math.isqrt(len(table))

    def taps(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        exact = torch.linspace(0, side - 1, count)
        first = exact.floor().long().clamp(max=side - 1)
        return first, (first + 1).clamp(max=side - 1), exact - first

    square = table.unflatten(0, (side, side))
    top, bottom, down = taps(rows)
    left, right, over = taps(columns)
    by_row = torch.lerp(square[top], square[bottom], down[:, None, None])
    return torch.lerp(by_row[:, left], by_row[:, right], over[:, None]).flatten(0, 1)


def _cubic(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A square table of positions [(row, column), h] for so many rows and columns: bicubic (a = -0.75), with its edges on theirs."""
    side = math.isqrt(len(table))

    def by(count: int) -> torch.Tensor:
        """The weight of each row of the table, [row, row of the table]; what lies outside is the edge."""
        exact = (torch.arange(count) + 0.5) * side / count - 0.5
        first, shares = exact.floor(), torch.zeros(count, side)
        for step in range(-1, 3):
            near = (exact - first - step).abs()
            inner = (1.25 * near - 2.25) * near * near + 1
            outer = ((-0.75 * near + 3.75) * near - 6) * near + 3
            at = (first.long() + step).clamp(0, side - 1)
            shares.scatter_add_(1, at[:, None], torch.where(near <= 1, inner, outer)[:, None])
        return shares

    square = table.unflatten(0, (side, side))
    return torch.einsum("rs,cz,szh->rch", by(rows), by(columns), square).flatten(0, 1)


def places_of(rows: int, columns: int) -> torch.Tensor:
    """The row and the column of each patch, [coordinate, 1, position]."""
    return torch.stack([*torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")]).flatten(1)[:, None]


def projected(
    weights: Weights, name: str, projector: Projector, x: torch.Tensor, rows: int, columns: int, tap: int | None = None
) -> torch.Tensor:
    """The embeddings [..., token, w] of patches [..., (row, column), h]; `tap` picks one of the projectors that are stacked."""
    side, norm = projector.merge, projector.norm

    def normed(y: torch.Tensor, axes: int) -> torch.Tensor:
        return y if norm is None else weights.norm(y, f"{name}.norm", norm, axes, part=tap)

    if not projector.norm_merged:
        x = normed(x, 1)
    square = x.unflatten(-2, (rows // side, side, columns // side, side)).transpose(-4, -3)
    merged = square.mean((-3, -2)) if projector.mean else square  # [..., row, column, (my, mz,) h]
    axes = 1 if projector.mean else 3
    if projector.norm_merged:
        merged = normed(merged, axes)
    if projector.folded is not None:
        merged, axes = weights.linear(merged, f"{name}.fold", tap, contracted=axes), 1
    if projector.refined is not None:
        refined = weights.norm(
            weights.linear(merged, f"{name}.refine", tap), f"{name}.refined", projector.refined, part=tap
        )
        merged = ACTIVATIONS[Activation.GELU_ERF](refined)
    if projector.ffn is not None and projector.activation is not None:
        up = weights.linear(merged, f"{name}.up", tap, contracted=axes)
        gate = weights.linear(merged, f"{name}.gate", tap, contracted=axes) if projector.gated else up
        merged = ACTIVATIONS[projector.activation](gate)
        merged, axes = merged * up if projector.gated else merged, 1
    return weights.linear(merged, f"{name}.down", tap, contracted=axes).flatten(-3, -2)


def images_in(vision: Vision, tokens: torch.Tensor, each: int) -> torch.Tensor:
    """The number of the image that a token [batch, position] stands for, counted over all rows, `each` tokens to an image; -1 elsewhere."""
    stands = tokens == vision.token
    if vision.video_token is not None:
        stands |= tokens == vision.video_token
    counted = (stands.flatten().cumsum(0) - 1).reshape(stands.shape)
    return torch.where(stands, counted // each, -1)


def placed(images: torch.Tensor, layers: int, rows: int, columns: int) -> torch.Tensor:
    """The time, row and column of each position [coordinate, batch, position], of images of `layers` x `rows` x `columns` tokens.

    A token of text has one number for all three, which counts on from the largest of an image's rows and columns.
    """
    return torch.stack([torch.tensor(list(_counted(row.tolist(), layers, rows, columns))).T for row in images], 1)


def _counted(images: list[int], layers: int, rows: int, columns: int) -> Iterator[tuple[int, int, int]]:
    start, at = 0, 0
    while at < len(images):
        if images[at] < 0:
            yield start, start, start
            start, at = start + 1, at + 1
            continue
        for index in range(layers * rows * columns):
            layer, place = divmod(index, rows * columns)
            yield start + layer, start + place // columns, start + place % columns
        start, at = start + max(rows, columns), at + layers * rows * columns
