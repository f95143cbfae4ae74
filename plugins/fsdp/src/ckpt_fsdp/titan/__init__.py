"""torchtitan's own models, in its distributed checkpoints: llama3, qwen3 (dense and mixtures), deepseek_v3."""

from __future__ import annotations

from ckpt_core.sdk import (
    Architecture,
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
        name="torchtitan",
        called=("titan",),
        summary="torchtitan: step folders of torch DCP, of its own llama3, qwen3 and deepseek_v3",
        families=("llama3", "qwen3, dense and mixtures", "deepseek_v3"),
        options=(
            Option(
                "model",
                "which of torchtitan's models it is, where the architecture leaves it open: llama3 rotates neighbours, qwen3 halves",
                ("llama3", "qwen3", "deepseek_v3"),
                None,
            ),
            reading.IGNORE_KEYS,
            Option(
                "drop_expert_bias",
                "leave out the bias that torchtitan adds to the scores of experts, where the model has no place for it",
                bool,
                False,
                side="read",
            ),
            Option(
                "release", "names as torchtitan has them since 0.3, or until 0.2", ("0.3", "0.2"), "0.3", side="write"
            ),
            Option("max_shard_size", "largest data file, e.g. 5GB", str, "5GB", side="write"),
        ),
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_fsdp.steps import looks_like

    return looks_like(path)


@hookimpl
def ckpt_architecture(path: str) -> Architecture | None:
    from ckpt_fsdp.titan.config import architecture_in

    return architecture_in(path)


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Description:
    from ckpt_fsdp.titan.read import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_fsdp.titan.write import write

    return write(checkpoint, request)
