"""Which transformers class a config names, and the code of its own that it names beside it.

`model_type` says how the config is read, `architectures` which class was saved: the same config stands beside a language
model, a bare model, a classifier and a reward model. `auto_map` names code in the folder, which then is the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from ckpt_core.sdk import CkptError, errors, ledgers
from ckpt_hf.config import BY_TYPE, CLASS_NAMES, FAMILIES, classes_of

if TYPE_CHECKING:
    from ckpt_hf.common import Family

# What a class that is none of ours ends in, by the end of its name.
_ENDS = {
    "ForSequenceClassification": "a classifier, or a reward model: its head gives scores and no tokens",
    "ForRewardModel": "a reward model: its head gives scores and no tokens",
    "RewardModel": "a reward model: its head gives scores and no tokens",
    "ForTokenClassification": "a classifier of tokens",
    "ForQuestionAnswering": "its head marks the ends of an answer",
    "DoubleHeadsModel": "it has a second head",
    "EncoderModel": "an encoder alone",
    "Model": "a bare model: it has no head",
}


def family_of(
    config: Mapping[str, object], file: str, read_as: str = "", fitting: Callable[[], list[str]] | None = None
) -> Family:
    """The family of the class that a config names, by `architectures` and `model_type`; `read_as` overrules both.

    Raises an error that names the class where it is none that is read, and proposes one: the usual one of the type or, where it is known what the
    tensors are called, one of those that are `fitting`.
    """
    if read_as:
        return _called(read_as)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in BY_TYPE:
        raise _unsupported(kind, file)
    named = config.get("architectures")
    if named is None or named == []:
        return BY_TYPE[kind]
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise CkptError("key 'architectures' is not a list of classes", file=file, found=repr(named)[:80])
    # FSDP2 renames the class of what it shards, and transformers saved that name (until it took it off again, modeling_utils.py 5).
    classes = {name: _class_of(kind, name.removeprefix("FSDP")) for name in named}
    families = {id(family): family for family in classes.values() if family is not None}
    unknown = [name for name, family in classes.items() if family is None]
    if unknown or len(families) != 1:
        raise _not_read(kind, unknown or named, file, fitting)
    return next(iter(families.values()))


def _unsupported(kind: object, file: str) -> CkptError:
    from ckpt_hf.options import PART
    from ckpt_hf.wholes import WHOLES

    if isinstance(kind, str) and kind in WHOLES:
        return CkptError(
            f"{WHOLES[kind].class_name} sees, and is not read whole",
            file=file,
            found=f"model_type = {kind!r}",
            fix=f"take the language model out of its folder: ckpt convert FOLDER OUT --to FORMAT -o {PART.name}=language",
        )
    return CkptError(
        "this model_type is not supported",
        file=file,
        found=repr(kind)[:80],
        expected=", ".join(BY_TYPE),
        fix=errors.did_you_mean(str(kind), BY_TYPE),
    )


def code_beside(config: Mapping[str, object], family: Family) -> Iterator[ledgers.Loss]:
    """The code that `auto_map` makes the model's own: it is not looked at, so what it changes is not carried.

    Code of tokenizers and processors is none of the model; it travels with their files.
    """
    auto = config.get("auto_map")
    code: dict[str, list[str]] = {}
    for role, reference in auto.items() if isinstance(auto, dict) else []:
        if str(role) == "AutoConfig" or str(role).startswith("AutoModel"):
            code.setdefault(_file_of(str(reference)), []).append(str(role))
    for name, roles in code.items():
        yield ledgers.Loss(
            "assumed",
            name,
            f"the config says by auto_map that this code is the model ({', '.join(roles)}); it was not looked at: read as "
            f"{family.class_name} of transformers, and what the code changes is not carried",
        )


def _file_of(reference: str) -> str:
    """The file of a class as `auto_map` names it: "module.Class" beside it, or "owner/name--module.Class" elsewhere."""
    place, dashes, name = reference.rpartition("--")
    return f"{name.rpartition('.')[0]}.py" + (f" of {place}" if dashes else "")


def _called(name: str) -> Family:
    for family in FAMILIES:
        if name in family.class_names:
            return family
    raise CkptError(
        f"option read_as has no class {name!r}",
        expected=", ".join(CLASS_NAMES),
        fix=errors.did_you_mean(name, CLASS_NAMES),
    )


def _class_of(kind: str, name: str) -> Family | None:
    return next((family for family in classes_of(kind) if name in family.class_names), None)


def _not_read(kind: str, named: list[str], file: str, fitting: Callable[[], list[str]] | None) -> CkptError:
    known = [family.class_name for family in classes_of(kind)]
    what = next(
        (said for end, said in _ENDS.items() if named[0].endswith(end)), "it is none of transformers' that is read"
    )
    if any(named[0] in family.class_names for family in FAMILIES):
        what = f"its configs are of another model_type than {kind!r}"
    proposed = known[:1] if fitting is None else fitting()
    elsewhere = "" if fitting is not None else ", or, where format hf does not read them, write that into the file"
    options = " or ".join(f"-o read_as={name}" for name in proposed)
    fix = f"if the weights are those of {' or '.join(proposed)} all the same, insist with {options}{elsewhere}"
    return CkptError(
        f"the class {', '.join(map(repr, named))} of key 'architectures' is not read as {kind}: {what}",
        file=file,
        found=f"architectures = {named}",
        expected=" or ".join(known),
        fix=fix if proposed else None,
    )
