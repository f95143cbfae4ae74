"""Models of transformers in the files of other frameworks: what a plugin whose format keeps such a model imports.

DeepSpeed and others save the tensors of a transformers model under the names that they have in its class, and no config, or
transformers' own. Their plugins say where the tensors lie; what is in them, and which config belongs to them, is said here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    Checkpoint,
    CkptError,
    Refusal,
    Table,
    architecture_of,
    documents,
    dtypes,
    layouts,
    lazy,
    ledgers,
    rewrites,
    schema,
)
from ckpt_hf.classes import code_beside, family_of
from ckpt_hf.common import Same, none_same
from ckpt_hf.files import CONFIG, config_in
from ckpt_hf.names import matching
from ckpt_hf.trainer import SAID_BESIDE, Progress, progress_beside, progress_documents, replaced
from ckpt_hf.training import state_of_training
from ckpt_hf.write import choose, config_text, losses_of, settings_beside, settings_said

__all__ = [
    "CONFIG",
    "SAID_BESIDE",
    "ModelInMemory",
    "Progress",
    "TransformersModel",
    "model_in_memory",
    "model_of_checkpoint",
    "model_of_config",
    "progress_beside",
    "progress_documents",
    "replaced",
    "state_of_training",
]


@schema.dataclass(frozen=True)
class TransformersModel:
    """A transformers model whose tensors another framework's files keep.

    `class_name` is its class, and `tables` say which of its tensors holds what; what they drop may lie beside the model.
    `losses` is what the model lacks, or what is assumed of it.

    Of a config: `notes` is what it says besides the architecture. `hints` are the choices of an HF folder of this model:
    the `origins` of a checkpoint, under `hf`.

    Of a checkpoint: `tensors` are its parameters as the class must have them, after the exact `rewrites` that led there.
    `documents` are the config files that describe the model, by path. `said` and `tokens` are those of a `Target` and of
    its decisions.
    """

    class_name: str
    architecture: Architecture
    tables: Sequence[Table]
    losses: Sequence[ledgers.Loss] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    hints: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, lazy.LazyParameter] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)
    rewrites: Sequence[str] = ()
    said: Mapping[str, Any] = field(default_factory=dict)
    tokens: Sequence[str] = ()


def model_of_config(
    path: str,
    names: Collection[str],
    same: Same = none_same,
    without: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> TransformersModel:
    """The model of the `config.json` at `path`, whose tensors are called `names` in the files of another framework.

    The names may all have a prefix that their wrappers left. `same` tells whether the tensors of two names hold the same elements,
    by which transformers itself knows some tied heads; without it none do. `without` takes out what the user wants left out (`reading.without_ignored`). Raises an error if the file is not a config of transformers,
    if it is one of a class that is not read, or if the names can be read in several ways.
    """
    config = config_in(path)
    if config is None:
        raise CkptError(
            "this is not a config of transformers", file=path, expected=f"a {CONFIG} with the key model_type"
        )
    config = dict(without(config))
    family = family_of(config, path)
    facts, notes = family.config.read(family.as_stored(config, names, same), path)
    architecture = architecture_of(facts, path)
    arrangement = family.arranged_by(config)
    match = matching(family.spellings(arrangement), names, architecture, family.leftovers)
    if not match.complete:
        from ckpt_hf.unnamed import check_class

        check_class(config, path, family, names, same, 'if that is right, add to the config: "architectures": ["{}"]')
    return TransformersModel(
        family.class_name,
        architecture,
        match.tables,
        losses=list(code_beside(config, family)),
        notes=notes,
        hints={"model_type": family.model_type, "arrangement": arrangement},
    )


def model_of_checkpoint(
    checkpoint: Checkpoint, *, held: bool = False, among: Collection[str] = ()
) -> TransformersModel:
    """`checkpoint` as the transformers model that holds it exactly. Raises `Refusal` naming what no class can hold.

    `among` are the names of the only classes that the other framework has. Layers that predict further tokens are refused: no class
    of transformers has them in memory.

    Its tensors have the names of saved files; with `held` those of the module that transformers 5 has in memory, which
    differ for some classes: experts are fused there.
    """
    decoder = checkpoint.architecture.decoder
    if decoder is not None and decoder.predictors is not None:
        raise Refusal(
            "a transformers model in memory has no layers that predict further tokens",
            found=f"predictors.count = {decoder.predictors.count}",
            fix="leave them out with -o predictors=drop: the model's own logits do not depend on them",
            fact="predictors.*",
        )
    fit = choose(checkpoint, among=among)
    builder = fit.builder()
    dtype = dtypes.commonest(map(builder.dtype_of, fit.natives(builder)))
    return TransformersModel(
        fit.family.class_name,
        fit.model.architecture,
        fit.family.spellings(fit.family.arranged_by(fit.config))[-1] if held else fit.tables,
        losses=list(losses_of(checkpoint, fit)),
        tensors=fit.model.tensors,
        documents={CONFIG: config_text(fit, dtype), **settings_beside(checkpoint, fit.model)},
        rewrites=fit.model.rewrites,
        said=fit.said | settings_said(checkpoint),
        tokens=fit.tokens,
    )


@schema.dataclass(frozen=True)
class ModelInMemory:
    """A transformers model as a program holds it that changes single modules of it: PEFT does.

    `names` has every tensor under each name that a version of transformers has for it: those of files, and those in memory, where
    version 5 fuses the experts. `tensors` are its parameters as the class must have them, after the exact `rewrites` that led there.
    """

    class_name: str
    architecture: Architecture
    tensors: Mapping[str, lazy.LazyParameter]
    names: Mapping[str, layouts.Native]
    rewrites: Sequence[str] = ()


def model_in_memory(checkpoint: Checkpoint, wanted: str = "") -> ModelInMemory:
    """`checkpoint` as transformers holds it. A checkpoint of format `hf` has the class that its config names, any other the class
    `wanted`, or the first one that holds it exactly. Raises `Refusal` naming what no class can hold.
    """
    if checkpoint.format == "hf":
        folder = checkpoint.path if os.path.isdir(checkpoint.path) else os.path.dirname(checkpoint.path) or "."
        file = os.path.join(folder, CONFIG)
        config: Mapping[str, Any] = documents.read_json_object(file)
        family = family_of(config, file)
        model = rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors)
    else:
        fit = choose(checkpoint, wanted)
        config, family, model = fit.config, fit.family, fit.model
    names: dict[str, layouts.Native] = {}
    for tables in reversed(family.spellings(family.arranged_by(config))):
        names |= layouts.BoundTables(tables, model.architecture).natives()
    return ModelInMemory(family.class_name, model.architecture, model.tensors, names, model.rewrites)
