"""LoRA adapters of PEFT, Megatron-Bridge, NeMo 2 and verl: read as the model that they make of their base, or by themselves, and written as each other."""

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
        name="peft",
        called=("lora", "dora", "adapter"),
        summary="PEFT LoRA adapters: adapter_config.json with adapter_model.safetensors or .bin, merged into their base or by themselves",
        families=("models of format hf",),
        writes=False,
        adapters=True,
        options=(
            BASE,
            MERGE,
            Option(
                "residual_base",
                "the base given is what the start of the training left of the model (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)",
                bool,
                False,
                side="read",
            ),
            Option(
                "hf_class", "write for this class of transformers, where several hold the base", str, None, side="write"
            ),
            Option(
                "ignore_keys", "keys of adapter_config.json to leave out, separated by commas", str, "", side="read"
            ),
        ),
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_peft.places import looks_like

    return looks_like(path)


@hookimpl
def ckpt_fragment(path: str, request: ReadRequest) -> reading.Fragment | None:
    from ckpt_peft.show import fragment

    return fragment(path, request)


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Checkpoint:
    from ckpt_peft.read import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_peft.alone import write

    return write(checkpoint, request)


@hookimpl
def ckpt_adapter(architecture: Architecture) -> Adapter | None:
    from ckpt_peft.example import example

    return example(architecture)
