"""Writing the torch container: one file per rank of one parallel layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ckpt_core.sdk import dtypes, layouts, schema, torch_files
from ckpt_megatron import weights
from ckpt_megatron.builder import GPTBuilder
from ckpt_megatron.extra_states import extra_states
from ckpt_megatron.files import MODEL_FILE
from ckpt_megatron.layout import FileLayout, namespace
from ckpt_megatron.masters import BUFFERS
from ckpt_megatron.names import LegacySpelling, expert_of, of_module, renumbered, te
from ckpt_megatron.optimizer.registered import registered
from ckpt_megatron.optimizer.written import WrittenState
from ckpt_megatron.optimizer.written_ranks import DISTRIBUTED_FILE, KeptParameter, WrittenRank, written_rank


@schema.dataclass(frozen=True)
class _Kept:
    """A tensor as a rank file keeps it."""

    name: str
    shape: tuple[int, ...]
    native: layouts.Native


def write_torch(
    builder: GPTBuilder,
    placed: Mapping[tuple[int, int], range],
    args: Mapping[str, object],
    common: Mapping[str, object],
    state: WrittenState | None = None,
) -> None:
    """Plan all rank files. `placed`: the layers of each (pipeline rank, virtual stage). `state` is that of a training, which knows parameters by their order."""
    layout, architecture = builder.layout, builder.architecture
    bound = layouts.BoundTables(weights.TABLES, architecture, _choices(layout))
    for t in range(layout.tp):
        for e in range(layout.ep):
            ranks = {"tp": (t, layout.tp), "ep": (e, layout.ep)}
            natives = list(bound.natives(ranks).values())
            for p in range(layout.pp):
                chunks = [list(_stage(builder, natives, placed, (p, c), e)) for c in range(layout.vpp)]
                if state is not None:
                    chunks = [_registered(builder, chunk) for chunk in chunks]
                _write_rank(builder, (t, p, e), chunks, args, common, state)


def _choices(layout: FileLayout) -> dict[str, layouts.Value]:
    """How the tensors of rank files are arranged. TransformerEngine (0.14) has the down projections whole."""
    local = layout.names == "local"
    return {
        "checkpoint_version": weights.VERSION.until(layout.version),
        "experts": "grouped" if layout.grouped and local else "sequential",
        "mla_down_proj": "rows" if local else "whole",
    }


def _stage(
    builder: GPTBuilder,
    natives: list[layouts.Native],
    placed: Mapping[tuple[int, int], range],
    stage: tuple[int, int],
    expert_rank: int,
) -> Iterator[_Kept]:
    """Everything in one (pipeline rank, virtual stage), in the order of the modules."""
    layout, here = builder.layout, placed[stage]
    last = stage == (layout.pp - 1, layout.vpp - 1)
    outside = [native for native in natives if native.layer is None and native.predictor is None]
    further = [native for native in natives if native.predictor is not None and last]
    # The stage of the layers of multi-token prediction embeds, too.
    embeds = stage == (0, 0) or bool(further)
    first = [native for native in outside if native.name.startswith("embedding.") and embeds]
    inside = [native for layer in here for native in natives if native.layer == layer]
    # Where one stage holds both ends of the model, its tied head is the embedding itself.
    ends = [native for native in outside if not native.name.startswith("embedding.") and last]
    ends = [native for native in ends if not (native.row.copy and layout.pp == 1)]
    for native in [*first, *inside, *ends, *further]:
        yield _Kept(_name(builder, native, here.start, expert_rank), _stored_shape(native), native)


def _registered(builder: GPTBuilder, chunk: list[_Kept]) -> list[_Kept]:
    """What a stage keeps in the order in which its modules register it, by which an optimizer knows its parameters."""
    layout, by_name = builder.layout, {kept.native.name: kept for kept in chunk}
    parameters = [name for name, kept in by_name.items() if not BUFFERS.search(kept.name)]
    order = registered(parameters, fused=layout.names == "te", grouped=layout.grouped and layout.names == "te")
    return [*(by_name[name] for name in order), *(kept for kept in chunk if BUFFERS.search(kept.name))]


def _is_tied(builder: GPTBuilder) -> bool:
    return any(native.row.copy for native in builder.natives().values())


def _name(builder: GPTBuilder, native: layouts.Native, first_layer: int, expert_rank: int) -> str:
    """The name in a rank file, where layers and experts are numbered from 0."""
    layout, experts = builder.layout, builder.experts(native)
    layer, expert = native.layer, expert_of(native.name)
    if layer is not None:
        layer -= first_layer
    if expert is not None:
        expert -= expert_rank * (experts // layout.ep)
    name = renumbered(native.name, layer, expert)
    if layout.names == "te":
        name = te(name, latent=builder.latent, moe=bool(experts), grouped=layout.grouped)
    if layout.names == "legacy":
        return layout.spelling.name(name, tied=native.row.copy)
    return of_module(name)


def _stored_shape(native: layouts.Native) -> tuple[int, ...]:
    """GroupedMLP keeps its three-dimensional weights as [h, x * 2f] and [x * f, h], without moving an element."""
    if native.row.native.endswith("experts.weight1"):
        experts, hidden, width = native.shape
        return hidden, experts * width
    if native.row.native.endswith("experts.weight2"):
        experts, width, hidden = native.shape
        return experts * width, hidden
    return native.shape


def _write_rank(
    builder: GPTBuilder,
    rank: tuple[int, int, int],
    chunks: list[list[_Kept]],
    args: Mapping[str, object],
    common: Mapping[str, object],
    state: WrittenState | None,
) -> None:
    layout = builder.layout
    t, p, e = rank
    folder = f"mp_rank_{t:02d}" + (f"_{p:03d}" if layout.pp > 1 else "") + (f"_{e:03d}" if layout.ep > 1 else "")
    path = f"{layout.folder}/{folder}/{MODEL_FILE}"
    # The rank that Megatron would have saved this file from, which tells files apart that were swapped.
    saved_by = {"rank": (p * layout.ep + e) * layout.tp + t, "world_size": layout.tp * layout.pp * layout.ep}
    body: dict[str, object] = {"args": namespace({**args, **saved_by}), **common}
    keys = ["model"] if layout.vpp == 1 else [f"model{chunk}" for chunk in range(layout.vpp)]
    for key, tensors in zip(keys, chunks, strict=True):
        model: dict[str, object] = {
            kept.name: torch_files.TensorSpec(builder.dtype_of(kept.native), kept.shape) for kept in tensors
        }
        model |= dict.fromkeys(extra_states(list(model), layout.names))
        body[key] = _nested(model, layout.spelling) if layout.names == "legacy" else model
    optimizer = WrittenRank(None)
    if state is not None:
        parameters = [
            KeptParameter(kept.native, kept.shape, chunk)
            for chunk, tensors in enumerate(chunks)
            for kept in tensors
            if not BUFFERS.search(kept.name)
        ]
        optimizer = written_rank(builder, state, parameters, shared=_is_tied(builder) and layout.pp > 1)
        body |= {"optimizer": optimizer.said, "opt_param_scheduler": state.schedule}
    file, offsets = torch_files.plan_nest(path, body, optimizer.known)
    builder.files.append(file)
    for inside, native in optimizer.placed.items():
        builder.place(native, path, offsets[inside])
    if optimizer.beside is not None:
        beside = f"{layout.folder}/{folder}/{DISTRIBUTED_FILE}"
        file, flat = torch_files.plan_nest(beside, optimizer.beside)
        builder.files.append(file)
        for inside, start, native in optimizer.flat:
            builder.place(native, beside, flat[inside] + start * dtypes.FP32.size)
    by_name = {(inside[0], ".".join(inside[1:])): offset for inside, offset in offsets.items() if inside[0] in keys}
    for key, tensors in zip(keys, chunks, strict=True):
        for kept in tensors:
            builder.place(kept.native, path, by_name[key, kept.name])


def _nested(state: Mapping[str, object], spelling: LegacySpelling) -> dict[str, object]:
    """The nest of dicts of a legacy model, in which all layers lie flat in one."""
    nest: dict = {}
    flat = f"language_model.{spelling.container}."
    for name, value in state.items():
        if name.startswith(flat):
            path = ["language_model", spelling.container, name.removeprefix(flat)]
        else:
            path = name.split(".")
        inside = nest
        for step in path[:-1]:
            inside = inside.setdefault(step, {})
        inside[path[-1]] = value
    return nest
