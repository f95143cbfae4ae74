"""Weights that are written as codes and scales: encoded as FP8 blocks, or kept as they lie in the source."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any

from ckpt_core.sdk import (
    Checkpoint,
    Refusal,
    StoredTensor,
    TargetBuilder,
    WriteRequest,
    dtypes,
    errors,
    layouts,
    lazy,
    ledgers,
    schema,
)
from ckpt_hf.quantised.said import HINT, KEY, WEIGHT

QUANTISE, FP8_BLOCK = "quantise", "fp8-block"
QUANTISED, KEEP = "quantised", "keep"

_BLOCK = 128
_LINEAR = re.compile(r"(layers|predictors)\.\d+\.(layer\.)?(attention|mlp)\.(?!router\.)")
# What vLLM runs as one matrix has one scheme (`is_layer_skipped`): where a part can't be quantised, none of them is.
_TOGETHER = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
    ("gate_proj", "up_proj"),
)


@schema.dataclass(frozen=True)
class Coded:
    """The tensors of a folder that are stored as codes and scales, by the names of the weights, and what its configs say of them.

    `kept` is where those lie that are copied. `config` are keys of config.json, and `documents` files beside it; `carried` is where they
    stand in the source (file -> key).
    """

    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)
    kept: Mapping[str, lazy.Quantised] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)
    losses: tuple[ledgers.Loss, ...] = ()
    carried: Mapping[str, str] = field(default_factory=dict)


def coded(
    checkpoint: Checkpoint, request: WriteRequest, builder: TargetBuilder, natives: Iterable[layouts.Native]
) -> Coded:
    """What of `natives` is stored as codes and scales, as the options ask. `Refusal` where it can't be."""
    quantise = request.options.get(QUANTISE) == FP8_BLOCK
    keep = request.options.get(QUANTISED) == KEEP
    if quantise and keep:
        raise errors.UsageError(
            f"-o {QUANTISE} and -o {QUANTISED}={KEEP} both say how weights are stored", fix="give one"
        )
    if not quantise and not keep:
        return Coded()
    if request.options.get("container") == "bin":
        raise errors.UsageError("codes and scales are written to safetensors alone", fix="leave out -o container=bin")
    if checkpoint.training is not None:
        raise errors.NotCarried("quantised weights are none that an optimizer can step")
    return _kept(checkpoint, request, natives) if keep else _quantised(builder, list(natives))


# --- FP8 blocks ----------------------------------------------------------------------------------------------------------


def _quantised(builder: TargetBuilder, natives: list[layouts.Native]) -> Coded:
    """Every linear layer of attention and MLPs whose sizes are whole blocks, as transformers' own quantiser chooses; all others are listed."""
    linear = {native.name.removesuffix(WEIGHT): native for native in natives if _is_linear(native)}
    left = {module for module, native in linear.items() if any(size % _BLOCK for size in native.shape)}
    for group in _TOGETHER:
        for module in [one for one in left if one.endswith(group)]:
            end = next(one for one in group if module.endswith(one))
            left |= {module.removesuffix(end) + other for other in group} & linear.keys()
    chosen = [native for module, native in linear.items() if module not in left]
    if not chosen:
        raise Refusal(
            "no linear layer of this model has sizes of whole blocks",
            expected=f"multiples of {_BLOCK}",
            fix=f"leave out -o {QUANTISE}",
        )
    tensors = {native.name: _fp8(native, builder.dtype_of(native)) for native in chosen}
    others = [
        native.name.removesuffix(WEIGHT)
        for native in natives
        if len(native.shape) > 1 and native.name not in tensors and not _is_embedding(native)
    ]
    # The keys of Qwen3's and DeepSeek-V3's configs.
    settings = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [_BLOCK, _BLOCK],
        **({"modules_to_not_convert": others} if others else {}),
    }
    return Coded(tensors, config={KEY: settings}, losses=tuple(_left(left)))


def _left(left: set[str]) -> Iterator[ledgers.Loss]:
    if left:
        why = f"their sizes, or those of a layer that runs as one with them, are no multiples of {_BLOCK}: stored as they are"
        yield ledgers.Loss("unsaid", f"FP8 of {len(left)} linear layers, {min(left)} among them", why)


def _is_linear(native: layouts.Native) -> bool:
    whole = native.name.endswith(WEIGHT) and len(native.shape) == 2 and not native.row.copy
    return whole and all(_LINEAR.match(piece.parameter) for piece in native.pieces)


def _is_embedding(native: layouts.Native) -> bool:
    return any(piece.parameter.startswith("embedding.") for piece in native.pieces)


def _fp8(native: layouts.Native, dtype: dtypes.DType) -> StoredTensor:
    from ckpt_hf.quantised.schemes import Blocks  # which computes, with NumPy

    rows, columns = native.shape
    e4m3, grid = dtypes.BY_NAME["fp8_e4m3"], (rows // _BLOCK, columns // _BLOCK)
    codes = lazy.Operand(native.name, StoredTensor.contiguous("", e4m3, (rows, columns), 0), columns)
    scales = StoredTensor.contiguous("", dtypes.FP32, grid, 0)
    operands = codes, lazy.Operand(f"{native.name}_scale_inv", scales, grid[1], _BLOCK, scale=True)
    return lazy.Quantised(Blocks(e4m3, (_BLOCK, _BLOCK)), operands, 1, rows, columns).tensor(dtype, native.shape)


# --- codes that are kept -------------------------------------------------------------------------------------------------


def _kept(checkpoint: Checkpoint, request: WriteRequest, natives: Iterable[layouts.Native]) -> Coded:
    """Every weight of the source that is made of codes, stored as it is there."""
    hint = checkpoint.provenance.hints.get(HINT)
    if hint is None or checkpoint.format != "hf":
        raise Refusal(
            "there are no codes to keep: the source is not quantised, or of another format",
            file=checkpoint.path,
            fix=f"leave out -o {QUANTISED}={KEEP}; -o {QUANTISE}={FP8_BLOCK} quantises",
        )
    if request.dtype is not None:
        raise errors.UsageError(f"--dtype would change what -o {QUANTISED}={KEEP} keeps", fix="leave one of them out")
    coded = {
        name: {block.tile: block for block in tensor.value_blocks if block.quantised is not None}
        for name, tensor in checkpoint.tensors.items()
    }
    found = {native.name: held for native in natives if (held := _whole(native, coded)) is not None}
    kept = {name: held.quantised for name, held in found.items() if held.quantised is not None}
    known = set(
        map(id, kept.values())
    )  # all parts of a tensor speak of one object, and comparing 45,000 takes a second
    lost = [
        name for name, blocks in coded.items() if any(id(block.quantised) not in known for block in blocks.values())
    ]
    if lost:
        raise Refusal(
            f"{errors.plural(len(lost), 'tensor')} can't keep their codes, as the class that is written stores them in another way",
            found=f"{lost[0]} among them",
            fix=f"leave out -o {QUANTISED}={KEEP}, and they are dequantised",
        )
    texts = {name: text.encode() for name, text in hint["documents"].items()}
    return Coded(found, kept, hint["config"], texts, carried=hint["said"])


def _whole(native: layouts.Native, coded: Mapping[str, Mapping[layouts.Tile, lazy.StoredPart]]) -> StoredTensor | None:
    """The quantised tensor of the source that holds just what a native tensor holds, and is called as it is."""
    for strides in _strides(native.shape):
        blocks = [coded[piece.parameter].get(lazy.flat_tile(piece.tile, strides)) for piece in native.pieces]
        first = blocks[0] if blocks else None
        if first is None or any(one is None or one.offset or one.quantised is not first.quantised for one in blocks):
            continue
        one = first.quantised
        if one is None or not _is_called(one.operands[0].name, native.name):
            continue
        if one.matrices * one.rows * one.columns == math.prod(native.shape):
            return StoredTensor(first.path, first.dtype, native.shape, 0, strides, quantised=one)
    return None


def _is_called(codes: str, weight: str) -> bool:
    """Whether codes are those of a weight by their name: `X.weight`, `X.weight_packed`, `X_blocks`."""
    return codes in (weight, f"{weight}_packed", f"{weight}_blocks")


@functools.cache
def _strides(shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """How a tensor may lie among numbers: as it is, or each of its matrices transposed."""
    usual = lazy.contiguous_strides(shape)
    return (usual, (*usual[:-2], 1, shape[-2])) if len(shape) > 2 else (usual,)
