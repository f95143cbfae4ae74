"""A format for tests: `architecture.json` beside `toy.safetensors`, which holds the canonical tensors as they are."""

from __future__ import annotations

import os

import numpy as np

from ckpt_core.architecture import dumps, from_json, parameters
from ckpt_core.checkpoint import Checkpoint, Loss, OutputFile, Placement, Sidecar, Target
from ckpt_core.errors import Refusal
from ckpt_core.layout import Link, Native, Part, Tile, row
from ckpt_core.plugins import FormatInfo, Option, hookimpl
from ckpt_core.plugins.judgement import Judgement
from ckpt_core.rewrite import Rewritable, untied_head
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.documents import read_json_object
from ckpt_core.storage.dtypes import decode
from ckpt_core.storage.safetensors import plan_file, read_header
from ckpt_core.tensors.assembly import ParameterBuilder, Shard, SourceFiles

FILE = "toy.safetensors"


@hookimpl
def ckpt_info():
    options = (
        Option("untie", "write the head out", bool, False, "write"),
        Option("refuse", "refuse to write", bool, False, "write"),
        Option("crash", "fail in a way that nobody foresaw", bool, False),
        Option("max_shard_size", "bytes per file", int, None, "write"),
        Option("flavour", "changes nothing", ("sweet", "sour"), "sweet", "read"),
    )
    return FormatInfo("toy", "a format for tests", families=("tiny",), options=options, parallel=("tp",))


@hookimpl
def ckpt_detect(path):
    return f"{FILE} beside architecture.json" if os.path.isfile(os.path.join(path, FILE)) else None


@hookimpl
def ckpt_architecture(path):
    return from_json(read_json_object(path), path)


def natives(architecture):
    for name, parameter in parameters(architecture).items():
        links = tuple(Link(size, axis, 1, axis, 1) for axis, size in enumerate(parameter.shape))
        zeros = (0,) * len(parameter.shape)
        yield Native(name, parameter.shape, (Part(name, Tile(links, zeros, zeros)),), row(name, "x", name))


@hookimpl
def ckpt_read(path, request):
    if request.options["crash"]:
        raise ZeroDivisionError("on purpose")
    architecture = from_json(read_json_object(os.path.join(path, "architecture.json")))
    file = os.path.join(path, FILE)
    stored = read_header(file).tensors
    assembler = ParameterBuilder(parameters(architecture), file)
    for native in natives(architecture):
        tensor = stored[native.name]
        assembler.add(native, [Shard((0,) * len(tensor.shape), tensor)])
    tokenizer = os.path.join(path, "tokenizer.json")
    sidecars = {"tokenizer.json": Sidecar(tokenizer, os.path.getsize(tokenizer))} if os.path.exists(tokenizer) else {}
    return Checkpoint(
        "toy", path, architecture, assembler.finish(), [FileState.of(file)], {"eos": 2}, sidecars, {"tp": 1}
    )


@hookimpl
def ckpt_write(checkpoint, request):
    if request.options["refuse"]:
        raise Refusal("toy holds nothing today", fix="ask tomorrow")
    if request.options["crash"]:
        raise OSError(28, "No space left on device", "/full")
    model = Rewritable(checkpoint.architecture, checkpoint.tensors)
    model = untied_head(model) if request.options["untie"] else model
    placed = {
        native.name: (request.dtype or model.tensors[native.name].dtype, native)
        for native in natives(model.architecture)
    }
    plan = plan_file({name: (dtype, native.shape) for name, (dtype, native) in placed.items()})
    placements = [Placement(native, dtype, FILE, plan.offsets[name]) for name, (dtype, native) in placed.items()]
    return Target(
        "toy",
        model.architecture,
        model.tensors,
        [OutputFile(FILE, plan.size, ((0, plan.header),))],
        placements,
        {"architecture.json": dumps(model.architecture).encode()},
        checkpoint.sidecars,
        {"tp": 1},
        {"rewrites": list(model.rewrites)},
        [Loss("dropped", "nothing much", "a test of losses")],
    )


@hookimpl
def ckpt_logits(checkpoint, inputs):
    """Not a model at all, but logits: each embedding against all others."""
    engine = os.environ.get("TOY_ENGINE")
    if not engine:
        return None
    if engine == "broken":
        raise ZeroDivisionError("on purpose")
    if engine != "1":
        return Judgement("toytorch 7.1", **{engine: "for want of toys"})
    source = SourceFiles(checkpoint.files)
    assembly = checkpoint.tensors["embedding.tokens.weight"]
    table = decode(source.read(assembly, tuple((0, size) for size in assembly.parameter.shape)), assembly.value_dtype)
    source.close()
    return Judgement("toytorch 7.1", logits=np.asarray(table[inputs["tokens"]] @ table.T, np.float32))
