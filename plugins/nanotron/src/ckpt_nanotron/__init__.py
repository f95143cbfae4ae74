"""Nanotron checkpoints: every released version read, any tensor and pipeline parallel layout written."""

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
        name="nanotron",
        summary="Nanotron: one safetensors file per parameter and rank, with model_config.json and config.yaml",
        families=("LlamaConfig", "Qwen2Config", "Starcoder2Config"),
        options=(
            Option("target", "the nanotron release that will load it", ("0.4", "main"), None, side="write"),
            Option(
                "rope_interleaved",
                "whether rotary pairs lie side by side: overrides the files (read), chooses the order (write)",
                bool,
            ),
            Option(
                "make_vocab_size_divisible_by",
                "pad the vocabulary to a multiple of this, times tp",
                int,
                1,
                side="write",
            ),
            Option(
                "zero",
                "whether data parallel ranks divide the state of the optimizer (1) or not (0)",
                ("0", "1"),
                "0",
                side="write",
            ),
            Option("dp", "data parallel ranks: with zero=1 the optimizer is written for as many", int, 1, side="write"),
            reading.IGNORE_KEYS,
            Option(
                "vocab",
                "the true vocabulary: a number, or tokenizer to count the tokens of tokenizer.json",
                str,
                None,
                side="read",
            ),
        ),
        parallel=("tp", "pp"),
        trains=True,
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_nanotron.places import looks_like

    return looks_like(path)


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Description:
    from ckpt_nanotron.read import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_nanotron.write import write

    return write(checkpoint, request)


@hookimpl
def ckpt_tables() -> list[FamilyTables]:
    from ckpt_nanotron.config import MODELS
    from ckpt_nanotron.weights import TABLES

    return [FamilyTables(model.config.name, model.config, TABLES) for model in MODELS]


@hookimpl
def ckpt_logits(checkpoint: Checkpoint, inputs):
    from ckpt_nanotron.own import judged

    return judged(checkpoint, inputs)


@hookimpl
def ckpt_launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    from ckpt_nanotron.launch import launch

    return launch(target, request, resumed)
