"""Writing torch_dist, which any parallel layout loads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from ckpt_core.sdk import Architecture, chunked, errors, layouts, reading, torch_files
from ckpt_megatron.builder import GPTBuilder, is_of_tower
from ckpt_megatron.extra_states import stacked_extra_states
from ckpt_megatron.files import COMMON, DIST_METADATA
from ckpt_megatron.names import DIST_EXPERTS, dist_local, of_hybrid, te
from ckpt_megatron.optimizer.model_space import STATE, DistStates

_FILES, _FILE_BYTES = 4, 4 << 30
_EXPERT = re.compile(r"\.mlp\.experts\.local_experts\.(\d+)\.")
CONTENT = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
"""How the keys are arranged, for a loader since core 0.13: `content_metadata` of common.pt."""


def write_dist(
    builder: GPTBuilder,
    common: Mapping[str, object],
    homogeneous: bool,
    prefix: str = "",
    states: DistStates = DistStates({}),
    data: Mapping[tuple[str | int, ...], bytes] = MappingProxyType({}),
) -> None:
    """Plan the files. `homogeneous`: all layers are of one kind, and lie together in one tensor. `prefix`: that of a
    module around the model, with which every key begins. `common` is what common.pt holds, and `data` the bytes of the tensors in it. The language model of a model that sees is in
    a module of its own, beside the tower. `states` are what an optimizer keeps of each parameter.
    """
    layout, architecture = builder.layout, builder.architecture
    natives = [
        native
        for native in layouts.BoundTables(builder.bound.format, architecture).natives().values()
        if not native.row.copy
    ]
    natives.sort(key=lambda native: (native.predictor is not None, -1 if native.layer is None else native.layer))
    keys = [(*_place(builder, native, homogeneous), native) for native in natives]
    held = [(f"{prefix}{key}", origin, whole, native) for key, origin, whole, native in keys]
    if states.kinds:
        _check_trained(builder, [(key, native) for key, _, _, native in keys])
    for state, kind in states.kinds.items():
        for key, origin, whole, native in keys:
            if states.keeps(kind, builder.dtype_of(native)):
                for moment in builder.moments(kind, {native.name: native}).values():
                    held.append((f"{STATE}{state}.{prefix}{key}", origin, whole, moment))
    files = dist_files([builder.bytes_of(native) for *_, native in held])
    chunks = []
    flattened: dict[str, dict[str, object]] = {}
    for (key, origin, whole, native), file in zip(held, files, strict=True):
        shape = (*([1] * len(origin)), *native.shape)
        offsets = (*origin, *([0] * len(native.shape)))
        sizes = (*whole, *native.shape)
        if states.flattened and key.startswith(STATE):
            flattened[key] = {"nd_reformulated_orig_global_shape": sizes}
            elements = math.prod(native.shape)
            shape = (*([1] * len(sizes)), elements)
            sizes, offsets = (*whole, *([1] * len(native.shape)), elements), (*offsets, 0)
        chunks.append(chunked.ChunkSpec(key, builder.dtype_of(native), sizes, offsets, shape, file))
    # Without these objects a loader of default strictness fails with "Missing key ... _extra_state".
    nothing = torch_files.torch_bytes([None], "archive")
    of_model = [key for key, *_ in keys]
    stacked = {f"{_part(architecture)}decoder.layers.": len(builder.layers)} if homogeneous else {}
    if architecture.vision is not None:
        stacked["vision_model.decoder.layers."] = len(architecture.vision.stack.layers)
        stacked["vision_model.decoder.deepstack_merger_list."] = len(architecture.vision.taps)
    objects = [f"{prefix}{key}" for key in stacked_extra_states(of_model, builder.layers, layout.names, stacked)]
    more = {"mcore_data": flattened} if flattened else {}
    plan = chunked.plan_distributed(layout.folder, chunks, dict.fromkeys(objects, ("__0_0.distcp", nothing)), more=more)
    builder.files += plan.files
    for (*_, native), chunk, offset in zip(held, chunks, plan.offsets, strict=True):
        builder.place(native, f"{layout.folder}/{chunk.file}", offset)
    builder.documents[f"{layout.folder}/{COMMON}"] = common_document(common, data)
    builder.documents[f"{layout.folder}/{chunked.METADATA}"] = plan.metadata
    builder.documents[f"{layout.folder}/{DIST_METADATA}"] = backend_document("torch_dist")


def _check_trained(builder: GPTBuilder, keys: Sequence[tuple[str, layouts.Native]]) -> None:
    """`NotCarried` where some layers are trained and others are not: their moments are one tensor, which Megatron-LM saves and loads whole
    (core 0.16, dist_checkpointing/validation.py, `validate_sharding_integrity`)."""
    frozen: dict[str, set[str]] = {}
    trained: dict[str, str] = {}
    for key, native in keys:
        if builder.moments(reading.EXP_AVG, {native.name: native}):
            trained.setdefault(key, native.name)
        else:
            frozen.setdefault(key, set()).add(native.name)
    for key in frozen.keys() & trained.keys():
        raise errors.NotCarried(
            f"{min(frozen[key])} is not trained and {trained[key]} is, and their moments are one tensor",
            found=key,
            fix="write it with -o container=torch, or convert the weights alone with --training-state drop",
        )


def _place(
    builder: GPTBuilder, native: layouts.Native, homogeneous: bool
) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    if is_of_tower(native):
        assert builder.architecture.vision is not None
        count = len(builder.architecture.vision.stack.layers) if native.name.startswith("vision_model.") else None
        name = te(native.name, latent=False, moe=False, grouped=False) if count else native.name
        return dist_place(name, native.layer, count, 0)
    experts = builder.experts(native)
    if native.layer is None and native.predictor is None:
        name = of_hybrid(native.name) if any(layer.mamba for layer in builder.layers) else native.name
    elif builder.layout.names == "te":
        mixers = builder.layers[native.layer].mixers if native.layer is not None else ()
        kind = mixers[0][0] if mixers else "attention"
        name = te(
            native.name, latent=builder.latent, moe=bool(experts), grouped=False, mixer=kind, sparse=builder.sparse
        )
    else:
        name = dist_local(native.name, latent=builder.latent)
    name = f"{_part(builder.architecture)}{name}"
    return dist_place(name, native.layer, len(builder.layers) if homogeneous else None, experts)


def _part(architecture: Architecture) -> str:
    """The module that holds the language model."""
    return "" if architecture.vision is None else "language_model."


def dist_place(
    name: str, layer: int | None, stacked: int | None, experts: int
) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """The key of a tensor, and its place and the sizes along the axes that only the key's tensor has: layers, experts.

    `name` is the tensor's, spelled as it is stored; `stacked` layers lie in one tensor (None: each has its own).
    """
    origin: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()
    if layer is not None and stacked is not None:
        name = name.replace(f"decoder.layers.{layer}.", "decoder.layers.", 1)
        origin, whole = (layer,), (stacked,)
    expert = _EXPERT.search(name)
    if expert is not None:
        name = _EXPERT.sub(DIST_EXPERTS, name)
        origin, whole = (*origin, int(expert[1])), (*whole, experts)
    return name, origin, whole


def dist_files(sizes: Sequence[int]) -> Iterator[str]:
    """The file of each chunk, whose `sizes` are in bytes: several files, so that several threads write."""
    total = sum(sizes)
    share = max(1, math.ceil(total / max(_FILES, math.ceil(total / _FILE_BYTES))))
    done = 0
    for size in sizes:
        yield f"__{done // share}_0.distcp"
        done += size


def common_document(
    common: Mapping[str, object], data: Mapping[tuple[str | int, ...], bytes] = MappingProxyType({})
) -> bytes:
    """common.pt: what is not a tensor. Megatron-Core does not load a checkpoint without it, unless an object in it says the same (since 0.19);
    every version reads the file."""
    return torch_files.torch_bytes(dict(common), COMMON, data)


def backend_document(backend: str) -> bytes:
    """metadata.json. Exactly these four fields are accepted by all versions (core 0.18 and before)."""
    return json.dumps(
        {
            "sharded_backend": backend,
            "sharded_backend_version": 1,
            "common_backend": "torch",
            "common_backend_version": 1,
        }
    ).encode()
