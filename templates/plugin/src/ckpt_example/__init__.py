"""Checkpoints of the Example framework: one safetensors file per tensor parallel rank, and model.json."""

from __future__ import annotations

import os

from ckpt_core.sdk import Architecture, Checkpoint, FormatInfo, ReadRequest, Target, WriteRequest, hookimpl


@hookimpl
def ckpt_info() -> FormatInfo:
    return FormatInfo(
        "example", "the Example framework: a safetensors file per rank", families=("ExampleModel",), parallel=("tp",)
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    found = all(os.path.isfile(os.path.join(path, name)) for name in ("model.json", "rank-0.safetensors"))
    return "model.json beside rank-0.safetensors" if found else None


@hookimpl
def ckpt_architecture(path: str) -> Architecture | None:
    from ckpt_example.files import read_config

    return read_config(path)[0] if os.path.basename(path) == "model.json" else None


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Checkpoint:
    from ckpt_example.files import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_example.files import write

    return write(checkpoint, request)
