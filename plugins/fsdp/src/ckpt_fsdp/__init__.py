"""What FSDP saves of transformers models: verl's rank files, folders of accelerate and Trainer, distributed checkpoints."""

from __future__ import annotations

from ckpt_core.sdk import (
    Checkpoint,
    Description,
    FormatInfo,
    Option,
    ReadRequest,
    Target,
    WriteRequest,
    hookimpl,
    reading,
)


@hookimpl
def ckpt_info() -> FormatInfo:
    return FormatInfo(
        name="fsdp",
        called=("fsdp2", "dcp", "verl", "accelerate", "trainer", "torch-distributed"),
        summary="FSDP of a transformers model: verl's rank files, accelerate and Trainer folders, torch DCP",
        families=("decoders of format hf", "encoder-decoders of format hf", "encoders of format hf"),
        keeps=("hf",),
        options=(
            Option(
                "layout",
                "how a distributed checkpoint is written: as accelerate and the Trainer do, nested under model, or flat",
                ("nested", "flat", "accelerate"),
                None,
                side="write",
            ),
            Option(
                "names",
                "names of tensors as transformers 5 holds them in memory (experts fused), or as files and transformers 4 have them",
                ("held", "stored"),
                "held",
                side="write",
            ),
            Option(
                "prefix",
                "which model to read, where a distributed checkpoint holds several: what its keys begin with, e.g. model.",
                str,
                None,
                side="read",
            ),
            reading.IGNORE_KEYS,
            Option("max_shard_size", "largest data file, e.g. 5GB", str, "5GB", side="write"),
        ),
        trains=True,
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_fsdp.files import places

    return next((place.fact for place in places(path)), None)


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Description:
    from ckpt_fsdp.read import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_fsdp.write import write

    return write(checkpoint, request)
