"""Reading a Megatron-DeepSpeed checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ckpt_core.sdk import (
    Architecture,
    Checkpoint,
    CkptError,
    FormatError,
    Ledger,
    Loss,
    Native,
    ParameterBuilder,
    Provenance,
    ReadRequest,
    Shard,
    StoredTensor,
    architecture_of,
    check_agreement,
    company,
    layouts,
    lazy,
    original_of,
)
from ckpt_deepspeed.contents import ARGS
from ckpt_deepspeed.files import Folder, find_folder, scan
from ckpt_deepspeed.flat import Kept, shards_of
from ckpt_deepspeed.megatron.config import GPT, attention_of, decoder_of, read_args
from ckpt_deepspeed.megatron.drift import Drift
from ckpt_deepspeed.megatron.files import TOKENIZER, Found, read_folder
from ckpt_deepspeed.megatron.rotary import INVERSE_FREQUENCIES, check_buffer
from ckpt_deepspeed.megatron.weights import TABLES, is_gated
from ckpt_megatron.sdk import inverse_frequencies
from ckpt_megatron.sdk import weights as megatron

_EMBEDDING = "embed.word_embeddings.weight"


def read(path: str, request: ReadRequest) -> Checkpoint:
    """The checkpoint at the folder of a step, or at the run folder that holds it."""
    folder = scan(find_folder(path))
    found = read_folder(folder, request.weights, request.architecture)
    described = _described(found, request, folder.ledger)
    masters = found.merged or bool(found.masters)
    if request.weights == "master" and not masters:
        _check_exact(found)
    tensors, losses = _assembled(folder, found, described.architecture)
    if masters:
        described.evidence.append(
            f"weights: the fp32 parameters of {os.path.basename(folder.path)}/zero"
            if found.merged
            else f"weights: the fp32 masters of {found.dp} data parallel partitions, by {found.by}"
        )
    parallel = {"tp": found.tp, "pp": found.pp, "dp": found.dp}
    rotary = attention_of(decoder_of(described.architecture)).rotary is not None
    root = path if os.path.realpath(folder.path) != os.path.realpath(path) else os.path.dirname(os.path.abspath(path))
    checkpoint = Checkpoint(
        "megatron-deepspeed",
        path,
        described.architecture,
        tensors,
        folder.states,
        notes=described.notes,
        sidecars=company.files_below(os.path.join(root, TOKENIZER)),
        parallel={} if found.merged else parallel,
        ledger=folder.enter(path, masters_read=masters),
        provenance=Provenance(
            hints=_hints(found),
            # Other classes hold a rotary model too; GPT-NeoX has its very tensors.
            origins={"hf": {"model_type": "gpt_neox"}} if rotary else {},
            evidence=described.evidence,
            losses=losses,
            masters=found.has_masters,
        ),
    )
    return company.settled(
        original_of(checkpoint, path),
        request,
        padded=lambda tokens: -(-tokens // described.multiple) * described.multiple,
        said=described.counted,
    )


@dataclass
class _Described:
    """What the args (or `--config`) say about a checkpoint, and what that rests on.

    `counted`: it says how many tokens there are; `multiple`: what its rows were padded to a multiple of.
    """

    architecture: Architecture
    notes: dict[str, object] = field(default_factory=dict)
    evidence: list[str] = field(default_factory=list)
    counted: bool = False
    multiple: int = 1


def _described(found: Found, request: ReadRequest, ledger: Ledger) -> _Described:
    rows = _rows(found)
    if found.args is None:
        given = request.architecture
        if given is None or given.tokens is None:
            raise CkptError(
                "the checkpoint holds no args, so nothing says what the model is",
                file=found.args_file,
                fix="give a config with --config",
            )
        padded = replace(given, tokens=replace(given.tokens, vocabulary=rows, padded_vocabulary=rows))
        return _Described(padded, evidence=["architecture: given with --config, as no args are stored"])
    args = dict(found.args)
    for key in filter(None, str(request.options.get("ignore_keys") or "").split(",")):
        if args.pop(key.strip(), None) is not None:
            ledger.asked(found.args_file, [f"args.{key.strip()}"])
    fates = GPT.fates(args)
    ledger.contents(found.args_file, {key: args[key] for key in args if key not in fates}, ARGS, section="args")
    ledger.config(found.args_file, fates, section="args")
    if found.merged:
        # Newer converters to universal checkpoints cut the padding off.
        args["padded_vocab_size"] = rows
    args.setdefault("padded_vocab_size", rows)
    facts, notes = read_args(args, found.args_file)
    architecture = architecture_of(facts, found.args_file)
    if request.architecture is not None:
        check_agreement(request.architecture, architecture, found.args_file)
    described = _Described(architecture, notes, [f"architecture: the args of {os.path.basename(found.args_file)}"])
    cut = found.merged and found.args.get("padded_vocab_size") not in (None, rows)
    described.counted = cut or args.get("original_vocab_size") is not None
    sizes = args.get("make_vocab_size_divisible_by", 128), args.get("tensor_model_parallel_size", found.tp)
    described.multiple = math.prod(size if type(size) is int and size > 0 else 1 for size in sizes)
    return described


def _rows(found: Found) -> int:
    """The rows of the word embeddings, over all tensor parallel ranks."""
    total = 0
    for held in found.masters if found.merged else found.weights:
        kept = held.get(_EMBEDDING)
        if not isinstance(kept, StoredTensor) or len(kept.shape) != 2:
            raise FormatError("the word embeddings are missing, or no matrix", file=found.folder, expected=_EMBEDDING)
        total += kept.shape[0]
    return total


def _check_exact(found: Found) -> None:
    """Without optimizer files, weights that were trained in fp32 are the masters."""
    dtypes = {kept.dtype.name for held in found.weights for kept in held.values() if isinstance(kept, StoredTensor)}
    if dtypes != {"fp32"}:
        raise CkptError(
            "there are no fp32 masters: no *_optim_states.pt lies in the folder",
            file=found.folder,
            fix="use --weights model",
        )


def _assembled(
    folder: Folder, found: Found, architecture: Architecture
) -> tuple[dict[str, lazy.LazyParameter], list[Loss]]:
    """The canonical tensors, put together from all ranks, and what ranks do not agree on."""
    layout = layouts.BoundTables(TABLES, architecture, {megatron.VERSION.name: megatron.VERSION.until(found.version)})
    assembler = ParameterBuilder(layout.parameters, found.folder)
    if found.merged:
        _add_merged(assembler, layout, found)
        return assembler.finish(), []
    held, frequencies = found.masters or found.weights, inverse_frequencies(attention_of(decoder_of(architecture)))
    whole: dict[str, tuple[Native, list[int]]] = {}
    off = 0.0
    for rank in range(found.tp):
        natives = layout.natives({"tp": (rank, found.tp)})
        where = f"{found.folder} (tensor parallel rank {rank})"
        for names in [found.weights[rank], *([held[rank]] if found.masters else [])]:
            for problem in layouts.account(natives, layout.tables, names, where):
                assembler.problems.add(problem)
        for name, kept in found.weights[rank].items():
            if name.endswith(INVERSE_FREQUENCIES) and isinstance(kept, StoredTensor):
                try:
                    off = max(off, check_buffer(kept, frequencies))
                except FormatError as problem:
                    assembler.problems.add(problem)
        for name, native in natives.items():
            if name not in held[rank] or name not in found.weights[rank]:
                continue
            if not native.row.splits:
                whole.setdefault(name, (native, []))[1].append(rank)
                continue
            assembler.add(native, shards_of(held[rank][name], native.shape))
            if found.masters:
                assembler.add_rounded(native, shards_of(found.weights[rank][name], native.shape))
                if name in found.copies[rank]:
                    assembler.add(native, shards_of(found.copies[rank][name], native.shape))
    with Drift(layout.parameters, found.folder, folder.states) as drift:
        for native, ranks in whole.values():
            try:
                _add_whole(
                    assembler,
                    drift,
                    native,
                    [held[rank][native.name] for rank in ranks],
                    [found.weights[rank][native.name] for rank in ranks],
                )
            except CkptError as problem:
                assembler.problems.add(problem)
        rounded = Loss(
            "assumed", "rotary frequencies", f"stored in 16 bits, by up to {off:.2g} off; the exact ones are meant"
        )
        return assembler.finish(), [*drift.losses(found.tp), *([rounded] if off else [])]


def _add_whole(
    assembler: ParameterBuilder, drift: Drift, native: Native, held: Sequence[Kept], weights: Sequence[Kept]
) -> None:
    """A tensor that every rank holds: the first one's, or the average where they differ."""
    ranks = [shards_of(kept, native.shape) for kept in held]
    spread = drift.spread(native, ranks) if len(ranks) > 1 else None
    if spread is not None:
        drift.note(native, spread)
        assembler.add_averaged(native, ranks)
    else:
        for shards in ranks:
            assembler.add(native, shards)
    if held[0] is weights[0]:
        return
    stored: list[list[Shard]] = [shards_of(kept, native.shape) for kept in weights]
    apart = drift.spread(native, stored) if len(stored) > 1 else None
    if spread is None and apart is None:
        assembler.add_rounded(native, stored[0])
    else:
        drift.unchecked.append((apart or 0.0, native.name))


def _add_merged(assembler: ParameterBuilder, layout: layouts.BoundTables, found: Found) -> None:
    """The tensors of a universal checkpoint, which are those of all tensor parallel ranks one after the other."""
    (held,) = found.masters
    natives = layout.natives()
    for problem in layouts.account(natives, layout.tables, held, found.folder):
        assembler.problems.add(problem)
    for name, native in natives.items():
        kept = held.get(name)
        if kept is None:
            continue
        if is_gated(native) and found.tp > 1 and isinstance(kept, StoredTensor) and kept.shape == native.shape:
            rows = kept.shape[0] // found.tp
            for rank in range(found.tp):
                part = replace(
                    kept,
                    shape=(rows, *kept.shape[1:]),
                    offset=kept.offset + rank * rows * kept.strides[0] * kept.dtype.size,
                )
                assembler.add(layout.natives({"tp": (rank, found.tp)})[name], shards_of(part, part.shape))
        else:
            assembler.add(native, shards_of(kept, native.shape))


def _hints(found: Found) -> dict[str, object]:
    """The choices by which the same files can be written again."""
    args = found.args or {}
    multiple = args.get("make_vocab_size_divisible_by")
    hints: dict[str, object] = {"universal": found.merged, "checkpoint_version": found.version}
    if isinstance(multiple, int):
        hints["make_vocab_size_divisible_by"] = multiple
    return hints
