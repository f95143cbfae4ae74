"""Reading the ZeRO or universal checkpoint of a transformers model."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    CkptError,
    Description,
    FormatError,
    RankTensors,
    ReadRequest,
    StoredTensor,
    company,
    disk,
    errors,
    layouts,
    lazy,
    ledgers,
    reading,
    schema,
    torch_files,
)
from ckpt_deepspeed import zero
from ckpt_deepspeed.contents import STATES
from ckpt_deepspeed.files import (
    LATEST,
    LATEST_UNIVERSAL,
    UNIVERSAL,
    Folder,
    find_folder,
    ranks,
    read_states,
    scan,
    section,
)
from ckpt_deepspeed.flat import Flat, Kept, shards_of
from ckpt_deepspeed.training import check_steps, training_in
from ckpt_deepspeed.universal import read_universal
from ckpt_hf.sdk import CONFIG, TransformersModel, model_of_config

# Files of a run of DeepSpeed or of transformers' Trainer, and of ours.
_OWN_FILES = {CONFIG, LATEST, LATEST_UNIVERSAL, "zero_to_fp32.py", "trainer_state.json"}
_OWN_STARTS = (".", "ckpt-receipt", "rng_state")
_STEPS = "global_steps"
_OWN_ENDS = (".pt", ".pth", ".bin", ".safetensors", ".index.json")


@schema.dataclass
class ModelWeights:
    """What the files keep under transformers' names: `kept` is read, and must round to what `rounded` has.

    `aliases` are further names of tensors, by whose name in `kept`. `parts` are the files of ZeRO's ranks, where those are read, and `by`
    says how.
    """

    kept: dict[str, Kept]
    rounded: dict[str, StoredTensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    parallel: dict[str, int] = field(default_factory=dict)
    hints: dict[str, Any] = field(default_factory=dict)
    evidence: list[str] = field(default_factory=list)
    masters: bool = False
    parts: Sequence[zero.Partition] = ()
    by: str = ""


def read(path: str, request: ReadRequest) -> Description:
    """What lies at the folder of a step, or at the run folder that holds it."""
    folder = scan(find_folder(path))
    weights = _weights(folder, request.weights)
    beside = _config_beside(path, folder.path)
    config = request.config or beside
    if config is None:
        raise CkptError(
            "nothing says what the model is: DeepSpeed keeps names and tensors, and no config",
            file=path,
            fix=f"give the model's {CONFIG} with --config, or put it beside the step's folder",
        )
    check_steps(weights.parts)
    names = weights.kept.keys() - weights.aliases.keys()

    def are_same(one: str, other: str) -> bool:
        held = weights.kept
        return {one, other} <= held.keys() and lazy.are_equal(
            shards_of(held[one]), shards_of(held[other]), folder.states
        )

    def model_in(file: str) -> TransformersModel:
        without = functools.partial(reading.without_ignored, request=request, ledger=folder.ledger, file=file)
        return model_of_config(file, names, are_same, without)

    model = model_in(config)
    said: Architecture | None = None
    if beside is not None and beside != config:
        said = model_in(beside).architecture
    dropped = [name for name in sorted(weights.kept) if any(table.drops_name(name) for table in model.tables)]
    return Description(
        architecture=model.architecture,
        tables=model.tables,
        ranks=[_rank_tensors(weights, model, folder.path)],
        where=folder.path,
        root=path,
        files=[*folder.states, disk.FileState.of(config)],
        config=beside,
        said=said,
        notes=model.notes,
        sidecars=_sidecars(beside, path),
        parallel=weights.parallel,
        ledger=folder.enter(path, masters_read=request.weights != "model"),
        hints=weights.hints,
        origins={"hf": model.hints},
        evidence=[*weights.evidence, f"{model.class_name} of format hf by {config}"],
        losses=[*model.losses, *(ledgers.Loss("dropped", name, "not a weight of the model") for name in dropped)],
        masters=weights.masters,
        training=lambda: _training(folder, weights, model, request.weights),
    )


def _training(
    folder: Folder, weights: ModelWeights, model: TransformersModel, asked: str
) -> reading.SavedTraining | None:
    if asked == "model" and (folder.optimizers or folder.universal):
        raise errors.NotCarried(
            "the weights in the training dtype are not what the optimizer steps",
            file=folder.path,
            fix="leave out --weights model",
        )
    return training_in(folder, _models(folder)[0], weights.parts, weights.by, weights.aliases, model)


def _config_beside(path: str, folder: str) -> str | None:
    """The `config.json` in the folder of the step, or in one around it; None if there is none."""
    for place in (path, folder, os.path.dirname(os.path.abspath(folder))):
        file = os.path.join(place, CONFIG)
        if os.path.isfile(file):
            return file
    return None


def _sidecars(beside: str | None, path: str) -> dict[str, company.Sidecar]:
    """The files of the model: all that are not a run's where its config lies among them, else those that are known."""
    if beside is None:
        return company.companions_of(os.path.join(path, CONFIG))
    return company.files_in(os.path.dirname(os.path.abspath(beside)), _is_companion)


def _is_companion(name: str) -> bool:
    return not (name in _OWN_FILES or name.startswith(_OWN_STARTS) or name.endswith(_OWN_ENDS))


def _rank_tensors(weights: ModelWeights, model: TransformersModel, where: str) -> RankTensors:
    """The tensors of the one rank that there is. An alias of the tables lies nowhere but under its owner's name."""
    natives = layouts.BoundTables(model.tables, model.architecture).natives()
    aliases = {name for name, native in natives.items() if native.row.copy}
    return RankTensors(
        {},
        {
            name: shards_of(kept, natives[name].shape if name in natives else None)
            for name, kept in weights.kept.items()
            if name not in aliases & weights.aliases.keys()
        },
        where,
        rounded={name: stored for name, stored in weights.rounded.items() if name not in aliases},
    )


# --- what the files keep -------------------------------------------------------------------------------------------


def _weights(folder: Folder, weights: str) -> ModelWeights:
    models = _models(folder)
    for file, states in models:
        folder.ledger.contents(file, states, STATES)
    path, first = models[0]
    module = _module(first, path)
    aliases = {str(alias): str(owner) for alias, owner in section(first, "shared_params", path).items()}
    stored = {name: tensor for name, tensor in module.items() if tensor.elements}
    if weights == "model":
        return _module_weights(folder, stored, len(module), aliases, path)
    if folder.universal:
        found = _universal_weights(folder, first, path, aliases)
    elif folder.optimizers:
        found = _partitioned_weights(folder, models, stored)
    else:
        return _unpartitioned_weights(folder, first, stored, aliases, path, weights)
    found.kept |= zero.frozen(models)
    found.aliases = aliases
    found.rounded = {name: stored[name] for name in found.kept if name in stored}
    if found.rounded:
        found.hints["module"] = next(iter(found.rounded.values())).dtype.name
    # What has no gradient and is not frozen by name: buffers.
    found.kept |= {name: tensor for name, tensor in stored.items() if name not in found.kept and name not in aliases}
    return _with_aliases(found, path)


def _universal_weights(
    folder: Folder, states: Mapping[str, Any], path: str, aliases: Mapping[str, str]
) -> ModelWeights:
    known = zero.param_shapes(states, path) if states.get("param_shapes") is not None else []
    shapes = {name: shape for group in known for name, shape in group.items()}
    masters = read_universal(folder, aliases, shapes)
    hints = {"flat": any(isinstance(one, Flat) for one in masters.values())}
    evidence = f"weights: the fp32 parameters of {os.path.basename(folder.path)}/{UNIVERSAL}"
    return ModelWeights(masters, hints=hints, evidence=[evidence], masters=True)


def _partitioned_weights(
    folder: Folder, models: Sequence[tuple[str, Mapping[str, Any]]], stored: Mapping[str, StoredTensor]
) -> ModelWeights:
    path, first = models[0]
    parts = zero.partitions(folder, 0, models)
    fitting = zero.fitting(zero.readings(first, path, parts), stored, parts[0].path)
    evidence = (
        f"weights: the fp32 masters of {len(parts)} ZeRO partitions, by {fitting.by}; DeepSpeed loads them itself"
    )
    found = ModelWeights(dict(fitting.masters), parallel={"dp": len(parts)}, evidence=[evidence], masters=True)
    found.parts, found.by = parts, fitting.by
    return found


def _with_aliases(found: ModelWeights, path: str) -> ModelWeights:
    for alias, owner in found.aliases.items():
        if owner not in found.kept:
            raise FormatError(
                f"shared_params names a parameter that is not there: {owner!r}",
                file=path,
                found=f"the owner of {alias!r}",
            )
        found.kept.setdefault(alias, found.kept[owner])
    return found


def _models(folder: Folder) -> list[tuple[str, Mapping[str, Any]]]:
    """The model states, one per data parallel rank under ZeRO-3, else one."""
    numbers = {mp for mp, _ in folder.partitioned} | set(folder.models)
    if ranks(numbers, "model parallel rank", folder.path) > 1:
        raise CkptError(
            "the model is divided over tensor parallel ranks of DeepSpeed, which is not supported",
            file=folder.path,
            found=f"{len(numbers)} model parallel ranks",
        )
    if not folder.partitioned:
        return [(folder.models[0], read_states(folder.models[0]))]
    if folder.models:
        raise FormatError(
            "model states of ZeRO-3 lie beside others",
            file=folder.models[0],
            found=folder.partitioned[0, 0],
            fix="remove the stale ones",
        )
    count = ranks({dp for _, dp in folder.partitioned}, "data parallel rank", folder.path)
    found = [(folder.partitioned[0, dp], read_states(folder.partitioned[0, dp])) for dp in range(count)]
    reading.adam.check_progress({path: {_STEPS: states.get(_STEPS)} for path, states in found})
    return found


def _module(states: Mapping[str, Any], path: str) -> dict[str, StoredTensor]:
    """The weights in the training dtype by name; under ZeRO-3 all are empty."""
    module = section(states, "module", path)
    if "language_model" in module:
        raise CkptError(
            "this is a model of Megatron-DeepSpeed without a pipeline module, which is not supported",
            file=path,
            found="module.language_model",
            expected="layer_*-model_* files, as are saved without --no-pipeline-parallel",
        )
    problems = errors.Problems(f"reading {path}")
    for name, value in module.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            problems.add(
                FormatError(
                    f"the entry {torch_files.brief(name)} of module is not a tensor",
                    file=path,
                    found=torch_files.brief(value),
                )
            )
    problems.raise_any()
    return dict(module)


def _module_weights(
    folder: Folder, stored: dict[str, StoredTensor], names: int, aliases: dict[str, str], path: str
) -> ModelWeights:
    if len(stored) != names or not stored:
        raise CkptError(
            "the files hold no weights but the fp32 masters",
            file=path,
            found="empty tensors, as ZeRO-3 leaves them" if names else "no module",
            fix="use --weights master",
        )
    return ModelWeights(
        dict(stored),
        aliases={},
        evidence=["weights: the module in the training dtype"],
        masters=bool(folder.optimizers or folder.universal),
    )


def _unpartitioned_weights(
    folder: Folder,
    states: Mapping[str, Any],
    stored: dict[str, StoredTensor],
    aliases: dict[str, str],
    path: str,
    weights: str,
) -> ModelWeights:
    """A checkpoint without optimizer files: of plain DeepSpeed, whose bf16 optimizer keeps its masters in the model states."""
    groups = section(states, "optimizer", path).get("fp32_groups")
    if isinstance(groups, list) and groups:
        masters = _by_values(groups, {name: tensor for name, tensor in stored.items() if name not in aliases}, path)
        found = ModelWeights(dict(masters), {name: stored[name] for name in masters}, aliases, masters=True)
        found.kept |= {
            name: tensor for name, tensor in stored.items() if name not in found.kept and name not in aliases
        }
        found.evidence.append(
            "weights: the fp32 masters of the optimizer, each matched to the weight that it rounds to"
        )
        return _with_aliases(found, path)
    exact = all(tensor.dtype.name == "fp32" for tensor in stored.values())
    if weights == "master" and not exact:
        raise errors.NotCarried(
            "there are no fp32 masters: no *_optim_states.pt lies in the folder",
            file=folder.path,
            fix="use --weights model",
        )
    found = _module_weights(folder, stored, len(section(states, "module", path)), aliases, path)
    found.masters = exact
    return found


def _by_values(groups: Sequence[object], stored: Mapping[str, StoredTensor], path: str) -> dict[str, Kept]:
    """Masters without names, in the order of the model within each group: each is that of the first weight it rounds to.

    The choice is from a few values; all are compared while the masters are read.
    """
    found: dict[str, Kept] = {}
    for number, group in enumerate(groups):
        left = iter(stored.items())
        for master in group if isinstance(group, list) else [group]:
            if not isinstance(master, StoredTensor):
                raise FormatError(
                    f"optimizer.fp32_groups[{number}] does not hold tensors alone",
                    file=path,
                    found=torch_files.brief(master),
                )
            flat = Flat((zero.piece(master, 0, master.elements),), master.shape)
            name = next(
                (
                    name
                    for name, weight in left
                    if name not in found and weight.shape == master.shape and zero.rounds(flat, weight)
                ),
                None,
            )
            if name is None:
                raise FormatError(
                    f"a master of optimizer.fp32_groups[{number}] rounds to no weight of the model",
                    file=path,
                    found=f"shape {master.shape}",
                    fix="use --weights model",
                )
            found[name] = flat
    return found
