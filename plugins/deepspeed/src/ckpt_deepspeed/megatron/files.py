"""The files of Megatron-DeepSpeed's pipeline module, and the names of the tables for what is in them.

    layer_01-model_TT    embedding, its norm, learned positions; also tied_modules.embed.* in optimizer files
    layer_03 ...         the transformer layers, at place 3 and on in the list of pipeline layers (0 and 2 are functions)
    layer_(4 + layers)   the final norm, whose tensors are called `weight` and `bias`
    mp_rank_MM           args, steps, random states, `param_shapes`; no weights

The list does not depend on pipeline ranks. The head is the embedding, and no file holds it again; but the last pipeline
stage has a copy of it in its optimizer.

Beside the folders of the steps we keep `tokenizer/`, which --tokenizer-name-or-path can name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any

from ckpt_core.sdk import Architecture, CkptError, FormatError, StoredTensor, errors, schema, torch_files
from ckpt_deepspeed import zero
from ckpt_deepspeed.contents import STATES
from ckpt_deepspeed.files import Folder, ranks, read_states, section
from ckpt_deepspeed.flat import Flat, Kept
from ckpt_deepspeed.megatron.config import GPT
from ckpt_deepspeed.megatron.weights import is_divided
from ckpt_deepspeed.universal import read_universal
from ckpt_megatron.sdk import stored_args

EMBEDDING, FIRST_LAYER, BEHIND = (
    1,
    3,
    4,
)  # places in the list of pipeline layers; the last one counts from the layers' end
TIED = "tied_modules.embed."
_PLACE = re.compile(r"(\d+)\.(.+)")
_LAYERS = "layers."
TOKENIZER = "tokenizer"


def native_name(place: int, name: str, layers: int) -> str:
    """What the tables call tensor `name` at a place in the list of pipeline layers.

    >>> native_name(5, "mlp.dense_4h_to_h.bias", 3)
    'layers.2.mlp.dense_4h_to_h.bias'
    """
    if place == EMBEDDING:
        return f"embed.{name}"
    if place == layers + BEHIND:
        return f"final_norm.{name}"
    if FIRST_LAYER <= place < FIRST_LAYER + layers:
        return f"{_LAYERS}{place - FIRST_LAYER}.{name}"
    return f"{place}.{name}"


def of_parameter(name: str, layers: int) -> str:
    """What the tables call a parameter of the pipeline module.

    >>> of_parameter("tied_modules.embed.word_embeddings.weight", 3), of_parameter("7.bias", 3)
    ('embed.word_embeddings.weight', 'final_norm.bias')
    """
    if name.startswith(TIED):
        return native_name(EMBEDDING, name.removeprefix(TIED), layers)
    match = _PLACE.fullmatch(name)
    return native_name(int(match[1]), match[2], layers) if match else name


def place_of(native: str, layers: int) -> tuple[int, str]:
    """The place in the list of pipeline layers of a tensor of the tables, and its name there."""
    first, _, rest = native.partition(".")
    if first == "embed":
        return EMBEDDING, rest
    if first == "final_norm":
        return layers + BEHIND, rest
    number, _, name = rest.partition(".")
    return FIRST_LAYER + int(number), name


def parameter_name(native: str, layers: int) -> str:
    """What the pipeline module calls a tensor of the tables: the inverse of `of_parameter`."""
    place, name = place_of(native, layers)
    return TIED + name if place == EMBEDDING else f"{place}.{name}"


@schema.dataclass
class StepContents:
    """What a folder holds. `weights` and `masters` are per tensor parallel rank, by the names of the tables.

    A universal checkpoint has one entry, `merged` over `tp` ranks. `copies` are masters that the last pipeline stage
    holds once more.
    """

    folder: str
    args: dict[str, Any] | None
    args_file: str
    tp: int
    pp: int
    dp: int
    layers: int
    version: float = 3.0
    merged: bool = False
    weights: list[dict[str, Kept]] = field(default_factory=list)
    masters: list[dict[str, Kept]] = field(default_factory=list)
    copies: list[dict[str, Kept]] = field(default_factory=list)
    by: str = ""
    has_masters: bool = False


def read_folder(folder: Folder, weights: str, given: Architecture | None) -> StepContents:
    """Everything in a step's folder, from headers alone. `weights` is auto, model or master; `given` is of `--config`."""
    models = [(path, read_states(path)) for _, path in sorted(folder.models.items())]
    ranks(set(folder.models), "model parallel rank", folder.path)
    for file, states in models:
        folder.ledger.contents(file, states, STATES)
    path, first = models[0]
    args = _args(first, path)
    step = StepContents(
        folder.path, args, path, *_grid(folder, models, args), layers=_layers(folder, args, given, path)
    )
    version = first.get("checkpoint_version", 3.0)
    step.version = float(version) if isinstance(version, int | float) else 3.0
    _check_same_model(models)
    if folder.universal:
        step.merged = step.has_masters = True
        masters = read_universal(folder, (), {})
        step.masters = [{of_parameter(name, step.layers): kept for name, kept in masters.items()}]
        if weights == "model" or folder.layers:
            raise CkptError(
                "a universal checkpoint holds the fp32 parameters alone",
                file=folder.path,
                fix="use --weights master, or read the step's own folder",
            )
        return step
    step.weights = _layer_files(folder, step)
    step.has_masters = bool(folder.optimizers)
    if weights == "master" and folder.optimizers:
        _read_masters(folder, models, step)
    return step


def _args(states: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """The attributes of the stored Namespace, with the true vocabulary that `checkpoint_info` says."""
    args = stored_args(states.get("args"), path)
    if args is None:
        return None
    info = section(states, "checkpoint_info", path)
    if info.get("padded_vocab_size", args.get("padded_vocab_size")) != args.get("padded_vocab_size"):
        raise FormatError(
            "checkpoint_info and args disagree",
            file=path,
            found=f"padded_vocab_size {torch_files.brief(info['padded_vocab_size'])} and {torch_files.brief(args.get('padded_vocab_size'))}",
        )
    if info.get("original_vocab_size") is not None:
        args["original_vocab_size"] = info["original_vocab_size"]
    return args


def _grid(
    folder: Folder, models: Sequence[tuple[str, Mapping[str, Any]]], args: Mapping[str, Any] | None
) -> tuple[int, int, int]:
    """Tensor, pipeline and data parallel ranks; raises where files, args and states tell different stories."""
    said = (args or {}).get("tensor_model_parallel_size", 1)
    tp = ranks({rank for _, rank in folder.layers}, "tensor parallel rank", folder.path) if folder.layers else said
    problems = errors.Problems(f"reading {folder.path}")
    if type(said) is not int or said < 1 or (args is not None and said != tp):
        problems.add(
            FormatError(
                f"args.tensor_model_parallel_size is {torch_files.brief(said)}",
                file=models[0][0],
                expected=f"{tp}, by the layer files",
                fix="files are missing, or stale",
            )
        )
        problems.raise_any()
    pp = len(models) // tp
    stages = (args or {}).get("pipeline_model_parallel_size", pp)
    if pp * tp != len(models) or stages != pp:
        problems.add(
            FormatError(
                f"there are {len(models)} mp_rank files",
                file=folder.path,
                expected=f"tp={tp} times pp={torch_files.brief(stages)}",
                fix="files are missing, or stale",
            )
        )
    for path, states in models:
        size = states.get("mp_world_size", len(models))
        if size != len(models):
            problems.add(
                FormatError(
                    f"mp_world_size is {torch_files.brief(size)}",
                    file=path,
                    expected=f"{len(models)}, the number of mp_rank files",
                    fix="files are missing, or stale",
                )
            )
    dp = models[0][1].get("dp_world_size", 1)
    problems.raise_any()
    return tp, pp, dp if type(dp) is int and dp > 0 else 1


def _layers(folder: Folder, args: Mapping[str, Any] | None, given: Architecture | None, path: str) -> int:
    """The number of transformer layers; the layer files must be those of so many."""
    places = {place for place, _ in folder.layers}
    if places & {0, 2}:
        raise FormatError(
            "these are the layers of GPT-NeoX, not of Megatron-DeepSpeed",
            file=folder.path,
            found=f"layer_{min(places & {0, 2}):02d}-* files",
        )
    told = (
        len(given.decoder.layers)
        if given is not None and given.decoder is not None
        else max(places, default=BEHIND + 1) - BEHIND
    )
    count = (args or {}).get("num_layers", told)
    if type(count) is not int or not 0 < count <= 100_000:
        raise FormatError("args.num_layers is not a number of layers", file=path, found=torch_files.brief(count))
    if folder.universal:
        return count
    wanted = {EMBEDDING, *range(FIRST_LAYER, FIRST_LAYER + count), count + BEHIND}
    if places != wanted:
        missing, more = sorted(wanted - places), sorted(places - wanted)
        raise FormatError(
            f"the layer files are not those of {count} layers",
            file=folder.path,
            found="; ".join(
                [*([f"missing layer_{n:02d}" for n in missing[:6]]), *([f"layer_{n:02d} too many" for n in more[:6]])]
            ),
            expected=f"layer_01, layer_03 to layer_{count + 2:02d}, and layer_{count + BEHIND:02d}, the final norm",
        )
    return count


def _check_same_model(models: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Every file has the args; two stories mean that the files are of two models."""
    problems = errors.Problems("args")
    told = [(path, _args(states, path) or {}) for path, states in models]
    meaning = {key for entry in GPT.entries if entry.claims for key in entry.keys}
    file, first = told[0]
    for path, args in told[1:]:
        for key in sorted(first.keys() & args.keys() & meaning):
            one, two = (
                value.value if isinstance(value, torch_files.Opaque) else value for value in (first[key], args[key])
            )
            if one != two:
                problems.add(
                    FormatError(
                        f"args.{key} is {torch_files.brief(two)}",
                        file=path,
                        expected=f"{torch_files.brief(one)}, as in {file}",
                    )
                )
    problems.raise_any()


def _layer_files(folder: Folder, step: StepContents) -> list[dict[str, Kept]]:
    """The weights of every tensor parallel rank."""
    held: list[dict[str, Kept]] = [{} for _ in range(step.tp)]
    problems = errors.Problems(f"reading {folder.path}")
    for place in sorted({place for place, _ in folder.layers}):
        for rank in range(step.tp):
            path = folder.layers.get((place, rank))
            if path is None:
                problems.add(
                    FormatError(f"there is no file of layer {place:02d}, tensor parallel rank {rank}", file=folder.path)
                )
                continue
            content = torch_files.read_torch_file(path)
            if not isinstance(content, dict):
                problems.add(FormatError("the file holds no dict", file=path, found=torch_files.brief(content)))
                continue
            for name, tensor in content.items():
                if isinstance(tensor, StoredTensor) and isinstance(name, str):
                    held[rank][native_name(place, name, step.layers)] = tensor
                else:
                    problems.add(
                        FormatError(
                            f"the entry {torch_files.brief(name)} is not a tensor",
                            file=path,
                            found=torch_files.brief(tensor),
                        )
                    )
    problems.raise_any()
    return held


def _read_masters(folder: Folder, models: Sequence[tuple[str, Mapping[str, Any]]], step: StepContents) -> None:
    step.masters = [{} for _ in range(step.tp)]
    step.copies = [{} for _ in range(step.tp)]
    told = set()
    for mp, (path, states) in enumerate(models):
        stage, rank = divmod(mp, step.tp)
        parts = zero.partitions(folder, mp, [(path, states)])
        # What no rank divides may have been changed on its own: see `drift`.
        weights = {
            name: kept
            for name, kept in step.weights[rank].items()
            if isinstance(kept, StoredTensor) and is_divided(name)
        }
        named = [
            zero.Reading(one.by, {of_parameter(name, step.layers): flat for name, flat in one.masters.items()})
            for one in zero.readings(states, path, parts)
        ]
        reading = zero.fitting(named, weights, parts[0].path)
        told.add(reading.by)
        for name, master in reading.masters.items():
            flat = _with_shape(master, step.weights[rank].get(name))
            if stage and name.startswith("embed."):
                # The last stage's module is a whole embedding, of which the word embeddings alone are tied.
                if name == "embed.word_embeddings.weight":
                    step.copies[rank][name] = flat
            elif name in step.masters[rank]:
                raise FormatError(f"the master of {name!r} is in two pipeline stages", file=path)
            else:
                step.masters[rank][name] = flat
        step.dp = len(parts)
    step.by = ", ".join(sorted(told))


def _with_shape(master: Flat, weight: Kept | None) -> Flat:
    """A master with the shape of its weight, where no file says it (`param_slice_mappings`)."""
    return replace(master, shape=weight.shape) if master.shape is None and weight is not None else master
