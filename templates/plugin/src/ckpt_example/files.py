"""`model.json` and `rank-0.safetensors`, `rank-1.safetensors`, ...: which file holds which rank's tensors."""

from __future__ import annotations

import json
import math
import os

from ckpt_core.sdk import (
    Architecture,
    Checkpoint,
    FormatError,
    ParameterBuilder,
    Placement,
    ReadRequest,
    Refusal,
    Shard,
    Sidecar,
    Target,
    WriteRequest,
    architecture_of,
    disk,
    documents,
    facts_of,
    layouts,
    original_of,
    rewrites,
    safetensors,
    storage_dtype,
)
from ckpt_example.config import EXAMPLE
from ckpt_example.weights import TABLES


def read_config(path: str) -> tuple[Architecture, dict[str, object]]:
    facts, notes = EXAMPLE.read(documents.read_json_object(path), path)
    return architecture_of(facts, path), notes


def read(path: str, request: ReadRequest) -> Checkpoint:
    """From headers alone: the assembler notes where every element lies, and reports all that is wrong at once."""
    config = os.path.join(path, "model.json")
    architecture, notes = read_config(config)
    ranks = documents.read_json_object(config).get("ranks")
    if type(ranks) is not int or ranks < 1:
        raise FormatError("key 'ranks' is not a number of ranks", file=config, found=repr(ranks))
    layout, states = layouts.BoundTables(TABLES, architecture), [disk.FileState.of(config)]
    assembler = ParameterBuilder(layout.parameters, path)
    for rank in range(ranks):
        file = os.path.join(path, f"rank-{rank}.safetensors")
        stored, natives = safetensors.read_header(file).tensors, layout.natives({"tp": (rank, ranks)})
        states.append(disk.FileState.of(file))
        for problem in layouts.account(natives, TABLES, stored, file):
            assembler.problems.add(problem)
        for name in natives.keys() & stored.keys():
            shard = Shard((0,) * len(stored[name].shape), stored[name])
            assembler.add(natives[name], [shard])
    own = {"model.json", "ckpt-receipt.json", *(f"rank-{rank}.safetensors" for rank in range(ranks))}
    found = {name: os.path.join(path, name) for name in sorted(set(os.listdir(path)) - own)}
    sidecars = {name: Sidecar(file, os.path.getsize(file)) for name, file in found.items() if os.path.isfile(file)}
    return original_of(
        Checkpoint("example", path, architecture, assembler.finish(), states, notes, sidecars, {"tp": ranks}), path
    )


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """Every byte but the weights' own: sizes, headers, and the place of each tensor."""
    ranks, tokens = request.tp or 1, checkpoint.architecture.tokens
    if tokens is None:
        raise Refusal("ExampleModel has no patches", fix="it reads tokens")
    model = rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors)
    model = rewrites.vocabulary_rows(model, math.ceil(tokens.vocabulary / ranks) * ranks)
    config = EXAMPLE.write(facts_of(model.architecture), checkpoint.notes) | {"ranks": ranks}
    layout, files, placements = layouts.BoundTables(TABLES, model.architecture), [], []
    for rank in range(ranks):
        file = f"rank-{rank}.safetensors"
        natives = layout.natives({"tp": (rank, ranks)})
        dtypes = {name: storage_dtype(native, model.tensors, request.dtype) for name, native in natives.items()}
        plan = safetensors.plan_file({name: (dtypes[name], native.shape) for name, native in natives.items()})
        files.append(disk.OutputFile(file, plan.size, ((0, plan.header),)))
        placements += [Placement(native, dtypes[name], file, plan.offsets[name]) for name, native in natives.items()]
    return Target(
        "example",
        model.architecture,
        model.tensors,
        files,
        placements,
        documents={"model.json": (json.dumps(config, indent=2) + "\n").encode()},
        sidecars=checkpoint.sidecars,
        parallel={"tp": ranks},
        decisions={"rewrites": list(model.rewrites)},
        said=EXAMPLE.said(config),
    )
