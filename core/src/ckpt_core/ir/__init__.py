"""The intermediate representation on disk: fp32 safetensors named canonically, and `architecture.json`."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_core.architecture import Architecture
from ckpt_core.checkpoint import Checkpoint, Target
from ckpt_core.description import Description
from ckpt_core.plugins.hookspecs import hookimpl
from ckpt_core.plugins.request import FormatInfo, Option, ReadRequest, WriteRequest
from ckpt_core.reading import LATENT_NORM_EPS, PREDICTORS


@hookimpl
def ckpt_info() -> FormatInfo:
    return FormatInfo(
        name="ir",
        summary="the intermediate representation: fp32 safetensors named canonically, with architecture.json",
        families=("every architecture",),
        options=(
            Option("max_shard_size", "largest weight file, e.g. 5GB", str, "5GB", side="write"),
            PREDICTORS,
            LATENT_NORM_EPS,
        ),
        trains=True,
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_core.ir.places import looks_like

    return looks_like(path)


@hookimpl
def ckpt_architecture(path: str) -> Architecture | None:
    from ckpt_core.ir.config import architecture_in

    return architecture_in(path)


@hookimpl
def ckpt_notes(path: str) -> Mapping[str, object] | None:
    from ckpt_core.ir.files import notes_in

    return notes_in(path)


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Description:
    from ckpt_core.ir.files import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_core.ir.files import write

    return write(checkpoint, request)
