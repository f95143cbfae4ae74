"""Megatron-DeepSpeed checkpoints: BLOOM and its relatives, read and written for any tensor and pipeline parallel layout."""

from __future__ import annotations

from ckpt_core.sdk import (
    Checkpoint,
    Description,
    FamilyTables,
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
        name="megatron-deepspeed",
        called=("bloom", "bigscience"),
        summary="Megatron-DeepSpeed (BLOOM): global_step folders of layer files, their ZeRO and BF16 optimizer shards, and universal ones",
        families=(
            "GPTModelPipe with ALiBi (BLOOM)",
            "GPTModelPipe with learned positions",
            "GPTModelPipe with rotary positions",
            "GPTModelPipe with gated MLP",
        ),
        options=(
            Option(
                "make_vocab_size_divisible_by",
                "pad the vocabulary to a multiple of this, times tp",
                int,
                None,
                side="write",
            ),
            Option("step", "the number in global_stepN", int, 0, side="write"),
            Option(
                "universal", "a universal checkpoint: fp32 parameters for any number of ranks", bool, None, side="write"
            ),
            Option("moments", "write Adam moments of zero into a universal checkpoint", bool, True, side="write"),
            Option("vocab", "the true vocabulary, where the checkpoint does not say it", int, None, side="read"),
            reading.IGNORE_KEYS,
        ),
        parallel=("tp", "pp"),
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_deepspeed.kinds import PIPELINE, kind_of

    kind = kind_of(path)
    return kind.fact if kind is not None and kind.of == PIPELINE else None


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Description:
    from ckpt_deepspeed.megatron.read import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_deepspeed.megatron.write import write

    return write(checkpoint, request)


@hookimpl
def ckpt_tables() -> list[FamilyTables]:
    from ckpt_deepspeed.megatron.config import GPT
    from ckpt_deepspeed.megatron.weights import TABLES

    return [FamilyTables(GPT.name, GPT, TABLES)]


@hookimpl
def ckpt_logits():
    from ckpt_deepspeed.own import judged

    return judged()


@hookimpl
def ckpt_launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    from ckpt_deepspeed.megatron.launch import launch

    return launch(target, request, resumed)
