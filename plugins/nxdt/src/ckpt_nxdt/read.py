"""Reading a Neuron checkpoint."""

from __future__ import annotations

import os
from dataclasses import field, replace
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    Description,
    FormatError,
    ReadRequest,
    company,
    disk,
    ledgers,
    reading,
    rewrites,
    schema,
)
from ckpt_nxdt import masters
from ckpt_nxdt.config import CONFIG, read_config
from ckpt_nxdt.contents import SCHEDULER, USER_CONTENT, enter_training
from ckpt_nxdt.detect import Clues, Detection, attention_of, detect_arrangement
from ckpt_nxdt.files import FolderContents, Weights, read_files
from ckpt_nxdt.job import FRAGMENT
from ckpt_nxdt.optimizer import training_beside
from ckpt_nxdt.places import BEGUN, DONE, find_folder, root_of
from ckpt_nxdt.weights import TABLES

_OWN_FILES = {CONFIG, FRAGMENT, BEGUN, DONE, USER_CONTENT, SCHEDULER}
_EMBEDDING = {"hf": "model.embed_tokens.weight", "megatron": "language_model.embedding.word_embeddings.weight"}
_HEAD = {"hf": "lm_head.weight", "megatron": "language_model.output_layer.weight"}


def read(path: str, request: ReadRequest) -> Description:
    """What lies at the folder of a tag, at the run folder that holds it, or at the output of AWS's converter."""
    folder, evidence = find_folder(path)
    contents = read_files(folder)
    root = root_of(folder)
    receipt = reading.receipt_of(root, "nxdt")
    model = _model(root, request, receipt)
    weights, states, said = _weights(contents, request.weights)
    recorded = receipt.decisions if receipt else {}
    clues = Clues(weights, contents.trained, attention_of(model.architecture), request.options, recorded)
    detected = detect_arrangement(clues)
    architecture = _as_stored(weights, model, detected)
    enter_training(model.ledger, contents, {state.path for state in states})
    return Description(
        architecture=architecture,
        tables=TABLES,
        choices=detected.arrangement.choices,
        ranks=weights.by_rank(),
        where=weights.folder,
        root=root,
        files=[*states, *model.states],
        config=model.config,
        said=model.architecture,
        notes=model.notes,
        sidecars=company.files_in(root, _is_companion),
        parallel={"tp": contents.tp, "pp": contents.pp} | ({"ep": contents.ep} if contents.ep > 1 else {}),
        ledger=model.ledger,
        hints=_hints(contents, detected),
        evidence=[*evidence, *_signs(contents), *model.evidence, *detected.evidence, *said],
        losses=model.losses,
        masters=masters.present(contents),
        training=lambda: training_beside(contents),
    )


def _signs(contents: FolderContents) -> list[str]:
    return [f"written by a training job: {', '.join(contents.trained)}"] if contents.trained else []


@schema.dataclass
class _Model:
    """The model that a config (or `--config`) describes, and what that rests on. `config` is the file beside the weights."""

    architecture: Architecture
    config: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    states: list[disk.FileState] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    losses: list[ledgers.Loss] = field(default_factory=list)
    ledger: ledgers.Ledger = field(default_factory=ledgers.Ledger)


def _model(root: str, request: ReadRequest, receipt: reading.Receipt | None) -> _Model:
    """The model of the config.json that lies beside the weights, or of `--config`."""
    beside = os.path.join(root, CONFIG)
    if not os.path.isfile(beside):
        architecture = reading.given(
            request,
            root,
            problem="nothing says what the model is: these checkpoints hold no config",
            expected=f"{beside}: the Hugging Face config of the job (model.model_config)",
        )
        return _Model(architecture, evidence=["architecture: given with --config"])
    ledger = ledgers.Ledger()
    architecture, notes = read_config(beside, request, ledger)
    states, evidence = [disk.FileState.of(beside)], [f"architecture: {CONFIG}"]
    # config.json never says that a head is tied, for the job's sake; the copies are compared when they are read.
    for said, by in ((receipt and receipt.architecture, "by the receipt"), (request.architecture, "by --config")):
        if said and said.head and said.head.tied and not _is_tied(architecture):
            architecture = _with_tied(architecture, tied=True)
            evidence.append(f"head: tied, {by}")
    return _Model(architecture, beside, notes, states, evidence, ledger=ledger)


def _is_tied(architecture: Architecture) -> bool:
    return architecture.head is not None and architecture.head.tied


def _with_tied(architecture: Architecture, tied: bool) -> Architecture:
    head = architecture.head
    return architecture if head is None else replace(architecture, head=replace(head, tied=tied))


def _as_stored(weights: Weights, model: _Model, detected: Detection) -> Architecture:
    """The architecture with what the files decide: rows of padding, a head of its own, copies that are heads."""
    architecture, style = model.architecture, detected.arrangement.style
    shape, tokens = weights.shape(_EMBEDDING[style], 0), architecture.tokens
    rows = shape[0] * weights.tp if shape else 0
    if tokens is not None and rows >= tokens.vocabulary:
        architecture = replace(architecture, tokens=replace(tokens, padded_vocabulary=rows))
    if _is_tied(architecture) and _certainly_differ(weights, _EMBEDDING[style], _HEAD[style]):
        architecture = _with_tied(architecture, tied=False)
        reason = "the head differs from the embedding; NxDT never ties them"
        model.losses.append(ledgers.Loss("assumed", "tie_word_embeddings=true", reason))
    if detected.separate:
        groups = attention_of(architecture).groups * detected.copies
        architecture = rewrites.map_layers(architecture, lambda layer: _with_groups(layer, groups))
    return architecture


def _certainly_differ(weights: Weights, one: str, other: str) -> bool:
    """Whether the first rows of two tensors differ on a rank that has both."""
    pairs = [(weights.row(one, rank, 0), weights.row(other, rank, 0)) for rank in range(weights.tp)]
    return any(a and b and a != b for a, b in pairs)


def _with_groups(layer: schema.Layer, groups: int) -> schema.Layer:
    return layer if layer.attention is None else replace(layer, attention=replace(layer.attention, groups=groups))


def _weights(contents: FolderContents, asked: str) -> tuple[Weights, list[disk.FileState], list[str]]:
    """The tensors that are read, the files they lie in, and what was chosen: the weights, or their fp32 masters."""
    absent = list(contents.absent())
    if asked == "master" or (absent and asked == "auto" and masters.present(contents)):
        held, states = masters.read_masters(contents)
        states += [disk.FileState.of(file.path) for file in contents.files]
        why = ", as no weights are stored (avoid_saving_lower_precision_weights)" if asked == "auto" else ""
        return held, states, [f"weights: fp32 masters of optim/{why}"]
    if absent:
        name, tensor = absent[0]
        more = f", and of {len(absent) - 1} more" if len(absent) > 1 else ""
        fix = "copy the folder again: nothing else holds these weights"
        raise FormatError(f"the file of tensor {name!r} is missing{more}", file=tensor.file, fix=fix)
    return contents.weights(), contents.states(), []


def _hints(contents: FolderContents, detected: Detection) -> dict[str, object]:
    """The choices by which the same files can be written again."""
    arrangement = detected.arrangement
    hints: dict[str, object] = {"model_style": arrangement.style, "xser": any(file.xser for file in contents.files)}
    if arrangement.style == "hf":
        hints["qkv"] = arrangement.qkv
    if detected.copies > 1 and not detected.separate:
        hints["hw_backend"] = arrangement.hardware
    return hints


def _is_companion(name: str) -> bool:
    """Whether a file beside the weights is neither a job's nor ours."""
    return not (name in _OWN_FILES or name.startswith((".", "ckpt-receipt", "tp_rank_")) or name.endswith(".pt"))
