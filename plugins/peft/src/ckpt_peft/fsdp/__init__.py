"""LoRA adapters that lie beside their base in what FSDP saved, as verl does: read as the model that both make, or by themselves."""

from __future__ import annotations

from ckpt_core.sdk import Checkpoint, FormatInfo, Option, ReadRequest, hookimpl, reading
from ckpt_peft.options import MERGE


@hookimpl
def ckpt_info() -> FormatInfo:
    return FormatInfo(
        name="fsdp-lora",
        summary="FSDP of a PEFT model (verl): rank files of base and adapter, with lora_train_meta.json, merged",
        families=("models of format hf",),
        writes=False,
        before=("fsdp",),
        options=(
            reading.IGNORE_KEYS,
            Option(
                "base", "the model to merge into, where it is not to be the one in the files", Checkpoint, side="read"
            ),
            MERGE,
            Option(
                "lora_alpha",
                "what the scale is alpha / rank of, where no lora_train_meta.json says it",
                float,
                side="read",
            ),
        ),
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_peft.fsdp.files import looks_like

    return looks_like(path)


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Checkpoint:
    from ckpt_peft.fsdp.read import read

    return read(path, request)
