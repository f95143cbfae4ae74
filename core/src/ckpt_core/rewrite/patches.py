"""What models of images have: a bias of the patches, positions of an image size, a scale per channel on every block."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from ckpt_core.architecture import Architecture, Layer, Patches, Positions, Stack, parameters
from ckpt_core.errors import Refusal, UsageError
from ckpt_core.rewrite.model import Rewritable, holds_only, map_layers, map_stacks
from ckpt_core.tensors.assembly import Factor, LazyParameter, WeightedRows

_TABLE = "positions.weight"
_BIAS = "embedding.patches.bias"
_MOST = 1 << 17  # positions: images of 5792 x 5792 pixels in patches of 16
_CUBIC = -0.75  # the free parameter of cubic convolution, as in torch's bicubic


def folded_patch_bias(model: Rewritable) -> Rewritable:
    """Patches without a bias: it is added to the positions of the patches, in float32. A bias of zeros is left out.

    Only for a model with a learned position for each patch; any other is left as it is. Reads the bias.
    """
    patches = model.architecture.patches
    if patches is None or not patches.bias or _positions(model.architecture) is None:
        return model
    architecture = replace(model.architecture, patches=replace(patches, bias=False))
    tensors = dict(model.tensors)
    bias, table = tensors.pop(_BIAS), tensors[_TABLE]
    if holds_only(bias, model.files, 0.0):
        return model.rewritten(architecture, tensors, "a patch bias of zeros left out")
    count, before = table.parameter.shape[0], patches.class_tokens
    each = WeightedRows(table, tuple((row,) for row in range(count)), ((1.0,),) * count)
    once = WeightedRows(bias, ((0,),) * count, tuple((float(row >= before),) for row in range(count)))
    tensors[_TABLE] = LazyParameter(table.parameter, table.dtype, (), added=(each, once))
    return model.rewritten(architecture, tensors, "patch bias added to the positions of the patches")


def folded_layer_scale(model: Rewritable) -> Rewritable:
    """Blocks whose output nothing scales: the factor of each channel is multiplied into the block's last projection, in float32.

    A model with experts, or with a norm between the projection and the factor, is left as it is.
    """
    names = [name for name in model.tensors if ".layer_scale." in name]
    if not names or not all(
        _ends_in_a_projection(layer) for stack in model.architecture.stacks.values() for layer in stack.layers
    ):
        return model
    tensors = dict(model.tensors)
    for name in names:
        block = name.partition(".layer_scale.")[0]
        factor = Factor(tensors.pop(name), axes=(0,))
        for kind in ("weight", "bias"):
            last = f"{block}.{'down' if block.endswith('mlp') else 'out'}.{kind}"
            if last in tensors:
                tensors[last] = replace(tensors[last], factors=(*tensors[last].factors, factor))
    architecture = map_layers(model.architecture, lambda layer: replace(layer, layer_scale=False))
    return model.rewritten(architecture, tensors, "layer scale folded into the last projection of every block")


def _ends_in_a_projection(layer: Layer) -> bool:
    blocks = [*(block for _, block in layer.mixers), *([layer.mlp] if layer.mlp is not None else [])]
    return layer.moe is None and all(block.out_norm is None for block in blocks)


def resized_images(model: Rewritable, size: str) -> Rewritable:
    """The model for images of another size (`224`, or height x width: `224x192`), its positions interpolated.

    Bicubic in float32, as transformers interpolates them for an image of another size; class tokens keep theirs. This
    changes the model: it is never done unless asked for.
    """
    height, width = parse_image_size(size)
    patches, positions = model.architecture.patches, _positions(model.architecture)
    if patches is None or positions is None:
        raise Refusal(
            "the model has no learned positions of patches, so it has no image size", found=f"image_size={size}"
        )
    if height % patches.patch or width % patches.patch:
        raise Refusal(
            f"images are cut into patches of {patches.patch} x {patches.patch}",
            found=f"image_size={size}",
            expected=f"multiples of {patches.patch}",
        )
    if (height, width) == (patches.height, patches.width):
        return model
    changed = replace(patches, height=height, width=width)
    count = _sequence(changed)
    if count > _MOST:
        raise Refusal(
            "so large an image has too many patches", found=f"image_size={size}: {count}", expected=f"at most {_MOST}"
        )

    def longer(prefix: str, stack: Stack) -> Stack:
        return replace(stack, positions=Positions(count=count))

    architecture = replace(map_stacks(model.architecture, longer), patches=changed)
    table = model.tensors[_TABLE]
    term = _interpolated(table, patches, changed)
    added = LazyParameter(parameters(architecture)[_TABLE], table.dtype, (), added=(term,))
    what = f"positions interpolated from images of {patches.height} x {patches.width} to {height} x {width} (bicubic)"
    return model.rewritten(architecture, {**model.tensors, _TABLE: added}, what)


def parse_image_size(text: str) -> tuple[int, int]:
    """Height and width in pixels.

    >>> parse_image_size("224"), parse_image_size("224x192")
    ((224, 224), (224, 192))
    """
    match = re.fullmatch(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", text.strip())
    if match is None:
        raise UsageError(
            "not the size of an image", found=text, expected="pixels, such as 224, or height x width, such as 224x192"
        )
    return int(match[1]), int(match[2] or match[1])


def _sequence(patches: Patches) -> int:
    """The class tokens and patches of one image."""
    rows, columns = _grid(patches)
    return patches.class_tokens + rows * columns


def _grid(patches: Patches) -> tuple[int, int]:
    return patches.height // patches.patch, patches.width // patches.patch


def _positions(architecture: Architecture) -> Positions | None:
    """The positions of a model of images, where there is one for each class token and patch."""
    patches, stacks = architecture.patches, architecture.stacks
    found = stacks[""].positions if list(stacks) == [""] else None
    fits = patches is not None and found is not None and found.offset == 0 and found.count == _sequence(patches)
    return found if fits else None


def _interpolated(table: LazyParameter, before: Patches, after: Patches) -> WeightedRows:
    """The rows for a grid of patches as weighted sums of 4 x 4 of the old one; pixels count from the corners of the image."""
    down, across = (_taps(old, new) for old, new in zip(_grid(before), _grid(after), strict=True))
    columns, first = _grid(before)[1], before.class_tokens
    rows: list[tuple[int, ...]] = [(row,) * 16 for row in range(first)]
    weights: list[tuple[float, ...]] = [(1.0, *[0.0] * 15)] * first
    for ys, vertical in down:
        for xs, horizontal in across:
            rows.append(tuple(first + y * columns + x for y in ys for x in xs))
            weights.append(tuple(one * other for one in vertical for other in horizontal))
    return WeightedRows(table, tuple(rows), tuple(weights))


def _taps(old: int, new: int) -> list[tuple[list[int], list[float]]]:
    """For each of `new` places along an axis the four nearest of `old`, and their weights; beyond the border it repeats."""
    found = []
    for place in range(new):
        at = (place + 0.5) * old / new - 0.5
        base = math.floor(at)
        indices = [min(max(base + step, 0), old - 1) for step in (-1, 0, 1, 2)]
        found.append((indices, [_cubic(abs(at - base - step)) for step in (-1, 0, 1, 2)]))
    return found


def _cubic(distance: float) -> float:
    """The kernel of cubic convolution (Keys 1981)."""
    if distance <= 1:
        return ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    return ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC if distance < 2 else 0.0
