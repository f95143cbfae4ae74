"""Writing a distributed checkpoint of a transformers model, which torch loads into any FSDP and any number of ranks.

    nested       {"model": state_dict}, as most scripts save
    flat         the state dict itself, as torchtitan does
    accelerate   pytorch_model_fsdp_0/, in which accelerate and the Trainer look, nested

Every tensor is one chunk: a loading rank reads the part that is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from ckpt_core.sdk import (
    Checkpoint,
    Target,
    TargetBuilder,
    WriteRequest,
    chunked,
    disk,
    dtypes,
    layouts,
    ledgers,
    reading,
    rewrites,
)
from ckpt_fsdp.optimizer import OPTIMIZER, OtherTensor, optimizer_of
from ckpt_hf.sdk import SAID_BESIDE, model_of_checkpoint, progress_documents, replaced

ACCELERATE = "pytorch_model_fsdp_0"
_MODEL = "model"


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The checkpoint and the model's `config.json`. Raises `Refusal` naming what transformers cannot hold.

    With the state of a training its weights are what the optimizer steps: see `TargetBuilder.stepped`. A tied head is written twice, as a state dict has it: torch's loader asks for every name of the module.
    """
    checkpoint, options = TargetBuilder.stepped(checkpoint, request), request.options
    layout = str(options.get("layout") or checkpoint.hints_for("fsdp").get("layout") or "nested")
    names = str(options.get("names") or "held")
    model = model_of_checkpoint(checkpoint, held=names == "held")
    held = rewrites.Rewritable(model.architecture, model.tensors, tuple(model.rewrites))
    builder = TargetBuilder(held, model.tables, request.dtype, trained=checkpoint)
    prefix = () if layout == "flat" else (_MODEL,)
    natives = {".".join((*prefix, name)): native for name, native in builder.natives().items()}
    paths = {key: (*prefix, native.name) for key, native in natives.items()}
    folder, limit = ACCELERATE if layout == "accelerate" else "", str(options.get("max_shard_size") or "5GB")
    assumed: list[ledgers.Loss] = []
    if builder.training is None:
        add_distributed(builder, natives, paths, folder, limit)
    else:
        assumed = reading.assumed_of(builder.training, builder.training.groups)
        state = optimizer_of(builder, builder.training, layout)
        if layout == "accelerate":
            add_distributed(builder, natives, paths, folder, limit)
            add_distributed(builder, state.moments, state.paths, OPTIMIZER, limit, state.steps, state.objects)
        else:
            both, places = {**natives, **state.moments}, {**paths, **state.paths}
            add_distributed(builder, both, places, folder, limit, state.steps, state.objects)
        builder.documents |= progress_documents(builder.training, builder.training.groups, checkpoint.sidecars)
        assumed += replaced(builder.documents, checkpoint.sidecars)
    builder.documents |= model.documents
    return builder.target(
        "fsdp",
        sidecars={path: sidecar for path, sidecar in checkpoint.sidecars.items() if path not in builder.documents},
        decisions={
            "layout": layout,
            "names": names,
            "hf_class": model.class_name,
            **({"tokens": list(model.tokens)} if model.tokens else {}),
        },
        losses=[*model.losses, *assumed],
        said=model.said,
        held=checkpoint.sidecars.keys() & builder.documents.keys() & {"preprocessor_config.json", "trainer_state.json"},
        says=SAID_BESIDE,
    )


def add_distributed(
    builder: TargetBuilder,
    natives: Mapping[str, layouts.Native],
    paths: Mapping[str, tuple[str | int, ...]],
    folder: str,
    limit: str,
    others: Sequence[OtherTensor] = (),
    objects: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Plan a distributed checkpoint of tensors by key in a folder of the output, its files of at most `limit` each.

    `others` are further tensors, and `objects` torch files by key. Without `paths` every key is one of the top.
    """
    sizes = [builder.bytes_of(native) for native in natives.values()]
    chunks = [
        _chunk(key, builder.dtype_of(native), native.shape, file)
        for (key, native), file in zip(natives.items(), _files(sizes, disk.parse_size(limit)), strict=True)
    ]
    last = chunks[-1].file
    beside = [_chunk(one.key, one.dtype, one.shape, last, one.data) for one in others]
    paths = paths or {key: (key,) for key in (*natives, *(one.key for one in others))}
    placed = {key: (last, data) for key, data in objects.items()}
    plan = chunked.plan_distributed(folder, [*chunks, *beside], placed, paths=paths)
    builder.files += plan.files
    for native, chunk, offset in zip(natives.values(), chunks, plan.offsets, strict=False):
        builder.place(native, _in(folder, chunk.file), offset)
    builder.documents[_in(folder, chunked.METADATA)] = plan.metadata


def _chunk(
    key: str, dtype: dtypes.DType, shape: tuple[int, ...], file: str, data: bytes | None = None
) -> chunked.ChunkSpec:
    return chunked.ChunkSpec(key, dtype, shape, (0,) * len(shape), shape, file, data)


def _in(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _files(sizes: Sequence[int], limit: int) -> Iterator[str]:
    """The file of each tensor, whose `sizes` are in bytes."""
    number, taken = 0, 0
    for size in sizes:
        if taken and taken + size > limit:
            number, taken = number + 1, 0
        taken += size
        yield f"__0_{number}.distcp"
