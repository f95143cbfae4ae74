"""Reading a NeMo 2 checkpoint: what its context describes, out of its weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    CkptError,
    Description,
    FormatError,
    ReadRequest,
    chunked,
    company,
    disk,
    documents,
    errors,
    layouts,
    ledgers,
    reading,
    torch_files,
    trees,
)
from ckpt_megatron.sdk import (
    DIST_METADATA,
    FolderContents,
    choices_of_tensors,
    fiddle,
    lightning,
    rank_tensors,
    read_dist,
    training_of,
    transformer_config,
    weights,
)
from ckpt_nemo.nemo2.classes import short
from ckpt_nemo.nemo2.context import ModelContext, read_context
from ckpt_nemo.nemo2.files import COMMON, GRAPH, MODEL, find
from ckpt_nemo.nemo2.tokenizer import Tokenizer, read_tokenizer

# save_ckpt_format="zarr" is the older of the two
_READERS: dict[str, Callable[[str], chunked.DistributedCheckpoint]] = {
    "torch_dist": chunked.read_distributed,
    "zarr": chunked.read_zarr,
}
_MERGE = "merge the adapters into their base with NeMo (llm.peft.merge_lora), and convert the result"


def read(path: str, request: ReadRequest) -> Description:
    """What lies at its folder, at one of the two folders in it, or at a folder that holds no other."""
    place = find(path)
    reader = _reader(place.weights)
    context = trees.open_tree(place.context)
    ledger = ledgers.Ledger()
    model = read_context(context, request, ledger)
    tokenizer = read_tokenizer(model.tokenizer, context)
    found = read_dist(place.weights, request.weights, reader, ledger)
    transformer_config.refuse_adapters(found, _MERGE)
    _check_rows(model, tokenizer, found, asked=company.asked_vocabulary(request) is not None)
    rows = found.rows(transformer_config.EMBEDDING)
    model.facts |= {"tokens.padded_vocabulary": rows, "tokens.vocabulary": rows}
    architecture, choices = transformer_config.described(model.facts, model.notes, found, model.file)
    choices = {**choices, **choices_of_tensors(found, architecture)}
    if request.weights == "master":
        model.evidence.append("weights: fp32 masters of the optimizer")
        found.ledger.read_masters()
    model.enter(found.ledger, context)
    files = [disk.FileState.of(context[name].file) for name in (GRAPH, MODEL) if name in context]
    # without vocab_size the rows were made for the tokenizer; with it they are what somebody gave, padded or not
    made = model.fields.get("vocab_size") is None
    return Description(
        architecture=architecture,
        tables=weights.TABLES,
        choices=choices,
        ranks=rank_tensors(found, architecture),
        where=found.folder,
        root=place.root,
        files=[*found.states, *files, *(disk.FileState.of(sidecar.path) for sidecar in tokenizer.files.values())],
        config=model.file,
        vocabulary=reading.Vocabulary(rows=lambda tokens: rows if made else tokens, tokenizer=tokenizer.size),
        notes=model.notes,
        sidecars=tokenizer.files,
        parallel=transformer_config.parallel(model.fields),
        ledger=found.ledger,
        hints=_hints(model, tokenizer, found),
        evidence=model.evidence,
        losses=[*model.losses, *transformer_config.post_norms(model.facts, "NeMo 2"), *found.left(architecture)],
        masters=found.masters,
        training=lambda: _training(found, architecture, choices, place.root, model),
    )


def _training(
    found: FolderContents,
    architecture: Architecture,
    choices: Mapping[str, layouts.Value],
    root: str,
    model: ModelContext,
) -> reading.SavedTraining | None:
    """The state of the training: that of Megatron-Core's optimizer, and what Lightning says of the run. A run that restores weights and optimizer of
    another one (RestoreConfig, load_optim_state) counts its own steps."""
    _check_groups(model)
    saved = training_of(found, architecture, choices)
    if saved is None:
        return None
    file = os.path.join(found.folder, COMMON)
    name = os.path.basename(os.path.normpath(os.path.abspath(root)))
    progress = lightning.progress_in(torch_files.read_torch_file(file), name, file, [disk.FileState.of(file)])
    return lightning.continued(saved, progress, [file], counts_anew=True)


def _check_groups(model: ModelContext) -> None:
    """`NotCarried` for a run whose groups a function of its own makes (nemo/lightning/pytorch/optim/megatron.py, `MegatronOptimizerModule`)."""
    optimizer = model.sections.get("root.model.optim")
    if not isinstance(optimizer, fiddle.Call):
        return
    for name in ("no_weight_decay_cond", "scale_lr_cond"):
        if (given := optimizer.arguments.get(name)) is not None:
            raise errors.NotCarried(
                "which parameters are in which group of the optimizer is decided by a function that is not in the files",
                file=model.file,
                found=f"{name} = {torch_files.brief(fiddle.plain_of(given))}",
                expected=f"a {short(optimizer.target)} without it",
                fix="convert the weights alone, with --training-state drop",
            )


def _reader(weights: str) -> Callable[[str], chunked.DistributedCheckpoint]:
    """What reads the weights: they say how they are kept."""
    file = os.path.join(weights, DIST_METADATA)
    backend = documents.read_json_object(file).get("sharded_backend")
    if not isinstance(backend, str) or backend not in _READERS:
        raise FormatError(
            "weights of an unknown kind", file=file, found=torch_files.brief(backend), expected=" or ".join(_READERS)
        )
    return _READERS[backend]


def _check_rows(model: ModelContext, tokenizer: Tokenizer, found: FolderContents, asked: bool) -> None:
    """The embedding has the rows that vocab_size says, or a row for every token."""
    rows, said = found.rows(transformer_config.EMBEDDING), model.fields.get("vocab_size")
    if said is not None and said != rows:
        raise CkptError(
            "the embedding has another number of rows than the vocabulary",
            file=found.folder,
            found=f"{rows} rows",
            expected=f"vocab_size = {said!r}",
        )
    if said is None and not asked and tokenizer.size is not None and tokenizer.size > rows:
        raise CkptError(
            "the tokenizer has more tokens than the embedding has rows",
            file=found.folder,
            found=f"{tokenizer.size} tokens, {rows} rows",
            fix="the tokenizer in context/ is that of another model; -o vocab=N says the true size",
        )


def _hints(model: ModelContext, tokenizer: Tokenizer, found: FolderContents) -> dict[str, Any]:
    """The choices by which the same checkpoint can be written again."""
    hints = transformer_config.layout_hints(model.fields, model.facts, found) | {
        "classes": {"config": model.classes.config, "model": model.classes.model},
        "vocab_size": model.fields.get("vocab_size"),
    }
    return hints | ({"tokenizer": tokenizer.hint} if tokenizer.hint is not None else {})
