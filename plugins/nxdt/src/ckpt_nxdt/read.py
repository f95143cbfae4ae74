"""Reading a Neuron checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    Checkpoint,
    CkptError,
    FormatError,
    Ledger,
    Loss,
    ParameterBuilder,
    Provenance,
    ReadRequest,
    Receipt,
    check_agreement,
    company,
    disk,
    layouts,
    lazy,
    original_of,
    receipt_of,
    rewrites,
    schema,
)
from ckpt_nxdt import masters
from ckpt_nxdt.config import CONFIG, read_config
from ckpt_nxdt.contents import SCHEDULER, USER_CONTENT, enter_training
from ckpt_nxdt.detect import Clues, Detected, attention_of, detect_arrangement
from ckpt_nxdt.files import BEGUN, DONE, Found, Held, find_folder, read_files, root_of
from ckpt_nxdt.job import FRAGMENT
from ckpt_nxdt.weights import TABLES

_OWN_FILES = {CONFIG, FRAGMENT, BEGUN, DONE, USER_CONTENT, SCHEDULER}
_EMBEDDING = {"hf": "model.embed_tokens.weight", "megatron": "language_model.embedding.word_embeddings.weight"}
_HEAD = {"hf": "lm_head.weight", "megatron": "language_model.output_layer.weight"}


def read(path: str, request: ReadRequest) -> Checkpoint:
    """The checkpoint at the folder of a tag, at the run folder that holds it, or at the output of AWS's converter."""
    folder, evidence = find_folder(path)
    found = read_files(folder)
    root = root_of(folder)
    receipt = receipt_of(root, "nxdt")
    described = _described(root, request, receipt)
    held, states, said = _held(found, request.weights)
    attention = attention_of(described.architecture)
    recorded = receipt.decisions if receipt else {}
    detected = detect_arrangement(Clues(held, found.trained, attention, request.options, recorded))
    architecture = _as_stored(held, described, detected)
    parallel = {"tp": found.tp, "pp": found.pp} | ({"ep": found.ep} if found.ep > 1 else {})
    enter_training(described.ledger, found, {state.path for state in states})
    checkpoint = Checkpoint(
        "nxdt",
        path,
        architecture,
        _assembled(held, architecture, detected),
        [*states, *described.states],
        notes=described.notes,
        sidecars=company.files_in(root, _is_companion),
        parallel=parallel,
        ledger=described.ledger,
        provenance=Provenance(
            hints=_hints(found, detected),
            evidence=[*evidence, *_provenance(found), *described.evidence, *detected.evidence, *said],
            losses=described.losses,
            masters=masters.present(found),
        ),
    )
    checkpoint = original_of(checkpoint, root)
    vocabulary = request.options.get("vocab")
    return company.with_vocabulary(checkpoint, int(vocabulary)) if vocabulary else checkpoint


def _provenance(found: Found) -> list[str]:
    return [f"written by a training job: {', '.join(found.trained)}"] if found.trained else []


@dataclass
class _Described:
    """What a config says of the model, and what that rests on."""

    architecture: Architecture
    notes: dict[str, Any] = field(default_factory=dict)
    states: list[disk.FileState] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)


def _described(root: str, request: ReadRequest, receipt: Receipt | None) -> _Described:
    """The architecture: of `--config`, or of the config.json that lies beside the weights; both must agree."""
    beside = os.path.join(root, CONFIG)
    if not os.path.isfile(beside):
        if request.architecture is None:
            raise CkptError(
                "nothing says what the model is: these checkpoints hold no config",
                file=root,
                fix="give the HF config.json of the job (model.model_config) with --config",
            )
        return _Described(request.architecture, evidence=["architecture: given with --config"])
    ledger = Ledger()
    architecture, notes = read_config(beside, ledger)
    described = _Described(architecture, notes, [disk.FileState.of(beside)], [f"architecture: {CONFIG}"], ledger=ledger)
    # config.json never says that a head is tied, for the job's sake; the copies are compared when they are read.
    for said, by in ((receipt and receipt.architecture, "by the receipt"), (request.architecture, "by --config")):
        if said and said.head and said.head.tied and not _is_tied(described.architecture):
            described.architecture = _with_tied(architecture, tied=True)
            described.evidence.append(f"head: tied, {by}")
    if request.architecture is not None:
        check_agreement(request.architecture, described.architecture, beside)
    return described


def _is_tied(architecture: Architecture) -> bool:
    return architecture.head is not None and architecture.head.tied


def _with_tied(architecture: Architecture, tied: bool) -> Architecture:
    head = architecture.head
    return architecture if head is None else replace(architecture, head=replace(head, tied=tied))


def _as_stored(held: Held, described: _Described, detected: Detected) -> Architecture:
    """The architecture with what the files decide: rows of padding, a head of its own, copies that are heads."""
    architecture, style = described.architecture, detected.arrangement.style
    shape, tokens = held.shape(_EMBEDDING[style], 0), architecture.tokens
    rows = shape[0] * held.tp if shape else 0
    if tokens is not None and rows >= tokens.vocabulary:
        architecture = replace(architecture, tokens=replace(tokens, padded_vocabulary=rows))
    if (
        architecture.head is not None
        and architecture.head.tied
        and _certainly_differ(held, _EMBEDDING[style], _HEAD[style])
    ):
        architecture = _with_tied(architecture, tied=False)
        reason = "the head differs from the embedding; NxDT never ties them"
        described.losses.append(Loss("assumed", "tie_word_embeddings=true", reason))
    if detected.separate:
        groups = attention_of(architecture).groups * detected.copies
        architecture = rewrites.map_layers(architecture, lambda layer: _with_groups(layer, groups))
    return architecture


def _certainly_differ(held: Held, one: str, other: str) -> bool:
    """Whether the first rows of two tensors differ on a rank that has both."""
    pairs = [(held.row(one, rank, 0), held.row(other, rank, 0)) for rank in range(held.tp)]
    return any(a and b and a != b for a, b in pairs)


def _with_groups(layer: schema.Layer, groups: int) -> schema.Layer:
    return layer if layer.attention is None else replace(layer, attention=replace(layer.attention, groups=groups))


def _held(found: Found, asked: str) -> tuple[Held, list[disk.FileState], list[str]]:
    """The tensors that are read, the files they lie in, and what was chosen: the weights, or their fp32 masters."""
    absent = list(found.absent())
    if asked == "master" or (absent and asked == "auto" and masters.present(found)):
        held, states = masters.read_masters(found)
        states += [disk.FileState.of(file.path) for file in found.files]
        why = ", as no weights are stored (avoid_saving_lower_precision_weights)" if asked == "auto" else ""
        return held, states, [f"weights: fp32 masters of optim/{why}"]
    if absent:
        name, tensor = absent[0]
        more = f", and of {len(absent) - 1} more" if len(absent) > 1 else ""
        fix = "copy the folder again: nothing else holds these weights"
        raise FormatError(f"the file of tensor {name!r} is missing{more}", file=tensor.file, fix=fix)
    return found.weights(), found.states(), []


def _assembled(held: Held, architecture: Architecture, detected: Detected) -> dict[str, lazy.LazyParameter]:
    """The canonical tensors, put together from the files of all ranks; what several ranks hold is compared."""
    layout = layouts.BoundTables(TABLES, architecture, detected.arrangement.choices)
    assembler = ParameterBuilder(layout.parameters, held.folder)
    for tp in range(held.tp):
        for ep in range(held.ep):
            try:
                natives = layout.natives({"tp": (tp, held.tp), "ep": (ep, held.ep)})
            except CkptError as error:  # a number of ranks that the model of the config can't have
                error.file = error.file or held.folder
                raise
            here = [tensors for rank, tensors in sorted(held.tensors.items()) if (rank.tp, rank.ep) == (tp, ep)]
            names = {name for tensors in here for name in tensors}
            # Expert ranks share the rest: it need lie with rank 0 alone.
            shared = {name for name, native in natives.items() if ep and "ep" not in dict(native.row.splits)}
            needed = {name: native for name, native in natives.items() if name not in shared}
            for problem in layouts.account(needed, layout.tables, names - shared, _where(held, tp, ep)):
                assembler.problems.add(problem)
            for name, native in natives.items():
                for tensors in here:
                    if name in tensors:
                        assembler.add(native, tensors[name])
    return assembler.finish()


def _where(held: Held, tp: int, ep: int) -> str:
    ranks = [f"tp={tp}"] * (held.tp > 1) + [f"ep={ep}"] * (held.ep > 1)
    return f"{held.folder} ({' '.join(ranks)})" if ranks else held.folder


def _hints(found: Found, detected: Detected) -> dict[str, object]:
    """The choices by which the same files can be written again."""
    arrangement = detected.arrangement
    hints: dict[str, object] = {"model_style": arrangement.style, "xser": any(file.xser for file in found.files)}
    if arrangement.style == "hf":
        hints["qkv"] = arrangement.qkv
    if detected.copies > 1 and not detected.separate:
        hints["hw_backend"] = arrangement.hardware
    return hints


def _is_companion(name: str) -> bool:
    """Whether a file beside the weights is neither a job's nor ours."""
    return not (name in _OWN_FILES or name.startswith((".", "ckpt-receipt", "tp_rank_")) or name.endswith(".pt"))
