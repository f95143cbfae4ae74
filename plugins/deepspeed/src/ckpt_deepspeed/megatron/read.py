"""Reading a Megatron-DeepSpeed checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace

from ckpt_core.sdk import (
    Architecture,
    CkptError,
    Description,
    FormatError,
    RankTensors,
    ReadRequest,
    StoredTensor,
    architecture_of,
    company,
    errors,
    layouts,
    lazy,
    ledgers,
    reading,
    schema,
)
from ckpt_deepspeed.contents import ARGS
from ckpt_deepspeed.files import find_folder, scan
from ckpt_deepspeed.flat import Kept, shards_of
from ckpt_deepspeed.megatron.config import GPT, attention_of, decoder_of, read_args
from ckpt_deepspeed.megatron.drift import Drift
from ckpt_deepspeed.megatron.files import TOKENIZER, StepContents, read_folder
from ckpt_deepspeed.megatron.rotary import INVERSE_FREQUENCIES, check_buffer
from ckpt_deepspeed.megatron.weights import TABLES, is_divided, is_gated
from ckpt_megatron.sdk import inverse_frequencies
from ckpt_megatron.sdk import weights as megatron

_EMBEDDING = "embed.word_embeddings.weight"


def read(path: str, request: ReadRequest) -> Description:
    """What lies at the folder of a step, or at the run folder that holds it."""
    folder = scan(find_folder(path))
    step = read_folder(folder, request.weights, request.architecture)
    model = _model(step, request, folder.ledger)
    masters = step.merged or bool(step.masters)
    if request.weights == "master" and not masters:
        _check_exact(step)
    choices = {megatron.VERSION.name: megatron.VERSION.until(step.version)}
    tables = layouts.BoundTables(TABLES, model.architecture, choices)
    if step.merged:
        ranks, losses = _merged(step, tables), []
        model.evidence.append(f"weights: the fp32 parameters of {os.path.basename(folder.path)}/zero")
    else:
        drift = _compared(step, tables, Drift(tables.parameters, folder.path, folder.states))
        ranks, losses = _rank_tensors(step, drift), drift.losses(step.tp)
        losses += _rounded_frequencies(step, model.architecture)
        if masters:
            model.evidence.append(f"weights: the fp32 masters of {step.dp} data parallel partitions, by {step.by}")
    rotary = attention_of(decoder_of(model.architecture)).rotary is not None
    root = path if os.path.realpath(folder.path) != os.path.realpath(path) else os.path.dirname(os.path.abspath(path))
    return Description(
        architecture=model.architecture,
        tables=TABLES,
        choices=choices,
        ranks=ranks,
        where=folder.path,
        root=path,
        files=folder.states,
        config=model.config,
        vocabulary=reading.Vocabulary(
            rows=lambda tokens: -(-tokens // model.multiple) * model.multiple,
            said=model.counted,
        ),
        notes=model.notes,
        sidecars=company.files_below(os.path.join(root, TOKENIZER)),
        parallel={} if step.merged else {"tp": step.tp, "pp": step.pp, "dp": step.dp},
        ledger=folder.enter(path, masters_read=masters),
        hints=_hints(step),
        # Other classes hold a rotary model too; GPT-NeoX has its very tensors.
        origins={"hf": {"model_type": "gpt_neox"}} if rotary else {},
        evidence=model.evidence,
        losses=losses,
        masters=step.has_masters,
    )


@schema.dataclass
class _Model:
    """The model that the args (or `--config`) describe, and what that rests on. `config` is the file of the args.

    `counted`: it says how many tokens there are; `multiple`: what its rows were padded to a multiple of.
    """

    architecture: Architecture
    config: str | None = None
    notes: dict[str, object] = field(default_factory=dict)
    evidence: list[str] = field(default_factory=list)
    counted: bool = False
    multiple: int = 1


def _model(step: StepContents, request: ReadRequest, ledger: ledgers.Ledger) -> _Model:
    rows = _rows(step)
    if step.args is None:
        lacks = "the checkpoint holds no args, so nothing says what the model is"
        architecture = reading.given(request, step.args_file, rows=rows, problem=lacks)
        return _Model(architecture, evidence=["architecture: given with --config, as no args are stored"])
    args = reading.without_ignored(step.args, request, ledger, step.args_file, section="args")
    fates = GPT.fates(args)
    ledger.contents(step.args_file, {key: args[key] for key in args if key not in fates}, ARGS, section="args")
    ledger.config(step.args_file, fates, section="args")
    if step.merged:
        # Newer converters to universal checkpoints cut the padding off.
        args["padded_vocab_size"] = rows
    args.setdefault("padded_vocab_size", rows)
    facts, notes = read_args(args, step.args_file)
    said = f"architecture: the args of {os.path.basename(step.args_file)}"
    model = _Model(architecture_of(facts, step.args_file), step.args_file, notes, [said])
    cut = step.merged and step.args.get("padded_vocab_size") not in (None, rows)
    model.counted = cut or args.get("original_vocab_size") is not None
    sizes = args.get("make_vocab_size_divisible_by", 128), args.get("tensor_model_parallel_size", step.tp)
    model.multiple = math.prod(size if type(size) is int and size > 0 else 1 for size in sizes)
    return model


def _rows(step: StepContents) -> int:
    """The rows of the word embeddings, over all tensor parallel ranks."""
    total = 0
    for held in step.masters if step.merged else step.weights:
        kept = held.get(_EMBEDDING)
        if not isinstance(kept, StoredTensor) or len(kept.shape) != 2:
            raise FormatError("the word embeddings are missing, or no matrix", file=step.folder, expected=_EMBEDDING)
        total += kept.shape[0]
    return total


def _check_exact(step: StepContents) -> None:
    """Without optimizer files, weights that were trained in fp32 are the masters."""
    dtypes = {kept.dtype.name for held in step.weights for kept in held.values() if isinstance(kept, StoredTensor)}
    if dtypes != {"fp32"}:
        raise errors.NotCarried(
            "there are no fp32 masters: no *_optim_states.pt lies in the folder",
            file=step.folder,
            fix="use --weights model",
        )


def _rounded_frequencies(step: StepContents, architecture: Architecture) -> list[ledgers.Loss]:
    """The loss where rotary frequencies are stored in 16 bits. Raises if any are those of another model."""
    exact, off = inverse_frequencies(attention_of(decoder_of(architecture))), 0.0
    problems = errors.Problems(f"reading {step.folder}")
    for held in step.weights:
        for name, kept in held.items():
            if name.endswith(INVERSE_FREQUENCIES) and isinstance(kept, StoredTensor):
                try:
                    off = max(off, check_buffer(kept, exact))
                except FormatError as problem:
                    problems.add(problem)
    problems.raise_any()
    reason = f"stored in 16 bits, by up to {off:.2g} off; the exact ones are meant"
    return [ledgers.Loss("assumed", "rotary frequencies", reason)] if off else []


# --- the tensors -----------------------------------------------------------------------------------------------------


def _compared(step: StepContents, tables: layouts.BoundTables, drift: Drift) -> Drift:
    """What every rank holds whole, compared between the ranks. Raises for tensors that can't be compared."""
    problems = errors.Problems(f"reading {step.folder}")
    with drift:
        for name, native in tables.natives({"tp": (0, step.tp)}).items():
            weights = [shards_of(held[name]) for held in step.weights if name in held]
            masters = [shards_of(held[name]) for held in step.masters if name in held]
            if native.row.splits or (step.masters and len(masters) != len(weights)):
                continue
            try:
                drift.compare(native, weights, masters)
            except CkptError as problem:
                problems.add(problem)
    problems.raise_any()
    return drift


def _rank_tensors(step: StepContents, drift: Drift) -> Iterator[RankTensors]:
    """The tensors of every tensor parallel rank. Rank 0 holds the average of those that are not alike on all ranks."""

    def is_alike(native: layouts.Native) -> bool:
        return native.name not in drift.averaged

    for rank, weights in enumerate(step.weights):
        ranks, where = {"tp": (rank, step.tp)}, f"{step.folder} (tensor parallel rank {rank})"
        needed = is_alike if rank else None
        if not step.masters:
            yield RankTensors(ranks, _held(weights, rank, drift), where, needed=needed)
            continue
        masters, last_stage = step.masters[rank], step.copies[rank]
        _check_pairs(weights, masters, where)
        rounded = {
            name: shards_of(kept)
            for name, kept in weights.items()
            if is_divided(name) or (rank == 0 and name not in drift.unchecked)
        }
        yield RankTensors(ranks, _held(masters, rank, drift), where, needed=needed, rounded=rounded)
        yield RankTensors(ranks, {name: shards_of(kept) for name, kept in last_stage.items()}, where, needed=needed)


def _held(kept: Mapping[str, Kept], rank: int, drift: Drift) -> dict[str, Sequence[lazy.Shard] | reading.Averaged]:
    held: dict[str, Sequence[lazy.Shard] | reading.Averaged] = {
        name: shards_of(one) for name, one in kept.items() if name not in drift.averaged
    }
    return held if rank else {**held, **drift.averaged}


def _check_pairs(weights: Mapping[str, Kept], masters: Mapping[str, Kept], where: str) -> None:
    """Raise for every weight without a master, and every master without a weight."""
    problems = errors.Problems(f"reading {where}")
    for name in sorted(weights.keys() ^ masters.keys()):
        if not name.endswith(INVERSE_FREQUENCIES):
            lacks = (
                f"the fp32 master of {name!r}" if name in weights else f"tensor {name!r}, whose fp32 master is there,"
            )
            problems.add(FormatError(f"{lacks} is missing", file=where, fix="use --weights model"))
    problems.raise_any()


def _merged(step: StepContents, tables: layouts.BoundTables) -> Iterator[RankTensors]:
    """The tensors of a universal checkpoint, which are those of all tensor parallel ranks one after the other.

    Of up and gate every rank's are one block of rows: they are not one up and one gate.
    """
    (held,) = step.masters
    natives = tables.natives()
    blocks = {
        name: kept
        for name, kept in held.items()
        if step.tp > 1 and name in natives and is_gated(natives[name])
        if isinstance(kept, StoredTensor) and kept.shape == natives[name].shape
    }
    whole = {
        name: shards_of(kept, natives[name].shape if name in natives else None)
        for name, kept in held.items()
        if name not in blocks
    }
    yield RankTensors({}, whole, step.folder, called=lambda native: native.name if native.name not in blocks else None)
    for rank in range(step.tp if blocks else 0):
        yield RankTensors(
            {"tp": (rank, step.tp)},
            {name: _rows_of(kept, rank, step.tp) for name, kept in blocks.items()},
            step.folder,
            called=lambda native: native.name if native.name in blocks else None,
        )


def _rows_of(stored: StoredTensor, rank: int, ranks: int) -> StoredTensor:
    """The rows of one rank, where those of all `ranks` are one tensor."""
    rows = stored.shape[0] // ranks
    start = rank * rows * stored.strides[0] * stored.dtype.size
    return replace(stored, shape=(rows, *stored.shape[1:]), offset=stored.offset + start)


def _hints(step: StepContents) -> dict[str, object]:
    """The choices by which the same files can be written again."""
    args = step.args or {}
    multiple = args.get("make_vocab_size_divisible_by")
    hints: dict[str, object] = {"universal": step.merged, "checkpoint_version": step.version}
    if isinstance(multiple, int):
        hints["make_vocab_size_divisible_by"] = multiple
    return hints
