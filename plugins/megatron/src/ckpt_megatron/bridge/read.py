"""Reading a Megatron-Bridge checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    CkptError,
    Description,
    Facts,
    FormatError,
    ReadRequest,
    architecture_of,
    chunked,
    company,
    disk,
    errors,
    layouts,
    ledgers,
    reading,
    torch_files,
    trees,
)
from ckpt_megatron.args.predictors import COUNT
from ckpt_megatron.bridge.config import (
    SEEING,
    is_plain,
    model_section,
    run_config,
    short,
    table_of,
    tables_of,
    version_of,
)
from ckpt_megatron.bridge.files import LATEST, RUN_CONFIG, TOKENIZER, TRAIN_STATE, find_folder
from ckpt_megatron.bridge.seeing import Reader, beside_a_tower, other_activation
from ckpt_megatron.contents import RUN_SECTIONS, TRACKED
from ckpt_megatron.files import FSDP_DTENSOR, TRACKER, container_of
from ckpt_megatron.found import FolderContents
from ckpt_megatron.layout import DIVISIBLE, padded
from ckpt_megatron.megatron_fsdp import read_fsdp
from ckpt_megatron.optimizer import groups as optimizer_groups
from ckpt_megatron.optimizer.progress import CONSUMED
from ckpt_megatron.read import choices_of_tensors, rank_tensors, training_of
from ckpt_megatron.read_dist import read_dist
from ckpt_megatron.transformer_config.gemma import post_norms
from ckpt_megatron.transformer_config.reading import (
    EMBEDDING,
    RANKS,
    described,
    layout_hints,
    parallel,
    refuse_adapters,
)

_SINCE_0_6 = "max_steps"  # of the scheduler: it came after 0.5, and before the optimizer's condition did
_DIVIDES = "optimizer_config_override_provider"
_DIVIDER = "megatron.bridge.training.config.OptimizerConfigOverrideProvider"


def read(path: str, request: ReadRequest) -> Description:
    """What lies at the folder of an iteration, or at the run folder that holds it."""
    folder = find_folder(path)
    file = os.path.join(folder, RUN_CONFIG)
    sections = run_config(disk.read_small(file), file)
    target, fields = model_section(sections, file)
    losses, ledger = _losses_of_class(target, file), ledgers.Ledger()
    fields = reading.without_ignored(fields, request, ledger, file, "model")
    if reading.drops_predictors(request):
        fields.pop(COUNT, None)
    table = table_of(target, fields)
    facts, notes = table.read(fields, file)
    container = container_of(folder)
    if container not in ("torch_dist", FSDP_DTENSOR):
        raise FormatError(
            "the weights are not of torch_dist", file=folder, fix="save them with checkpoint.ckpt_format: torch_dist"
        )
    reader: Reader = read_fsdp if container == FSDP_DTENSOR else chunked.read_distributed
    if target in SEEING:
        reader = beside_a_tower(reader)
        losses += other_activation(SEEING[target])
    found = read_dist(folder, request.weights, reader, ledger, container)
    losses += post_norms(facts, "Bridge")
    refuse_adapters(
        found, "merge them into checkpoint.pretrained_checkpoint with Megatron-Bridge, and convert the result"
    )
    facts["tokens.padded_vocabulary"], facts["tokens.vocabulary"] = (
        found.rows(EMBEDDING),
        _vocabulary(fields, found, file),
    )
    architecture, choices = described(facts, notes, found, file)
    found.ledger.contents(file, sections, RUN_SECTIONS)
    found.ledger.config(file, table.fates(fields), section="model")
    _enter_progress(found, folder, path)
    evidence = [f"architecture: the {len(fields)} fields of {short(target)} in {RUN_CONFIG}"]
    if request.weights == "master":
        evidence.append("weights: fp32 masters of the optimizer")
        found.ledger.read_masters()
    root = path if folder != path else os.path.dirname(os.path.abspath(folder))
    choices = {**choices, **choices_of_tensors(found, architecture)}
    return Description(
        architecture=architecture,
        tables=tables_of(target),
        choices=choices,
        ranks=rank_tensors(found, architecture),
        where=found.folder,
        root=root,
        files=[*found.states, disk.FileState.of(file)],
        config=file,
        notes=notes,
        sidecars=_sidecars(folder),
        parallel=parallel(fields),
        ledger=found.ledger,
        hints=_hints(target, fields, facts, found),
        evidence=evidence,
        losses=[*losses, *found.left(architecture)],
        masters=found.masters,
        training=lambda: _training(found, architecture, choices, _args(fields, sections, file)),
    )


def _training(
    found: FolderContents,
    architecture: Architecture,
    choices: Mapping[str, layouts.Value],
    args: Mapping[str, Any],
) -> reading.SavedTraining | None:
    """The state of the training; the samples that it consumed stand in a file of their own."""
    saved = training_of(found, architecture, choices, args)
    file = os.path.join(found.folder, TRAIN_STATE)
    if saved is None or not os.path.isfile(file):
        return saved
    state, files = torch_files.read_torch_file(file), [disk.FileState.of(file)]
    consumed = state.get(CONSUMED) if isinstance(state, dict) else None
    if consumed is None:
        return saved
    saved.ledger.carried(ledgers.PROGRESS.what, file)
    samples = reading.adam.one_step({CONSUMED: consumed}, file, files)
    state_with = replace(saved.state, consumed_samples=samples)
    return replace(saved, state=state_with, files=[*saved.files, *files])


def _args(fields: Mapping[str, Any], sections: Mapping[str, Any], file: str) -> dict[str, Any]:
    """What a run was told, by the names of Megatron-LM's args: the fields of its model and of its OptimizerConfig, and the condition of weight decay.

    `NotCarried` where a class that is not Bridge's divides the parameters (training/config.py, `OptimizerConfigOverrideProvider`).
    """
    optimizer, scheduler, divides = (_section(sections, name) for name in ("optimizer", "scheduler", _DIVIDES))
    if (target := divides.get("_target_", _DIVIDER)) != _DIVIDER:
        raise errors.NotCarried(
            "which parameters are in which group of the optimizer is decided by a class that is not Bridge's",
            file=file,
            found=f"{_DIVIDES}: {target!r:.80}",
            expected=_DIVIDER,
            fix=optimizer_groups.DROP,
        )
    condition = _condition(scheduler, optimizer, bool(fields.get("qk_layernorm")), file)
    args = {**fields, **optimizer, optimizer_groups.CONDITION: condition}
    # The model's own default for it is in the file. Bridge asks for it in the condition of Qwen3-Next alone (0.2, training/utils/weight_decay_utils.py).
    return args if condition == optimizer_groups.QWEN3_NEXT else {**args, optimizer_groups.EMBEDDING_STD: None}


def _condition(scheduler: Mapping[str, Any], optimizer: Mapping[str, Any], has_norms: bool, file: str) -> Any:
    """The condition of weight decay that a run follows.

    Until Bridge 0.5 it is the scheduler's. Since 0.6 the optimizer says it, as Megatron-LM's does, and what the scheduler says is passed by
    (training/config.py, `build_config_overrides`). `NotCarried` for a model with norms of queries and keys where the optimizer says that they are
    decayed, and the file does not say which of the two versions it is of: 0.3 to 0.5 have the optimizer's key, and do not look at it.
    """
    if _SINCE_0_6 in scheduler:
        return None
    condition, key = scheduler.get(optimizer_groups.CONDITION), optimizer_groups.QK_DECAYED
    if optimizer.get(key) and condition is None and has_norms:
        raise errors.NotCarried(
            "whether the norms of queries and keys have weight decay can't be told: Bridge does what its optimizer says of them since 0.6",
            file=file,
            found=f"optimizer: {key} = true, and a scheduler of an earlier Bridge, without {_SINCE_0_6}",
            expected=f"{_SINCE_0_6} in the scheduler, or {optimizer_groups.CONDITION} = {optimizer_groups.QWEN3_NEXT}",
            fix=f"where the run was of main after June 11, 2026, write '{_SINCE_0_6}: null' into the scheduler of the file; or {optimizer_groups.DROP}",
        )
    return condition


def _section(sections: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    said = sections.get(name)
    return said if isinstance(said, dict) else {}


def _enter_progress(found: FolderContents, folder: str, path: str) -> None:
    """How far the run got: in the folder of the iteration, and (as trackers) in the run's own."""
    if os.path.isfile(state := os.path.join(folder, TRAIN_STATE)):
        found.ledger.left(ledgers.PROGRESS, state, size=os.path.getsize(state))
    for name in (LATEST, TRACKER):
        if path != folder and os.path.isfile(tracker := os.path.join(path, name)):
            found.ledger.used("the iteration to read", tracker)
            if name == LATEST:
                found.ledger.contents(tracker, torch_files.read_torch_file(tracker), TRACKED)


def _losses_of_class(target: str, file: str) -> list[ledgers.Loss]:
    """Refuse the classes of Bridge that do more than their fields say; a class of someone else is taken by its fields."""
    if is_plain(target):
        return []
    if target.startswith("megatron."):
        raise CkptError(
            f"models of {short(target)} are not supported", file=file, found=target, expected="a plain GPTModel"
        )
    return [ledgers.Loss("assumed", target, "no class of Megatron-Bridge's; taken for what its fields say")]


def architecture_of_run(file: str) -> Architecture:
    """What the model of a run is, by its run_config.yaml alone. Raises what its class can't be read as."""
    target, fields = model_section(run_config(disk.read_small(file), file), file)
    _losses_of_class(target, file)
    facts, _ = table_of(target, fields).read(fields, file)
    facts["tokens.vocabulary"] = size = _size(fields, file)
    facts["tokens.padded_vocabulary"] = _rows(fields, size)
    return architecture_of(facts, file)


def _size(fields: Mapping[str, Any], file: str) -> int:
    size = fields.get("vocab_size")
    if type(size) is not int or size < 1:
        raise CkptError(
            "key 'vocab_size' is not a number of tokens", file=file, found=repr(size)[:60], expected="at least 1"
        )
    return size


def _rows(fields: Mapping[str, Any], size: int) -> int:
    """How many rows an embedding of so many tokens has."""
    if not fields.get("should_pad_vocab"):
        return size
    return padded(size, fields.get(DIVISIBLE) or 128, fields.get(RANKS["tp"]) or 1)


def _vocabulary(fields: Mapping[str, Any], found: FolderContents, file: str) -> int:
    """vocab_size, which is that without padding; how many rows there are follows from it."""
    rows, size = found.rows(EMBEDDING), _size(fields, file)
    if rows != (expected := _rows(fields, size)):
        raise CkptError(
            "the embedding has another number of rows than the vocabulary",
            file=found.folder,
            found=f"{rows} rows",
            expected=f"{expected}: vocab_size = {size}, should_pad_vocab = {fields.get('should_pad_vocab', False)}",
        )
    return size


def _sidecars(folder: str) -> dict[str, company.Sidecar]:
    tree = trees.open_tree(folder).below(TOKENIZER)
    extents = {name: tree[name] for name in sorted(tree.files)}
    return {name: company.Sidecar(extent.file, extent.size, extent.offset) for name, extent in extents.items()}


def _hints(target: str, fields: Mapping[str, Any], facts: Facts, found: FolderContents) -> dict[str, Any]:
    """The choices by which the same checkpoint can be written again."""
    hints = layout_hints(fields, facts, found) | {
        "class": target,
        "container": found.container,
        "should_pad_vocab": bool(fields.get("should_pad_vocab")),
        "bridge_version": version_of(target, fields),
    }
    return hints | ({"iteration": found.iteration} if isinstance(found.iteration, int) else {})
