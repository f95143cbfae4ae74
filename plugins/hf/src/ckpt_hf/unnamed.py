"""Which class the tensors are of, where a config does not name it: the same `model_type` stands beside a language model, a bare model and a classifier."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ckpt_core.sdk import CkptError, architecture_of
from ckpt_hf.common import Family, Same
from ckpt_hf.config import classes_of
from ckpt_hf.names import NOTHING, matching


def fitting(config: Mapping[str, Any], file: str, names: Collection[str], same: Same) -> list[str]:
    """The classes of the `model_type` of a config that explain all tensors of these `names`, and lack none."""
    found = []
    for family in classes_of(str(config.get("model_type"))):
        try:
            said = family.as_stored(family.plain(dict(config), file), names, same)
            architecture = architecture_of(family.config.read(said, file)[0], file)
            leftovers = NOTHING if architecture.decoder and architecture.decoder.predictors else family.leftovers
            if matching(family.spellings(family.arranged_by(config)), names, architecture, leftovers).complete:
                found.append(family.class_name)
        except CkptError:
            continue  # a class whose config says otherwise is not the one
    return found


def check_class(
    config: Mapping[str, Any], file: str, family: Family, names: Collection[str], same: Same, fix: str
) -> None:
    """Raise a `CkptError` that proposes the class whose tensors are called `names`, where `config` names none and `family`, the usual one, calls them otherwise.

    Where no class fits, it raises nothing: the reader says what is missing. `fix` is how the user says the class, with {} for its name.
    """
    if config.get("architectures"):
        return
    others = [name for name in fitting(config, file, names, same) if name != family.class_name]
    if others:
        raise CkptError(
            f"the config does not name the class of the model, and the tensors are not those of {family.class_name}",
            file=file,
            found=f"model_type = {config.get('model_type')!r}, and the tensors of {' or '.join(others)}",
            expected="key 'architectures'",
            fix=" or ".join(fix.format(name) for name in others),
        )
