"""Transformers models straight from any readable checkpoint, with no HF folder written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ckpt_core.sdk import Checkpoint, CkptError, disk, errors, judgement, rewrites, schema
from ckpt_hf.files import CONFIG, config_in
from ckpt_hf.quantised.said import HINT
from ckpt_hf.write import choose

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


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
    """What `ckpt_hf.load_model` does, which says the arguments and the errors; this module needs torch and transformers."""
    from ckpt_core import open_checkpoint

    limit = disk.parse_size(max_bytes) if isinstance(max_bytes, str) else max_bytes

    def built() -> PreTrainedModel:
        with open_checkpoint(path, format=format, config=config, options=options, weights=weights) as opened:
            return build(opened.checkpoint, dtype, limit)

    try:
        return built()
    except errors.TouchedSource:  # while it was read: it may be another one now, and mostly is the same
        return built()


def build(checkpoint: Checkpoint, dtype: str = "keep", max_bytes: int | None = None) -> PreTrainedModel:
    """The transformers model of an opened checkpoint, of `max_bytes` of weights at most."""
    size = sum(one.parameter.elements * one.dtype.size for one in checkpoint.tensors.values())
    if max_bytes is not None and size > max_bytes:
        raise errors.UsageError(
            "the model is larger than max_bytes",
            file=checkpoint.path,
            found=f"{size:,} bytes of weights",
            expected=f"{max_bytes:,} at most",
            fix="load it on a machine with more memory, or convert it and let transformers place it with device_map",
        )
    try:
        import torch
        import transformers
    except ImportError:
        raise CkptError(
            "transformers models need torch and transformers",
            fix='pip install "ckpt-convert[models]"; without a GPU, first: pip install torch --index-url https://download.pytorch.org/whl/cpu',
        ) from None
    from ckpt_core.sdk import dtypes

    checkpoint = checkpoint.in_dtype(None if dtype == "keep" else dtypes.dtype_named(dtype))
    state, config, kept = state_dict(checkpoint)
    name, model_type = config["architectures"][0], config["model_type"]
    if not hasattr(transformers, name) or model_type not in transformers.CONFIG_MAPPING:
        raise CkptError(
            "transformers has no such class without the code of its author",
            file=checkpoint.path,
            found=f"{name} of model_type {model_type!r}",
            fix="convert it to an HF folder of another class with -o hf_class=..., and load that",
        )
    with tempfile.TemporaryDirectory() as folder:  # holds config.json alone: AutoConfig reads files
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(config, file)
        settings = transformers.AutoConfig.from_pretrained(folder)
    wanted = getattr(torch, kept if dtype == "keep" else dtypes.dtype_named(dtype).torch)
    kind = getattr(transformers, name)  # the Auto classes of version 5 insist on a path
    model = kind.from_pretrained(None, config=settings, state_dict=state, dtype=wanted)
    return model.eval()


def state_dict(checkpoint: Checkpoint) -> tuple[Mapping[str, object], dict[str, Any], str]:
    """The HF state dict of a checkpoint as torch tensors, its config, and its commonest dtype by torch's name."""
    import torch

    from ckpt_core.sdk import dtypes, lazy

    fit = choose(checkpoint, asked=[rewrites.without_predictors])  # which no class of transformers has
    builder = fit.builder()
    natives = fit.natives(builder)
    source = lazy.SourceFiles(checkpoint.files)
    state: dict[str, torch.Tensor] = {}
    try:
        for native in natives:
            dtype = builder.dtype_of(native)
            flat = np.empty(int(np.prod(native.shape)), dtype.numpy)
            for piece in native.pieces:
                assembly = fit.model.tensors[piece.parameter]
                box = tuple((0, size) for size in assembly.parameter.shape)
                block = lazy.StoredPart("", dtype, 0, lazy.flat_tile(piece.tile, lazy.contiguous_strides(native.shape)))
                values = lazy.stored_values(
                    source.read(assembly, box), assembly.value_dtype, dtype, (), piece.parameter
                )
                for tile in block.within(box):
                    view = np.lib.stride_tricks.as_strided(
                        flat[tile.native_base[0] :],
                        [link.size for link in tile.links],
                        [link.stride * dtype.size for link in tile.links],
                    )
                    view[...] = lazy.tile_view(values, tile, box)
            tensor = torch.from_numpy(flat.view(np.int16) if dtype.name == "bf16" else flat)
            state[native.name] = (tensor.view(torch.bfloat16) if dtype.name == "bf16" else tensor).reshape(native.shape)
        source.check_untouched()
    finally:
        source.close()
    config = {"architectures": [fit.family.class_name], "model_type": fit.family.model_type, **fit.config}
    return state, config, dtypes.commonest(map(builder.dtype_of, natives)).torch


def logits(checkpoint: Checkpoint, inputs: Mapping[str, np.ndarray]) -> judgement.Judgement | None:
    """Float32 logits by transformers, which loads the folder from disk itself, so that its config is judged too.

    None if transformers is not installed. See the hook `ckpt_logits` for `inputs`.
    """
    try:
        import torch
        import transformers
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        return None
    disable_progress_bar()  # progress on stderr is ours to show
    framework = f"transformers {transformers.__version__}"
    try:
        with judgement.loading():
            config = config_in(os.path.join(checkpoint.path, CONFIG)) if os.path.isdir(checkpoint.path) else None
            if config is not None and config["model_type"] not in transformers.CONFIG_MAPPING:
                raise judgement.CannotRun(
                    f"it has no model_type {config['model_type']!r} without the code of its author"
                )
            if HINT in checkpoint.provenance.hints:
                raise judgement.CannotRun(
                    "it dequantises by rules of its own: a partial block as if it were whole, and ModelOpt's codes without their scales"
                )
            name = transformers.AutoConfig.from_pretrained(checkpoint.path).architectures[0]
            if not hasattr(transformers, name):
                raise judgement.CannotRun(f"it has no class {name}")
            model = getattr(transformers, name).from_pretrained(checkpoint.path, dtype=torch.float32).eval()
    except judgement.FilesRefused as problem:
        return judgement.Judgement(framework, refused=str(problem))
    except (judgement.CannotRun, ImportError) as problem:
        return judgement.Judgement(framework, cannot=str(problem))
    given = {name: torch.from_numpy(np.asarray(values)) for name, values in inputs.items()}
    arguments = {_ARGUMENTS["source" in given][name]: tensor for name, tensor in given.items()}
    if checkpoint.architecture.vision is not None and "pixels" in given:
        arguments |= _of_images(checkpoint.architecture.vision, given["tokens"], given["pixels"])
    with torch.no_grad():
        final = torch.cat([_final(model(**rows)) for rows in _batches(model, arguments)])
    return judgement.Judgement(framework, logits=final.float().numpy())


def _of_images(vision: schema.Vision, tokens: torch.Tensor, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The arguments for images in a text: as they are where all are of one size, else cut into patches, as Qwen's processor gives them."""
    import torch

    stands = (tokens == vision.token).long()
    if vision.image is not None:
        return {"pixel_values": pixels, "token_type_ids": stands}
    if vision.frames == 1:
        return {"pixel_values": pixels, "image_sizes": torch.tensor([pixels.shape[-2:]] * len(pixels))}
    images, channels, frames, height, width = pixels.shape
    patch, merge, layers = vision.patch, vision.projector.merge, frames // vision.frames
    rows, columns = height // patch, width // patch
    # squares of patches that are merged follow one another
    cut = pixels.reshape(
        images, channels, layers, vision.frames, rows // merge, merge, patch, columns // merge, merge, patch
    )
    return {
        "pixel_values": cut.permute(0, 2, 4, 7, 5, 8, 1, 3, 6, 9).reshape(images * layers * rows * columns, -1),
        "image_grid_thw": torch.tensor([[layers, rows, columns]] * images),
        "mm_token_type_ids": stands,
    }


def _batches(model: PreTrainedModel, arguments: Mapping[str, torch.Tensor]) -> Iterator[Mapping[str, torch.Tensor]]:
    """The inputs, in one batch. A classifier that knows no padding is given one row after another: transformers refuses several,
    as it could not tell where each of them ends (modeling_layers.py, GenericForSequenceClassification)."""
    if not hasattr(model, "score") or getattr(model.config, "pad_token_id", None) is not None:
        yield arguments
        return
    for rows in zip(*(tensor.split(1) for tensor in arguments.values()), strict=True):
        yield dict(zip(arguments, rows, strict=True))


def _final(outputs: Any) -> torch.Tensor:
    """The logits of a model, for an answer those of its start and then of its end; a bare one ends in its pooler, or in its last layer."""
    import torch

    if hasattr(outputs, "start_logits"):
        return torch.cat([outputs.start_logits, outputs.end_logits], -1)
    return next(value for name in _OUTPUTS if (value := getattr(outputs, name, None)) is not None)


_OUTPUTS = ("logits", "prediction_logits", "pooler_output", "last_hidden_state")


# What transformers calls the inputs of a model with one stack, and of one with an encoder and a decoder.
_ARGUMENTS = (
    {"tokens": "input_ids", "mask": "attention_mask", "pixels": "pixel_values", "types": "token_type_ids"},
    {
        "tokens": "decoder_input_ids",
        "mask": "decoder_attention_mask",
        "source": "input_ids",
        "source_mask": "attention_mask",
    },
)
