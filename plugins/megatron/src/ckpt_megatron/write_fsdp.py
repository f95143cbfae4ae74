"""Writing fsdp_dtensor (see `megatron_fsdp`), which Megatron-FSDP loads at any number of ranks.

Every tensor is one chunk: a loading rank reads the part that is its own. The names are those of the modules in memory, so
grouped experts are a choice here as they are in torch files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ckpt_core.sdk import Refusal, chunked, layouts, torch_files
from ckpt_megatron.builder import GPTBuilder
from ckpt_megatron.megatron_fsdp import GATE, PREFIX, UP
from ckpt_megatron.names import te
from ckpt_megatron.write_dist import dist_files

_WRAPPER = "module."
_OF_GATE_AND_UP = re.compile(r"linear_fc1\.(weight|bias)$")


def write_fsdp(builder: GPTBuilder, values: Mapping[str, object]) -> None:
    """Plan the files. `values` lie beside the tensors, each under a key of its own: args, iteration, checkpoint_version."""
    layout = builder.layout
    if layout.grouped and layout.names == "local" and any(layer.moe for layer in builder.layers):
        raise Refusal(
            "how fsdp_dtensor keeps grouped experts of local modules is not known",
            found="-o names=local",
            fix="use -o names=te, or single experts where the format has them (-o experts=sequential)",
        )
    whole = [native for native in builder.natives().values() if not native.row.copy]
    natives = {f"{PREFIX}{_WRAPPER}{name}": part for native in whole for name, part in _stored(builder, native)}
    files = dist_files([math.prod(native.shape) * builder.dtype_of(native).size for native in natives.values()])
    chunks = [
        chunked.ChunkSpec(key, builder.dtype_of(native), native.shape, (0,) * len(native.shape), native.shape, file)
        for (key, native), file in zip(natives.items(), files, strict=True)
    ]
    objects = {key: (chunks[0].file, torch_files.torch_bytes(value, "archive")) for key, value in values.items()}
    paths = {key: (PREFIX.removesuffix("."), key.removeprefix(PREFIX)) for key in natives}
    plan = chunked.plan_distributed(layout.folder, chunks, objects, paths={**paths, **{key: (key,) for key in objects}})
    builder.files += plan.files
    for native, chunk, offset in zip(natives.values(), chunks, plan.offsets, strict=True):
        builder.place(native, f"{layout.folder}/{chunk.file}", offset)
    builder.documents[f"{layout.folder}/{chunked.METADATA}"] = plan.metadata


def _stored(builder: GPTBuilder, native: layouts.Native) -> Iterator[tuple[str, layouts.Native]]:
    """What a tensor of the tables is stored as, by name: itself, or its two halves (`handle_swiglu_in_state_dict`)."""
    name = native.name
    of_layer = native.layer is not None or native.predictor is not None
    if of_layer and builder.layout.names == "te":
        experts = bool(builder.experts(native))
        name = te(name, latent=builder.latent, moe=experts, grouped=builder.layout.grouped, sparse=builder.sparse)
    parameters = {piece.parameter for piece in native.pieces}
    if _OF_GATE_AND_UP.search(native.name) is None or len(parameters) == 1:
        yield name, native
        return
    for number, suffix in enumerate((GATE, UP)):
        yield f"{name}{suffix}", replace(native.block(number, 2), name=f"{name}{suffix}")
