"""Reading GGUF files: metadata, tensors, and the tokenizer."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ckpt_core.sdk import (
    CkptError,
    Description,
    FormatError,
    RankTensors,
    ReadRequest,
    StoredTensor,
    architecture_of,
    company,
    disk,
    dtypes,
    errors,
    ledgers,
    reading,
    values,
)
from ckpt_gguf.architectures import model_of
from ckpt_gguf.blocks import numbers_of
from ckpt_gguf.config import Model, is_tensor
from ckpt_gguf.container import Entry, single
from ckpt_gguf.contents import GENERAL, TOKENIZER
from ckpt_gguf.files import Files, read_files
from ckpt_gguf.kinds import PLAIN
from ckpt_gguf.rotary import STRETCHING
from ckpt_gguf.tokenizer import told_by

_TOKENS = "tokenizer.ggml.tokens"
_MOST_ANGLES = 1 << 16
# What the model is not computed with, and is carried as it is: its least value.
_WHOLE = {
    "context_length": 1,
    **{f"tokenizer.ggml.{name}_token_id": 0 for name in ("bos", "eos", "padding")},
}
_ONE_ROW, _VECTOR = ".ffn_gate_inp_shexp.weight", ".exp_probs_b.bias"
"""Tensors that have one row in some files, and are vectors in others: the first is read as a row, the second as a vector."""


def read(path: str, request: ReadRequest) -> Description:
    """What lies in a GGUF file, in its parts, or in the folder that holds them."""
    if request.weights == "master":
        raise errors.NotCarried("GGUF has no fp32 masters", file=path, fix="use --weights model")
    files = read_files(path)
    ledger = ledgers.Ledger()
    metadata = reading.without_ignored(files.metadata, request, ledger, files.first)
    model = model_of(metadata, files.first)
    config = config_in(files, metadata, model)
    facts, notes = model.config.read(config, files.first)
    prefix = f"{model.architecture}."
    fates = model.config.fates(config)
    said = {key: fate for key, fate in fates.items() if key.startswith("tokenizer.")}
    said |= {prefix + key: fate for key, fate in fates.items() if prefix + key in metadata}
    ledger.config(files.first, said)
    rest = {key: value for key, value in metadata.items() if not key.startswith((prefix, "tokenizer."))}
    ledger.contents(files.first, rest, GENERAL)
    for header in files.headers:
        ledger.used("weights", header.state.path)
    told = told_by(metadata, files.headers[0].places, files.first)
    beside = companions(path)
    carried = [] if company.has_tokenizer(beside) else told.keys
    ledger.carried("tokenizer", files.first, *carried)
    left = [key for key in metadata if key.startswith("tokenizer.") and key not in said and key not in carried]
    if left:
        ledger.left(TOKENIZER, files.first, *left)
    single = any(fnmatch.fnmatchcase(name, "blk.*.ffn_gate.*.weight") for name in files.tensors)
    choices = {"experts": "single" if single else "stacked"} if model.experts else {}
    tensors = {name: stored(entry) for name, entry in files.tensors.items()} | dict(
        listed(files, model, facts["layers"])
    )
    return Description(
        architecture=architecture_of(facts, files.first),
        tables=model.tables,
        choices=choices,
        ranks=[RankTensors({}, tensors, files.first)],
        where=os.path.dirname(files.first),
        root=path,
        files=files.states,
        config=files.first,
        notes=notes,
        sidecars={**({} if company.has_tokenizer(beside) else told.files), **beside},
        ledger=ledger,
        hints={"name": str(metadata["general.name"])} if "general.name" in metadata else {},
        origins={"hf": {"model_type": model.of[0]}},
        losses=[] if company.has_tokenizer(beside) else told.losses,
        evidence=[f"{model.config.name} by general.architecture = {model.architecture!r}"],
    )


def config_in(files: Files, metadata: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """What the metadata says of the model, as the config of its architecture has it; see `ckpt_gguf.config`."""
    prefix = f"{model.architecture}."
    config = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    config |= {key: metadata[key] for key in model.config.keys if key.startswith("tokenizer.") and key in metadata}
    for key in model.config.keys:
        if key in STRETCHING:
            if key in files.tensors:
                config[key] = _numbers(files.tensors[key])
        elif key.startswith("blk.") and key.endswith("?"):
            layers = range(values.checked("block_count", config.get("block_count"), values.layers))
            config[key] = [int(key[:-1].replace("*", str(layer)) in files.tensors) for layer in layers]
        elif is_tensor(key):
            config[key] = bool(fnmatch.filter(files.tensors, key))
    for key in _WHOLE:
        if key in config and (type(config[key]) is not int or config[key] < _WHOLE[key]):
            raise FormatError(
                f"key {key!r} is not a whole number from {_WHOLE[key]} on",
                file=files.first,
                found=repr(config[key])[:60],
            )
    if "vocab_size" not in config and "token_embd.weight" in files.tensors:
        config["vocab_size"] = files.tensors["token_embd.weight"].shape[0]
    tokens = metadata.get(_TOKENS)
    if isinstance(tokens, list) and len(tokens) != config.get("vocab_size"):
        raise FormatError(
            f"{_TOKENS} has not one token for each row of the embedding",
            file=files.first,
            found=len(tokens),
            expected=config.get("vocab_size"),
        )
    return config


def _numbers(entry: Entry) -> list[float]:
    """The numbers of a small float32 tensor."""
    if entry.kind.name != "F32" or len(entry.shape) != 1 or entry.shape[0] > _MOST_ANGLES:
        raise CkptError(
            f"{entry.name} is not a list of float32 numbers", file=entry.file, found=f"{entry.kind} {entry.shape}"
        )
    return [single(value) for value in np.frombuffer(disk.read_range(entry.file, entry.offset, entry.size), "<f4")]


def stored(entry: Entry) -> StoredTensor:
    """A tensor of a file, as the tables take it: its elements, or numbers that are computed of its blocks."""
    plain, shape = PLAIN.get(entry.kind.name), entry.shape
    if entry.name.endswith(_ONE_ROW) and len(shape) == 1:
        shape = (1, *shape)
    if entry.name.endswith(_VECTOR) and len(shape) == 2 and shape[0] == 1:
        shape = shape[1:]
    if plain is not None:
        return StoredTensor.contiguous(entry.file, plain, shape, entry.offset)
    return numbers_of(entry.kind, entry.name, shape, entry.file, entry.offset)


def listed(files: Files, model: Model, layers: int) -> Iterator[tuple[str, StoredTensor]]:
    """The parameters that lie in lists of the metadata, one number per layer."""
    header = files.headers[0]
    for key, shape in model.listed.items():
        numbers = header.metadata.get(key)
        if key not in header.lists or not isinstance(numbers, list) or len(numbers) != layers:
            expected = f"{layers} float32 numbers, one per layer"
            raise FormatError(
                f"key {key!r} is no list of parameters", file=files.first, found=str(numbers)[:60], expected=expected
            )
        for layer in range(layers):
            place = header.lists[key] + 4 * layer
            yield f"blk.{layer}.{key}", StoredTensor.contiguous(files.first, dtypes.FP32, shape, place)


def companions(path: str) -> dict[str, company.Sidecar]:
    """The files beside the model, where a folder of it was given."""
    return company.files_in(path, company.is_companion) if os.path.isdir(path) else {}
