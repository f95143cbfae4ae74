"""LoRA adapters of Megatron-Bridge and NeMo 2: read as the model that they make of their base, or by themselves, and written."""

from __future__ import annotations

from ckpt_core.sdk import (
    Adapter,
    Architecture,
    Checkpoint,
    FormatInfo,
    Option,
    ReadRequest,
    Target,
    WriteRequest,
    hookimpl,
    reading,
)
from ckpt_peft.options import BASE, MERGE


@hookimpl
def ckpt_info() -> FormatInfo:
    return FormatInfo(
        name="megatron-lora",
        summary="LoRA adapters of Megatron-Bridge (iter_* with run_config.yaml) and NeMo 2 (weights/adapter_metadata.json): adapter tensors alone, merged into their base or by themselves",
        families=("models of format megatron",),
        writes=False,
        adapters=True,
        before=("megatron-bridge", "megatron", "nemo", "nemo2", "fsdp"),
        options=(
            BASE,
            MERGE,
            Option(
                "lora_alpha",
                "what the scale is alpha / rank of, where no config of the run says it",
                float,
                None,
                side="read",
            ),
            Option(
                "layout",
                "whose folder is written: a run of Megatron-Bridge, or an adapter of NeMo 2",
                ("bridge", "nemo2"),
                "bridge",
                side="write",
            ),
            Option("pretrained_checkpoint", "where the framework finds the imported base", str, None, side="write"),
            Option(
                "canonical",
                "write adapters of their own for q, k, v, gate and up (CanonicalLoRA), in place of those of the fused layers",
                bool,
                False,
                side="write",
            ),
            Option("iteration", "write iter_NNNNNNN for this iteration", int, None, side="write"),
        ),
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_peft.megatron.places import may_hold_adapter

    if not may_hold_adapter(path):
        return None
    from ckpt_peft.megatron.files import looks_like

    return looks_like(path)


@hookimpl
def ckpt_fragment(path: str, request: ReadRequest) -> reading.Fragment | None:
    from ckpt_peft.megatron.read import fragment

    return fragment(path, request)


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Checkpoint:
    from ckpt_peft.megatron.read import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_peft.megatron.write import write

    return write(checkpoint, request)


@hookimpl
def ckpt_adapter(architecture: Architecture) -> Adapter | None:
    from ckpt_peft.example import example

    return example(architecture)
