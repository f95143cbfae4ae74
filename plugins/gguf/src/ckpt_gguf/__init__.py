"""GGUF files of llama.cpp: read and written, plain and quantised, with tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    reading,
)


class _Names(Sequence[str]):
    """The names of the architectures, whose tables are imported when somebody looks."""

    def __getitem__(self, index: Any) -> Any:
        from ckpt_gguf.architectures import MODELS

        return [model.config.name for model in MODELS][index]

    def __len__(self) -> int:
        from ckpt_gguf.architectures import MODELS

        return len(MODELS)


@hookimpl
def ckpt_info() -> FormatInfo:
    return FormatInfo(
        name="gguf",
        summary="GGUF of llama.cpp: one file with metadata, tokenizer and tensors, plain or quantised",
        families=_Names(),
        bare={"tokenizer": "none"},
        options=(
            Option(
                "type",
                "the type of matrices; norms, biases and routers are always F32",
                ("F32", "F16", "BF16", "Q8_0"),
                None,
                side="write",
                otherwise="write BF16 or F16; llama.cpp makes the others of that file: llama-quantize FILE.gguf OUT.gguf TYPE",
            ),
            Option(
                "quantised",
                "the blocks of a quantised source: compute their numbers, or keep them bit for bit, from GGUF to GGUF",
                ("dequantise", "keep"),
                "dequantise",
                side="write",
            ),
            Option(
                "tokenizer",
                "put the model's tokenizer into the file; none: llama.cpp then takes and gives ids alone",
                ("own", "none"),
                "own",
                side="write",
            ),
            Option(
                "pre",
                "llama.cpp's name for how the tokenizer cuts words (tokenizer.ggml.pre), where it is not found",
                str,
                None,
                side="write",
            ),
            Option(
                "gelu",
                "tanh: write a model with the exact GELU although llama.cpp computes the tanh form (Pythia)",
                ("exact", "tanh"),
                "exact",
                side="write",
            ),
            Option(
                "window",
                "left-out: write a model whose layers all have a window although llama.cpp lets every position see all (Mistral 7B v0.1)",
                ("kept", "left-out"),
                "kept",
                side="write",
            ),
            Option("name", "general.name of the file", str, None, side="write"),
            Option(
                "context_length",
                "the length that the model was trained for, where nothing says it",
                int,
                None,
                side="write",
            ),
            reading.IGNORE_KEYS,
            reading.LATENT_NORM_EPS,
        ),
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_gguf.places import looks_like

    return looks_like(path)


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Description:
    from ckpt_gguf.read import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    from ckpt_gguf.write import write

    return write(checkpoint, request)


@hookimpl
def ckpt_tables() -> list[FamilyTables]:
    from ckpt_gguf.architectures import MODELS

    return [FamilyTables(model.config.name, model.config, model.tables) for model in MODELS]
