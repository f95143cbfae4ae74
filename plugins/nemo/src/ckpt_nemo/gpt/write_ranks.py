"""Weights by rank: a state dict for each, with layers numbered from 0 within each stage."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_core.sdk import Architecture, dtypes, layouts, schema
from ckpt_megatron.sdk import linear_extra_states, renumbered, te
from ckpt_nemo.container.writing import Constant, Entry, NemoBuilder, State
from ckpt_nemo.gpt.layout import FileLayout
from ckpt_nemo.gpt.rotary import frequencies, stored_bytes
from ckpt_nemo.gpt.weights import ROTARY, legacy


def add_ranks(builder: NemoBuilder, layout: FileLayout) -> None:
    """Enter the file of every rank."""
    stages = layout.stages(len(_layers(builder.architecture)))
    for t in range(layout.tp):
        natives = list(builder.natives({"tp": (t, layout.tp)}).values())
        for p in range(layout.pp):
            chunks = [_state(builder, natives, layout, stages[p, chunk], (p, chunk)) for chunk in range(layout.vpp)]
            builder.add_rank((t, p), (layout.tp, layout.pp), chunks)


def _layers(architecture: Architecture) -> tuple[schema.Layer, ...]:
    return architecture.decoder.layers if architecture.decoder else ()


def _state(
    builder: NemoBuilder, natives: list[layouts.Native], layout: FileLayout, here: range, place: tuple[int, int]
) -> State:
    """The state dict of one (virtual) stage at `place`, in the order of the modules. A chunk of several has no `model.`."""
    prefix = "model." if layout.vpp == 1 else ""
    found: dict[str, Entry] = {}
    rotary = layout.names == "legacy" and frequencies(builder.architecture) is not None
    for native in _stage(natives, layout, here, place):
        if native is None:
            if rotary:
                found[f"{prefix}{ROTARY}"] = _rotary(builder)
            continue
        name = renumbered(native.name, None if native.layer is None else native.layer - here.start, None)
        if layout.names == "legacy":
            name = legacy(name, native.row.copy)
        elif layout.fused:
            moe = native.layer is not None and _layers(builder.architecture)[native.layer].moe is not None
            name = te(name, latent=False, moe=moe, grouped=False)
        found[f"{prefix}{name}"] = native
    if layout.names == "mcore" and layout.fused:
        # NeMo 1.23 loads rank files strictly: without these keys "Missing key(s) ... _extra_state".
        found |= dict.fromkeys(linear_extra_states(list(found)))
    return found


def _stage(
    natives: list[layouts.Native], layout: FileLayout, here: range, place: tuple[int, int]
) -> Iterator[layouts.Native | None]:
    """The tensors of a stage; None where the rotary frequencies go, of which every stage before Megatron-Core has a copy."""
    first, last = place == (0, 0), place == (layout.pp - 1, layout.vpp - 1)
    outside = [native for native in natives if native.layer is None]
    if first:
        yield from (native for native in outside if native.name.startswith("embedding."))
    yield None
    yield from sorted((native for native in natives if native.layer in here), key=lambda native: native.layer or 0)
    if last:
        # One stage holds both ends of the model: its tied head is the embedding itself.
        ends = (native for native in outside if not native.name.startswith("embedding."))
        yield from (native for native in ends if not (native.row.copy and layout.pp == 1))


def _rotary(builder: NemoBuilder) -> Constant:
    """In the model's dtype: with O2 the whole module is cast, without it everything is float32."""
    kind = builder.dtype or builder.model.tensors["embedding.tokens.weight"].dtype
    kind, count, data = stored_bytes(builder.architecture, kind if kind.size < dtypes.FP32.size else dtypes.FP32)
    return Constant(kind, (count,), data)
