"""Which of the two formats a folder is: a transformers model under DeepSpeed, or Megatron-DeepSpeed's pipeline module."""

from __future__ import annotations

import os
import re

from ckpt_core.sdk import CkptError, schema, torch_files
from ckpt_deepspeed.files import Folder, find_folder, scan

MODEL, PIPELINE = "model", "pipeline"
_PIPELINE_NAME = re.compile(r"tied_modules\..*|\d+\..*")


@schema.dataclass(frozen=True)
class Kind:
    """The format that a folder is of, and the fact that says so."""

    of: str
    fact: str


def kind_of(path: str) -> Kind | None:
    """The kind of the checkpoint at `path`; None if it is none of DeepSpeed's."""
    if not os.path.isdir(path):
        return None
    try:
        folder = scan(find_folder(path), strict=False)
    except (CkptError, OSError):
        return None
    found = (folder.universal, folder.layers, folder.partitioned, folder.models)
    if not any(map(torch_files.may_be_torch_file, (path for files in found for path in files.values()))):
        return None
    name = os.path.basename(os.path.abspath(folder.path))
    if folder.universal:
        pipeline = _is_pipeline(folder)
        return Kind(
            PIPELINE if pipeline else MODEL,
            f"a universal checkpoint {'of a pipeline module ' if pipeline else ''}in {name}",
        )
    if folder.layers:
        return Kind(PIPELINE, f"layer_*-model_* files in {name}")
    if folder.partitioned:
        return Kind(MODEL, f"model states of ZeRO-3 in {name}")
    return Kind(MODEL, f"mp_rank_* model states in {name}")


def _is_pipeline(folder: Folder) -> bool:
    """Parameters of a pipeline module are called by the number of their layer: `3.mlp.dense_h_to_4h.weight`."""
    return any(_PIPELINE_NAME.fullmatch(name) for name in folder.universal)
