"""Every canonical parameter under its own name, with its own axes: the table writes itself."""

from __future__ import annotations

import os

from ckpt_core.architecture import Architecture, parameters
from ckpt_core.errors import FormatError
from ckpt_core.layout import Table, row
from ckpt_core.storage import safetensors
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.documents import read_json_object
from ckpt_core.storage.tensor import StoredTensor


def table(architecture: Architecture) -> Table:
    """One row per parameter; the sentence is the parameter's axes."""
    return Table(
        rows=[
            row(name, " ".join(axis.name for axis in p.axes) or "()", name)
            for name, p in parameters(architecture).items()
        ]
    )


def indexed(path: str, index: str) -> tuple[dict[str, StoredTensor], list[FileState]]:
    """The tensors in the files that an index below the folder `path` names, beside it, and the states of these files."""
    index_file, files = os.path.join(path, index), []
    folder = os.path.dirname(index_file)
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(map(str, read_json_object(index_file).values()))):
        if os.path.basename(name) != name or not name.endswith(".safetensors"):
            raise FormatError("the index names a file outside the folder", file=index_file, found=name)
        files.append(FileState.of(os.path.join(folder, name)))
        tensors |= safetensors.read_header(os.path.join(folder, name)).tensors
    return tensors, files
