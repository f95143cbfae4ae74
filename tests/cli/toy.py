"""A format for tests: `architecture.json` beside `toy.safetensors`, which holds the canonical tensors as they are."""

from __future__ import annotations

import os

import numpy as np

from ckpt_core.architecture import dumps, from_json
from ckpt_core.checkpoint import Loss, Sidecar
from ckpt_core.description import Description, RankTensors
from ckpt_core.errors import Refusal
from ckpt_core.ir.weights import table
from ckpt_core.plugins.hookspecs import hookimpl
from ckpt_core.plugins.judgement import Judgement
from ckpt_core.plugins.request import FormatInfo, Option
from ckpt_core.rewrite import Rewritable, untied_head
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.documents import read_json_object
from ckpt_core.storage.dtypes import decode
from ckpt_core.storage.safetensors import read_header
from ckpt_core.tensors.source import SourceFiles
from ckpt_core.writing import TargetBuilder

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
    return FormatInfo(
        "toy",
        "a format for tests",
        families=("tiny",),
        options=options,
        parallel=("tp",),
        called=("plaything", "play-thing"),
    )


@hookimpl
def ckpt_detect(path):
    return f"{FILE} beside architecture.json" if os.path.isfile(os.path.join(path, FILE)) else None


@hookimpl
def ckpt_architecture(path):
    return from_json(read_json_object(path), path)


@hookimpl
def ckpt_read(path, request):
    if request.options["crash"]:
        raise ZeroDivisionError("on purpose")
    architecture = from_json(read_json_object(os.path.join(path, "architecture.json")))
    file = os.path.join(path, FILE)
    tokenizer = os.path.join(path, "tokenizer.json")
    sidecars = {"tokenizer.json": Sidecar(tokenizer, os.path.getsize(tokenizer))} if os.path.exists(tokenizer) else {}
    return Description(
        architecture=architecture,
        tables=[table(architecture)],
        ranks=[RankTensors({}, read_header(file).tensors, file)],
        where=path,
        files=[FileState.of(file)],
        notes={"eos": 2},
        sidecars=sidecars,
        parallel={"tp": 1},
    )


@hookimpl
def ckpt_write(checkpoint, request):
    if request.options["refuse"]:
        raise Refusal("toy holds nothing today", fix="ask tomorrow")
    if request.options["crash"]:
        raise OSError(28, "No space left on device", "/full")
    model = Rewritable(checkpoint.architecture, checkpoint.tensors)
    model = untied_head(model) if request.options["untie"] else model
    builder = TargetBuilder(model, [table(model.architecture)], request.dtype)
    builder.add_file(FILE, builder.natives())
    builder.documents["architecture.json"] = dumps(model.architecture).encode()
    losses = [Loss("dropped", "nothing much", "a test of losses")]
    return builder.target("toy", sidecars=checkpoint.sidecars, parallel={"tp": 1}, losses=losses)


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
