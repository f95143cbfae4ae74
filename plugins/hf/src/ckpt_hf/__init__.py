"""Hugging Face transformers checkpoints: read and write, config and weights.

`load_model(path)` gives a transformers model straight from any readable checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, ForwardRef

from ckpt_core.sdk import (
    Architecture,
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

if TYPE_CHECKING:
    from transformers import PreTrainedModel
else:
    PreTrainedModel = ForwardRef("__import__('transformers').PreTrainedModel")  # imported where a hint is evaluated

__all__ = ["load_model"]


@hookimpl
def ckpt_info() -> FormatInfo:
    from ckpt_hf.config import CLASS_NAMES
    from ckpt_hf.options import PART

    return FormatInfo(
        name="hf",
        called=("huggingface", "hugging-face", "transformers", "safetensors", "pytorch", "vllm", "sglang"),
        summary="Hugging Face transformers: config.json with safetensors or .bin weights, single or sharded",
        families=CLASS_NAMES,
        options=(
            Option("container", "file format of the weights", ("safetensors", "bin"), "safetensors", side="write"),
            Option("max_shard_size", "largest weight file, e.g. 5GB", str, "5GB", side="write"),
            Option(
                "hf_class", "the transformers class to write; refused by name where it is not exact", str, side="write"
            ),
            Option(
                "image_size",
                "write a ViT for images of another size (224, 224x192), its positions interpolated",
                str,
                None,
                side="write",
            ),
            Option("fold_layer_scale", "multiply the layer scale of a ViT into its weights", bool, False, side="write"),
            Option(
                "headless",
                "leave out the head: a bare model (LlamaModel), or of a ViT a ViTModel, with what is before its classes as pooler",
                bool,
                False,
                side="write",
            ),
            Option(
                "quantise",
                "store the linear layers as FP8 codes with a scale for each block of 128 x 128, as DeepSeek's and Qwen's files have them",
                ("none", "fp8-block"),
                "none",
                side="write",
            ),
            Option(
                "quantised",
                "the codes of a quantised source: dequantise them, or keep them bit for bit, from HF to HF",
                ("dequantise", "keep"),
                "dequantise",
                side="write",
            ),
            Option(
                "into",
                "the folder of a model that sees: write it with this language model in place of its own, and all else as it is there",
                str,
                "",
                side="write",
            ),
            Option(
                "read_as",
                "the transformers class to read the weights as, whatever model_type and architectures say",
                str,
                "",
                side="read",
            ),
            Option(
                "weight_files",
                "which weight files are the model, where a folder has several sets: their names or that of their index, "
                "separated by commas",
                str,
                "",
                side="read",
            ),
            reading.IGNORE_KEYS,
            reading.PREDICTORS,
            reading.LATENT_NORM_EPS,
            PART,
        ),
        trains=True,
    )


@hookimpl
def ckpt_detect(path: str) -> str | None:
    from ckpt_hf.files import looks_like

    return looks_like(path)


@hookimpl
def ckpt_architecture(path: str) -> Architecture | None:
    from ckpt_hf.read import architecture_in

    return architecture_in(path)


@hookimpl
def ckpt_notes(path: str) -> Mapping[str, object] | None:
    from ckpt_hf.read import notes_in

    return notes_in(path)


@hookimpl
def ckpt_read(path: str, request: ReadRequest) -> Description:
    from ckpt_hf.read import read

    return read(path, request)


@hookimpl
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    if request.options.get("into"):
        from ckpt_hf.into import written_into

        return written_into(checkpoint, request)
    from ckpt_hf.write import write

    return write(checkpoint, request)


@hookimpl
def ckpt_tables() -> list[FamilyTables]:
    from ckpt_hf.config import FAMILIES

    return [FamilyTables(family.class_name, family.config, family.tables, family.like) for family in FAMILIES]


@hookimpl
def ckpt_logits(checkpoint: Checkpoint, inputs):
    from ckpt_hf.model import logits

    return logits(checkpoint, inputs)


def load_model(
    path: str | os.PathLike[str],
    *,
    dtype: str = "keep",
    format: str | None = None,
    config: str | os.PathLike[str] | None = None,
    options: Mapping[str, str | int | float | bool] | None = None,
    weights: str = "auto",
    max_bytes: int | str | None = None,
) -> PreTrainedModel:
    """A transformers model in eval mode, its weights read from the checkpoint at `path`, whatever its format.

    `dtype` is `keep` or a dtype name; the other arguments are those of `ckpt_core.open_checkpoint`. The tensors
    are handed to transformers as it would load them from disk, and no HF folder is written. A model whose weights, as they are stored,
    take more than `max_bytes` is refused (`UsageError`) before any is read. Raises `Refusal` where no class is exact.
    """
    from ckpt_hf.model import load_model as load

    return load(path, dtype=dtype, format=format, config=config, options=options, weights=weights, max_bytes=max_bytes)
