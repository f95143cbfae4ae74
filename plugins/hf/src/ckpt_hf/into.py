"""A trained language model back in the model that sees from which it was taken: `-o into=FOLDER`.

What is written has the files of FOLDER, and differs from them in nothing but the elements of the language model: each lies where it
lies in FOLDER, in the dtype that it has there. All other bytes are copied: headers, index, config, tower, projector, tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from ckpt_core.sdk import (
    Checkpoint,
    CkptError,
    ReadRequest,
    Refusal,
    StoredTensor,
    Target,
    TargetBuilder,
    WriteRequest,
    company,
    disk,
    dtypes,
    errors,
    facts_of,
    layouts,
    ledgers,
    reading,
    schema,
)
from ckpt_hf.files import CONFIG, SAFETENSORS, sidecars
from ckpt_hf.options import PART
from ckpt_hf.quantised.said import HINT
from ckpt_hf.read import read
from ckpt_hf.sets import chosen_set
from ckpt_hf.write import Fit, choose, losses_of

INTO = "into"
"""The option that names the folder."""

_READING = ReadRequest({PART.name: "language"})
# What else can be asked of a writer of HF folders, and FOLDER decides.
_DECIDED: dict[str, object] = {
    "container": "safetensors",
    "max_shard_size": "5GB",
    "hf_class": None,
    "image_size": None,
    "fold_layer_scale": False,
    "headless": False,
    "quantise": "none",
    "quantised": "dequantise",
}
_MOST_NAMED = 4


def written_into(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The files of the folder that `into` names, with the language model of `checkpoint`.

    Raises `Refusal` that names the facts in which that folder's language model is another one, or the dtype in which values would be
    rounded unasked, and `CkptError` where the folder does not hold a model that sees.
    """
    given = str(request.options[INTO])
    folder = disk.absolute(given)
    _check_request(folder, request)
    description = read(folder, _READING)
    own = reading.checkpoint_of(description, "hf", folder, _READING)
    if HINT in description.hints:
        raise Refusal(
            f"the folder of -o {INTO} is quantised: its elements are codes, and not the weights themselves",
            file=folder,
            fix="give the folder that it was quantised from, and quantise what is written",
        )
    tensors = _stored(folder)
    fit = _fitting(checkpoint, own, str(description.hints["model_type"]), folder)
    builder = TargetBuilder(fit.model, description.tables)
    natives = {name: native for name, native in builder.natives().items() if name in tensors}
    _check_dtypes(builder, natives, tensors, request.dtype, folder)
    for path in sorted({tensor.file for tensor in tensors.values()}):
        _add_file(builder, path, {name: tensors[name] for name in natives if tensors[name].file == path}, natives)
    carried = _carried(folder)
    held, others = _companions(checkpoint, carried)
    beside = sum(tensor.elements * tensor.dtype.size for name, tensor in tensors.items() if name not in natives)
    target = builder.target(
        "hf",
        sidecars=carried,
        decisions={
            INTO: given,
            "carried": f"{errors.plural(len(tensors) - len(natives), 'tensor')}, {beside:,} bytes, as they are there",
        },
        losses=[*losses_of(checkpoint, fit), *others, *_left(folder, carried, tensors)],
        said=own.notes,
        held=held,
    )
    target.named = (folder,)
    return target


def _check_request(folder: str, request: WriteRequest) -> None:
    if not os.path.isdir(folder):
        raise CkptError("there is no such folder", file=folder, fix=f"-o {INTO}= names the folder of a model that sees")
    place, real = os.path.realpath(request.destination), os.path.realpath(folder)
    if place == real or place.startswith(real + os.sep) or real.startswith(place + os.sep):
        raise errors.UsageError(
            f"the destination and the folder of -o {INTO} are one, or one lies in the other",
            file=request.destination,
            found=folder,
            fix="choose another destination: that folder stays as it is",
        )
    given = [name for name, usual in _DECIDED.items() if (request.options.get(name) or usual) != usual]
    if given:
        raise errors.UsageError(
            f"-o {INTO} writes the files of a folder as they are there, which leaves nothing to choose",
            found=", ".join(f"{name}={request.options[name]}" for name in given),
            fix="leave out the other options",
        )


def _stored(folder: str) -> dict[str, StoredTensor]:
    """Every tensor of the folder's weights, by name."""
    weights = chosen_set(folder)
    if weights.suffix != SAFETENSORS.suffix:
        raise CkptError(
            f"-o {INTO} needs weights in safetensors, whose headers hold no checksum of the data",
            file=folder,
            found=str(weights),
            fix="save the model with transformers anew, and give that folder",
        )
    found: dict[str, StoredTensor] = {}
    for name in weights.files:
        found |= SAFETENSORS.container.read(os.path.join(folder, name)).tensors
    return found


def _fitting(checkpoint: Checkpoint, own: Checkpoint, model_type: str, folder: str) -> Fit:
    """The language model as the class of the folder's own holds it, which must be the same model."""
    two = facts_of(own.architecture)
    try:
        fit = choose(checkpoint, model_type)
        one = facts_of(fit.model.architecture)
    except (
        Refusal,
        errors.ProblemsFound,
    ):  # this names what a class lacks, and not the folder, whose model may be another one in the first place
        one = facts_of(checkpoint.architecture)
        if not schema.differing(one, two):
            raise
    apart = schema.differing(one, two)
    if not apart:
        return fit
    fix = "give the folder from which this language model was taken"
    if all(path.startswith("tokens.") for path in apart) and one["tokens.vocabulary"] > two["tokens.vocabulary"]:
        fix = f"if the rows beyond are padding, read it with the true vocabulary, by --config or -o vocab={two['tokens.vocabulary']}"
    elif any(path.startswith("predictors.") for path in apart):
        fix = "leave the layers that predict further tokens out with -o predictors=drop"
    raise Refusal(
        "the language model of that folder is another one",
        file=folder,
        found=errors.Lines([f"{path} = {one.get(path)}, and {two.get(path)} there" for path in apart]),
        fix=fix,
        fact=tuple(apart),
    )


def _check_dtypes(
    builder: TargetBuilder,
    natives: Mapping[str, layouts.Native],
    tensors: Mapping[str, StoredTensor],
    asked: dtypes.DType | None,
    folder: str,
) -> None:
    """Refuse values that the folder's dtypes would round, unless its usual one is asked for, and any other one that is asked for."""
    usual = dtypes.commonest([tensors[name].dtype for name in natives])
    if asked is not None and asked != usual:
        raise Refusal(
            f"the language model of that folder is in {usual}, and its config says so",
            file=folder,
            found=f"--dtype {asked}",
            fix=f"use --dtype {usual}",
        )
    kinds = {name: (builder.dtype_of(native), tensors[name].dtype) for name, native in natives.items()}
    rounded = [name for name, (ours, theirs) in kinds.items() if ours not in (theirs, *_NARROWER.get(theirs.name, ()))]
    if rounded and asked is None:
        ours, theirs = kinds[rounded[0]]
        raise Refusal(
            f"{errors.plural(len(rounded), 'tensor')} would be rounded, which the folder has in a dtype that does not hold their values",
            file=folder,
            found=f"{rounded[0]}: {ours}, and {theirs} there",
            fix=f"if that is meant, say --dtype {usual}",
        )


# What holds all values of which others.
_NARROWER = {"fp64": (dtypes.FP32, dtypes.BF16, dtypes.FP16), "fp32": (dtypes.BF16, dtypes.FP16)}


def _add_file(
    builder: TargetBuilder, path: str, tensors: Mapping[str, StoredTensor], natives: Mapping[str, layouts.Native]
) -> None:
    """The file at `path` once more, with other elements of `tensors`."""
    name, size, end = os.path.basename(path), os.path.getsize(path), 0
    excerpts = []
    for native, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset > end:
            excerpts.append(disk.Excerpt(end, path, end, tensor.offset - end))
        builder.place(natives[native], name, tensor.offset, tensor.dtype)
        end = tensor.offset + tensor.elements * tensor.dtype.size
    if size > end:
        excerpts.append(disk.Excerpt(end, path, end, size - end))
    builder.files.append(disk.OutputFile(name, size, excerpts=tuple(excerpts)))


def _carried(folder: str) -> dict[str, company.Sidecar]:
    """The files of a folder that are copied whole: all but the weights."""
    index = chosen_set(folder).index
    whole = [os.path.join(folder, name) for name in (CONFIG, index) if name]
    return sidecars(folder) | {os.path.basename(path): company.Sidecar(path, os.path.getsize(path)) for path in whole}


def _companions(checkpoint: Checkpoint, carried: Mapping[str, company.Sidecar]) -> tuple[set[str], list[ledgers.Loss]]:
    """The companions of a checkpoint that the folder has just so, and the others, which give way to the folder's."""
    held = {name for name, file in checkpoint.sidecars.items() if name in carried and _same(file, carried[name])}
    others = sorted(checkpoint.sidecars.keys() - held)
    why = f"the folder that -o {INTO} names has companions of its own, which are written"
    return held, [ledgers.Loss("dropped", ", ".join(others), why)] if others else []


def _same(one: company.Sidecar, two: company.Sidecar) -> bool:
    if one.size != two.size:
        return False
    return all(left == right for left, right in zip(one.extent.pieces(), two.extent.pieces(), strict=True))


def _left(
    folder: str, carried: Mapping[str, company.Sidecar], tensors: Mapping[str, StoredTensor]
) -> Iterator[ledgers.Loss]:
    """What else lies in the folder: weights under other names, folders, hidden files and our own receipt."""
    written = {os.path.basename(tensor.file) for tensor in tensors.values()} | {
        name.partition("/")[0] for name in carried
    }
    others = sorted(name for name in os.listdir(folder) if name not in written)
    if others:
        yield ledgers.Loss(
            "dropped",
            f"of that folder: {_some(others)}",
            f"neither the model that is read where -o {INTO} points, nor its companions",
        )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")
