"""The files of the intermediate representation.

architecture.json  notes.json
tensors.index.json                       tensor -> file
tensors-00001-of-00002.safetensors ...   fp32, whole tensors, in the order of the forward pass
"""

from __future__ import annotations

import json
import os
from typing import Any

from ckpt_core.architecture import dumps, from_json
from ckpt_core.checkpoint import Checkpoint, Placement, Target
from ckpt_core.company.companions import files_below
from ckpt_core.description import Description, RankTensors
from ckpt_core.errors import CkptError, FormatError, Refusal
from ckpt_core.ir.weights import table
from ckpt_core.layout import BoundTables, Native
from ckpt_core.ledger import Ledger
from ckpt_core.plugins import ReadRequest, WriteRequest
from ckpt_core.sizes import parse_size
from ckpt_core.storage import safetensors
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.bytes.output import OutputFile
from ckpt_core.storage.documents import read_json, read_json_object
from ckpt_core.storage.dtypes import FP32
from ckpt_core.storage.tensor import StoredTensor

ARCHITECTURE, NOTES, INDEX = "architecture.json", "notes.json", "tensors.index.json"
_SIDECARS = "sidecars"


def looks_like(path: str) -> str | None:
    """The fact by which a folder is one of ours, or None. An `architecture.json` that is damaged may be ours."""
    if not all(os.path.isfile(os.path.join(path, name)) for name in (ARCHITECTURE, INDEX)):
        return None
    try:
        architecture = read_json(os.path.join(path, ARCHITECTURE))
    except (CkptError, OSError):
        architecture = {"schema": None}
    ours = isinstance(architecture, dict) and "schema" in architecture
    return f"{ARCHITECTURE} beside {INDEX}" if ours else None


def read(path: str, request: ReadRequest) -> Description:
    """What lies in a folder of ours."""
    if request.weights == "master":
        raise CkptError("the intermediate representation has no fp32 masters", file=path, fix="use --weights model")
    architecture_file, index_file = (os.path.join(path, name) for name in (ARCHITECTURE, INDEX))
    architecture = from_json(read_json_object(architecture_file), architecture_file)
    files = [FileState.of(architecture_file)]
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(map(str, read_json_object(index_file).values()))):
        if os.path.basename(name) != name or not name.endswith(".safetensors"):
            raise FormatError("the index names a file outside the folder", file=index_file, found=name)
        files.append(FileState.of(os.path.join(path, name)))
        tensors |= safetensors.read_header(os.path.join(path, name)).tensors
    notes = read_json_object(os.path.join(path, NOTES)) if os.path.isfile(os.path.join(path, NOTES)) else {}
    ledger = Ledger()
    ledger.used("where each tensor lies", index_file)
    ledger.carried("notes", os.path.join(path, NOTES), *notes)
    ledger.carried("notes", os.path.join(path, NOTES))
    return Description(
        architecture=architecture,
        tables=[table(architecture)],
        ranks=[RankTensors({}, tensors, path)],
        where=path,
        files=files,
        config=architecture_file,
        notes=notes,
        sidecars=files_below(os.path.join(path, _SIDECARS)),
        ledger=ledger,
    )


def notes_in(path: str) -> dict[str, Any] | None:
    """The notes beside an `architecture.json`; None if the file is none."""
    beside = os.path.join(os.path.dirname(path), NOTES)
    if os.path.basename(path) != ARCHITECTURE:
        return None
    return read_json_object(beside) if os.path.isfile(beside) else {}


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """A folder of ours: always float32, unless another dtype is asked for."""
    dtype = request.dtype or FP32
    if checkpoint.architecture.tokens is None and not checkpoint.tensors:
        raise Refusal("there is nothing to write")
    limit = parse_size(str(request.options.get("max_shard_size") or "5GB"))
    natives = list(BoundTables([table(checkpoint.architecture)], checkpoint.architecture).natives().values())
    groups: list[list[Native]] = [[]]
    size = 0
    for native in natives:
        bytes_ = dtype.size * checkpoint.tensors[native.name].parameter.elements
        if groups[-1] and size + bytes_ > limit:
            groups.append([])
            size = 0
        groups[-1].append(native)
        size += bytes_
    files: list[OutputFile] = []
    placements: list[Placement] = []
    index: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = f"tensors-{number:05d}-of-{len(groups):05d}.safetensors"
        plan = safetensors.plan_file({native.name: (dtype, native.shape) for native in group}, {})
        files.append(OutputFile(name, plan.size, ((0, plan.header),)))
        placements += [Placement(native, dtype, name, plan.offsets[native.name]) for native in group]
        index |= {native.name: name for native in group}
    documents = {
        INDEX: (json.dumps(index, indent=1) + "\n").encode(),
        NOTES: (json.dumps(checkpoint.notes, indent=1) + "\n").encode(),
        ARCHITECTURE: dumps(checkpoint.architecture).encode(),
    }
    sidecars = {f"{_SIDECARS}/{path}": sidecar for path, sidecar in checkpoint.sidecars.items()}
    return Target(
        "ir",
        checkpoint.architecture,
        checkpoint.tensors,
        files,
        placements,
        documents,
        sidecars,
        said=checkpoint.notes,
    )
