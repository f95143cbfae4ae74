"""The files that PyTorch Lightning saves, opened, and whether they are of a model of NeMo."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import FormatError, torch_files
from ckpt_nemo.container.places import COMMON, Step

VERSION = "pytorch-lightning_version"
_NAMES = ("language_model.", "enc_dec_model.", "decoder.layers.", "word_embeddings.")


def looks_like_lightning(step: Step) -> bool:
    """Whether the files of a step are Lightning's, and of a model of NeMo: Lightning trains others too. NeMo gives it the
    config as `cfg`; where that is missing, the names of the tensors tell."""
    content = common_of(step)
    if VERSION not in content:
        return False
    parameters, held = content.get("hyper_parameters"), content.get("state_dict")
    names = [name for name in held if isinstance(name, str)] if isinstance(held, Mapping) else []
    config = isinstance(parameters, Mapping) and "cfg" in parameters
    return config or step.folder is not None or any(mark in name for name in names for mark in _NAMES)


def common_of(step: Step) -> Mapping[Any, Any]:
    """What the first file of a step holds."""
    path = os.path.join(step.folder, COMMON) if step.folder else step.ranks[min(step.ranks)]
    return content_of(path)


def content_of(path: str) -> Mapping[Any, Any]:
    """What a file of Lightning holds; `FormatError` where that is no dict."""
    content = torch_files.read_torch_file(path)
    if not isinstance(content, dict):
        raise FormatError("the file holds no dict", file=path, found=torch_files.brief(content))
    return content
