"""How NeMo prepares images, in code.

ClassificationTransform (vit_dataset.py, 1.23 to 2.4) resizes an image to the model's size with
bilinear interpolation, and normalises it by the mean and standard deviation of ImageNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import schema

_BILINEAR = 2  # PIL's number
_ROUNDED = 6


def of_nemo(patches: schema.Patches) -> dict[str, Any]:
    """NeMo's preparation of validation images, as a processor of transformers says it."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": patches.height, "width": patches.width},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


def differences(processor: Mapping[str, Any], patches: schema.Patches) -> list[str]:
    """What a processor does otherwise than NeMo's code; keys it leaves out do not count."""
    found = []
    for key, value in of_nemo(patches).items():
        if key != "image_processor_type" and key in processor and _rounded(processor[key]) != _rounded(value):
            found.append(f"{key} = {processor[key]}")
    return found


def _rounded(value: object) -> object:
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, _ROUNDED) if isinstance(value, float) else value
