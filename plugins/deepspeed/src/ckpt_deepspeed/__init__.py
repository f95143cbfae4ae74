"""DeepSpeed checkpoints of transformers models: ZeRO-1, 2 and 3, and universal checkpoints."""

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
    launches,
    reading,
)


@hookimpl
def ckpt_info() -> FormatInfo:
    return FormatInfo(
        name="deepspeed",
        called=("zero", "zero1", "zero2", "zero3", "universal"),
        summary="DeepSpeed of a transformers model: ZeRO-1/2/3 step folders, and universal checkpoints",
        families=("decoders of format hf", "encoder-decoders of format hf", "encoders of format hf"),
        keeps=("hf",),
        trains=True,
        options=(
            Option(
                "flat", "parameters as bare flat tensors, as those converted from ZeRO-3 are", bool, None, side="write"
            ),
            reading.IGNORE_KEYS,
            Option("moments", "write Adam moments of zero beside the weights", bool, True, side="write"),
        ),
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_deepspeed.kinds import MODEL, kind_of

    kind = kind_of(path)
    return kind.fact if kind is not None and kind.of == MODEL else None


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Description:
    from ckpt_deepspeed.read import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_deepspeed.write import write

    return write(checkpoint, request)


@hookimpl
def ckpt_logits():
    from ckpt_deepspeed.own import judged

    return judged()


@hookimpl
def ckpt_launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    from ckpt_deepspeed.launch import launch

    return launch(target, request, resumed)
