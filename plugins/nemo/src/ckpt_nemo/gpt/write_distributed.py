"""Weights of all ranks together: a tensor for all layers, and for all experts, in chunks.

zarr keeps the chunks as the ranks that saved them had them; torch_dist may have any.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt_core.sdk import chunked, dtypes, layouts, schema, torch_files
from ckpt_megatron.sdk import backend_document, dist_files, dist_place, stacked_extra_states, te
from ckpt_nemo.container.continuing import distributed_kinds, distributed_optimizer, moment_of
from ckpt_nemo.container.optimizer import STATES
from ckpt_nemo.container.places import COMMON, METADATA
from ckpt_nemo.container.writing import NemoBuilder, distributed_folder
from ckpt_nemo.container.zarr_writing import ZarrChunk, add_zarr
from ckpt_nemo.gpt.layout import FileLayout

_PREFIX = "model."
_GATED = re.compile(r"\.linear_fc1\.(weight|bias)$")


@schema.dataclass(frozen=True)
class _Part:
    """A native tensor, or a half of one, inside the tensor `key` of `whole` shape: its first index, per dimension."""

    key: str
    native: layouts.Native
    dtype: dtypes.DType
    whole: tuple[int, ...]
    origin: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*([1] * (len(self.whole) - len(self.native.shape))), *self.native.shape)


def add_distributed(builder: NemoBuilder, layout: FileLayout) -> None:
    """Enter the files of a distributed checkpoint."""
    layers, form = _layers(builder), builder.form
    homogeneous = len({layer.moe is not None for layer in layers}) == 1
    ranks = layout.tp if layout.backend == "zarr" else 1
    parts = list(_parts(builder, layout, ranks, homogeneous))
    style = "local" if layout.backend == "zarr" else "te"
    keys = [part.key.removeprefix(_PREFIX) for part in parts]  # without those of an optimizer, which follow
    # Without these a loader of default strictness fails with "Missing key ... _extra_state".
    stacked = {"decoder.layers.": len(layers)} if homogeneous else {}
    objects = [f"{_PREFIX}{name}" for name in stacked_extra_states(keys, layers, style, stacked)]
    common = form.training | {"state_dict": {}} if form.container == "ckpt" else {}
    if builder.groups is not None:
        common |= {STATES: [distributed_optimizer(builder, builder.groups)]}
        parts += [
            replace(part, key=f"{begins}{part.key}", native=moment_of(builder, kind, part.native), dtype=dtypes.FP32)
            for begins, kind in distributed_kinds(builder)
            for part in list(parts)
        ]
    folder = distributed_folder(form)
    if layout.backend == "zarr":
        chunks = [ZarrChunk(part.key, part.native, part.dtype, part.whole, _index(part), part.shape) for part in parts]
        add_zarr(builder, folder, chunks, objects, common, short=layout.old_core)
    else:
        _add_torch_dist(builder, folder, parts, objects, common)


def _index(part: _Part) -> tuple[int, ...]:
    return tuple(start // size for start, size in zip(part.origin, part.shape, strict=True))


def _layers(builder: NemoBuilder) -> Sequence[schema.Layer]:
    return builder.architecture.decoder.layers if builder.architecture.decoder else ()


def _is_gated(layer: schema.Layer) -> bool:
    return layer.mlp is not None and layer.mlp.gated


def _parts(builder: NemoBuilder, layout: FileLayout, ranks: int, homogeneous: bool) -> Iterator[_Part]:
    """Every tensor as `ranks` tensor parallel ranks have it, layer by layer; a gated linear_fc1 in its two halves."""
    layers, wholes = _layers(builder), builder.natives()
    by_rank = [builder.natives({"tp": (rank, ranks)}) for rank in range(ranks)]
    ordered = sorted(wholes.values(), key=lambda native: -1 if native.layer is None else native.layer)
    for whole in ordered:
        if whole.row.copy:
            continue
        key, place, sizes = _place(whole, layers, homogeneous)
        kind = builder.dtype_of(whole)
        gated = _GATED.search(whole.name) is not None and _is_gated(layers[whole.layer or 0])
        joined = gated and whole.name.endswith(".bias") and layout.old_core
        for rank in range(ranks if dict(whole.row.splits).get("tp") else 1):
            native = by_rank[rank][whole.name]
            halves = [native.block(0, 2), native.block(1, 2)] if gated and not joined else [native]
            for half, part in enumerate(halves):
                number = half * ranks + rank
                starts = [
                    number * size if size != full else 0 for size, full in zip(part.shape, whole.shape, strict=True)
                ]
                yield _Part(key, part, kind, (*sizes, *whole.shape), (*place, *starts))


def _place(
    native: layouts.Native, layers: Sequence[schema.Layer], homogeneous: bool
) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    moe = None if native.layer is None else layers[native.layer].moe
    name = native.name if native.layer is None else te(native.name, latent=False, moe=moe is not None, grouped=False)
    stacked = len(layers) if homogeneous else None
    key, place, sizes = dist_place(name, native.layer, stacked, moe.experts if moe is not None else 0)
    return f"{_PREFIX}{key}", place, sizes


def _add_torch_dist(
    builder: NemoBuilder, folder: str, parts: Sequence[_Part], objects: Sequence[str], common: Mapping[str, object]
) -> None:
    files = dist_files([math.prod(part.shape) * part.dtype.size for part in parts])
    chunks = [
        chunked.ChunkSpec(part.key, part.dtype, part.whole, part.origin, part.shape, file)
        for part, file in zip(parts, files, strict=True)
    ]
    nothing = torch_files.torch_bytes([None], "archive")
    plan = chunked.plan_distributed(folder, chunks, dict.fromkeys(objects, ("__0_0.distcp", nothing)))
    builder.members |= {file.path: file for file in plan.files}
    for part, chunk, offset in zip(parts, chunks, plan.offsets, strict=True):
        builder.place(part.native, f"{folder}/{chunk.file}", offset, part.dtype)
    builder.members[f"{folder}/{COMMON}"] = torch_files.torch_bytes(dict(common), COMMON)
    builder.members[f"{folder}/{chunked.METADATA}"] = plan.metadata
    builder.members[f"{folder}/{METADATA}"] = backend_document("torch_dist")
