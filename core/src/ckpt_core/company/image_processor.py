"""`preprocessor_config.json`: how transformers prepares images for a model. It travels with models of images in any format.

A reader of a format that prepares images in code notes the same settings as `image_processor`.
"""

from __future__ import annotations

import json
from typing import Any

from ckpt_core.architecture import Architecture, Patches
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.errors import FormatError
from ckpt_core.storage.documents import parse_json

PROCESSOR = "preprocessor_config.json"
"""The file of Hugging Face that says how images are prepared."""

_LIMIT = 1 << 20


def processor_settings(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The settings: those of the file that travels along, else the noted ones; None if nothing is known."""
    file = checkpoint.sidecars.get(PROCESSOR)
    if file is None:
        noted = checkpoint.notes.get("image_processor")
        return noted if isinstance(noted, dict) else None
    settings = parse_json(_content(checkpoint), file.path)
    if not isinstance(settings, dict):
        raise FormatError(f"{PROCESSOR} holds no settings", file=file.path, found=type(settings).__name__)
    return settings


def processor_file(checkpoint: Checkpoint, architecture: Architecture) -> bytes | None:
    """The file for a model that was read from `checkpoint` and is written as `architecture`: None if nothing is known.

    It is the file that travels along, byte for byte, unless the model is written for images of another size.
    """
    before, after = checkpoint.architecture.patches, architecture.patches
    settings = processor_settings(checkpoint) if before is not None and after is not None else None
    if settings is None or before is None or after is None:
        return None
    resized = _size(before) != _size(after)
    if PROCESSOR in checkpoint.sidecars and not resized:
        return _content(checkpoint)
    if resized:
        settings = {
            **settings,
            **{key: _size(after) for key in ("size", "crop_size") if key == "size" or key in settings},
        }
    return (json.dumps(settings, indent=2) + "\n").encode()


def _content(checkpoint: Checkpoint) -> bytes:
    file = checkpoint.sidecars[PROCESSOR]
    if file.size > _LIMIT:
        raise FormatError(
            f"{PROCESSOR} is far too large", file=file.path, found=f"{file.size} bytes", expected=f"at most {_LIMIT}"
        )
    return file.extent.read()


def _size(patches: Patches) -> dict[str, int]:
    return {"height": patches.height, "width": patches.width}
