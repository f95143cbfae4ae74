"""The files of the intermediate representation.

architecture.json  notes.json
tensors.index.json                       tensor -> file
tensors-00001-of-00002.safetensors ...   fp32, whole tensors, in the order of the forward pass

With the state of a training, see `ir.training`:

training/training.json
training/tensors.index.json
training/tensors-00001-of-00002.safetensors ...  optimizer.exp_avg/..., optimizer.exp_avg_sq/..., and optimizer.master/... where the weights are not the masters
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ckpt_core.architecture import dumps, from_json
from ckpt_core.checkpoint import Checkpoint, Target
from ckpt_core.company.companions import files_below
from ckpt_core.description import Description, RankTensors
from ckpt_core.errors import NotCarried, Refusal
from ckpt_core.ir.places import ARCHITECTURE, INDEX, NOTES
from ckpt_core.ir.training import FOLDER, TRAINING, TRAINING_INDEX, enter_left, training_in
from ckpt_core.ir.weights import indexed, table
from ckpt_core.layout import Native
from ckpt_core.ledger import Ledger
from ckpt_core.plugins.request import ReadRequest, WriteRequest
from ckpt_core.rewrite import Rewritable
from ckpt_core.sizes import parse_size
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.documents import read_json_object
from ckpt_core.storage.dtypes import FP32
from ckpt_core.training import SAID, named, to_json
from ckpt_core.writing import TargetBuilder

_SIDECARS = "sidecars"


def read(path: str, request: ReadRequest) -> Description:
    """What lies in a folder of ours."""
    if request.weights == "master":
        raise NotCarried("the intermediate representation has no fp32 masters", file=path, fix="use --weights model")
    architecture_file, index_file = (os.path.join(path, name) for name in (ARCHITECTURE, INDEX))
    architecture = from_json(read_json_object(architecture_file), architecture_file)
    tensors, shards = indexed(path, INDEX)
    files = [FileState.of(architecture_file), *shards]
    notes = read_json_object(os.path.join(path, NOTES)) if os.path.isfile(os.path.join(path, NOTES)) else {}
    ledger = Ledger()
    ledger.used("where each tensor lies", index_file)
    ledger.carried("notes", os.path.join(path, NOTES), *notes)
    ledger.carried("notes", os.path.join(path, NOTES))
    enter_left(ledger, path)
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
        training=lambda: training_in(path),
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
    model = Rewritable(checkpoint.architecture, checkpoint.tensors)
    builder = TargetBuilder(model, [table(checkpoint.architecture)], dtype, trained=checkpoint)
    builder.documents[INDEX] = _add_shards(builder, "tensors", builder.natives().values(), limit)
    builder.documents[NOTES] = (json.dumps(checkpoint.notes, indent=1) + "\n").encode()
    builder.documents[ARCHITECTURE] = dumps(checkpoint.architecture).encode()
    if builder.training is not None:
        moments = [
            replace(native, name=named(kind, native.name))
            for kind in builder.training.kinds
            for native in builder.moments(kind, builder.natives()).values()
        ]
        builder.documents[TRAINING_INDEX] = _add_shards(builder, f"{FOLDER}/tensors", moments, limit)
        builder.documents[TRAINING] = (json.dumps(to_json(builder.training), indent=1) + "\n").encode()
    sidecars = {f"{_SIDECARS}/{path}": sidecar for path, sidecar in checkpoint.sidecars.items()}
    target = builder.target("ir", sidecars=sidecars, said=checkpoint.notes, says=SAID)
    return replace(target, decisions={})


def _add_shards(builder: TargetBuilder, stem: str, natives: Iterable[Native], limit: int) -> bytes:
    """Files of at most `limit` bytes of tensors each, and the index that says which of them holds each tensor."""
    groups: list[list[Native]] = [[]]
    size = 0
    for native in natives:
        bytes_ = builder.bytes_of(native)
        if groups[-1] and size + bytes_ > limit:
            groups.append([])
            size = 0
        groups[-1].append(native)
        size += bytes_
    index: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors"
        builder.add_file(
            name, {native.name: native for native in group}, metadata={}
        )  # as every file of this format has it
        index |= {native.name: os.path.basename(name) for native in group}
    return (json.dumps(index, indent=1) + "\n").encode()
