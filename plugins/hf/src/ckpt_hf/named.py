"""Transformers models whose tensors another format keeps: DeepSpeed's ZeRO and universal folders do."""

from __future__ import annotations

from collections.abc import Collection

from ckpt_core.sdk import Checkpoint, NamedModel, architecture_of, documents, storage_dtype
from ckpt_hf.classes import code_beside, family_of
from ckpt_hf.files import CONFIG
from ckpt_hf.names import matching
from ckpt_hf.write import choose, config_text, losses_of, settings_beside, settings_said


def named(path: str, names: Collection[str]) -> NamedModel | None:
    """The model of a `config.json` whose tensors are called `names`; None if the file is none of transformers."""
    if not path.endswith(".json"):
        return None
    config = documents.read_json_object(path)
    if "model_type" not in config:
        return None
    family = family_of(config, path)
    facts, notes = family.config.read(family.as_stored(config, names), path)
    architecture = architecture_of(facts, path)
    arrangement = family.arranged_by(config)
    match = matching(family.spellings(arrangement), names, architecture, family.leftovers)
    hints = {"model_type": family.model_type, "arrangement": arrangement}
    return NamedModel(
        family.class_name,
        architecture,
        [*match.layout.tables, match.leftovers],
        notes,
        hints,
        losses=list(code_beside(config, family)),
    )


def name(checkpoint: Checkpoint) -> NamedModel:
    """`checkpoint` as the transformers model that holds it exactly; `Refusal` if no class does."""
    fit = choose(checkpoint)
    dtypes = [storage_dtype(native, fit.model.tensors, None).torch for native in fit.natives()]
    return NamedModel(
        fit.family.class_name,
        fit.model.architecture,
        fit.tables,
        tensors=fit.model.tensors,
        documents={CONFIG: config_text(fit, dtypes), **settings_beside(checkpoint, fit.model)},
        rewrites=fit.model.rewrites,
        losses=list(losses_of(checkpoint, fit)),
        said=fit.said | settings_said(checkpoint),
        tokens=fit.tokens,
    )
