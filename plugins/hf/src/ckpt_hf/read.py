"""What lies in an HF folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ckpt_core.sdk import (
    Architecture,
    CkptError,
    Config,
    Description,
    Facts,
    RankTensors,
    ReadRequest,
    architecture_of,
    configs,
    disk,
    documents,
    errors,
    layouts,
    ledgers,
    reading,
)
from ckpt_hf import heads
from ckpt_hf.classes import code_beside, family_of
from ckpt_hf.files import CONFIG, SECTION, StoredFiles, config_in, read_tensors, sidecars
from ckpt_hf.names import NOTHING, Match, matching
from ckpt_hf.options import PART
from ckpt_hf.predictors import KEYS, NOT_STORED, without_predictors
from ckpt_hf.quantised.folding import folded, said_in, with_side_file
from ckpt_hf.quantised.said import HINT
from ckpt_hf.sets import OPTION, WeightSet, check_outside, chosen_set, enter_left_out
from ckpt_hf.training import OPTIMIZER

if TYPE_CHECKING:
    from ckpt_hf.common import Family
    from ckpt_hf.parts import Part


def architecture_in(path: str) -> Architecture | None:
    """The architecture in an HF config file, for `--config`; None if the file is not one."""
    said = _said_in(path)
    return None if said is None else architecture_of(said[0], path)


def notes_in(path: str) -> dict[str, Any] | None:
    """The notes in an HF config file, for `--config`; None if the file is not one."""
    said = _said_in(path)
    return None if said is None else said[1]


def _said_in(path: str) -> tuple[Facts, dict[str, Any]] | None:
    config = config_in(path)
    # A config alone does not say whether the files have the layers that it counts.
    if config is None:
        return None
    family = family_of(config, path)
    config, _ = said_in(config, path)
    return family.config.read(without_predictors(family.plain(config, path)), path)


def read(path: str, request: ReadRequest) -> Description:
    """What lies in an HF folder, or in one weight file, with the config beside it, or that of `--config` where there is none."""
    if request.weights == "master":
        raise errors.NotCarried("an HF folder has no fp32 masters", file=path, fix="use --weights model")
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    own = os.path.join(folder, CONFIG)
    has_config = os.path.isfile(own)
    config_file = own if has_config else request.config
    if config_file is None or (not has_config and config_in(config_file) is None):
        raise CkptError(
            "there is no config.json" if config_file is None else "this is not a config of transformers",
            file=path if config_file is None else config_file,
            fix="give the folder of the model, with its config.json, or the config.json with --config",
        )
    ledger = ledgers.Ledger()
    config = reading.without_ignored(documents.read_json_object(config_file), request, ledger, config_file)
    config, said_of_codes = said_in(config, config_file)
    part = _part_of(config, config_file, request)
    read_as = str(request.options.get("read_as") or "")
    if part and read_as:
        raise errors.UsageError("-o part and -o read_as both say what the weights are", fix="give one of them")
    weights = _weight_set(path, folder, str(request.options.get(OPTION) or ""))
    family = (
        part.family
        if part
        else family_of(config, config_file, read_as, lambda: _fitting(config, config_file, folder, weights))
    )
    stored = read_tensors(folder, weights.files, weights.index)
    said_of_codes = with_side_file(said_of_codes, folder, config, ledger)
    quantised = folded(stored.tensors, said_of_codes, ledger, folder)
    stored.tensors = quantised.tensors
    whole, config = config, part.with_head(stored.tensors) if part else family.plain(config, config_file)
    if reading.drops_predictors(request):
        said = without_predictors(config)
    else:
        said = family.as_stored(config, stored.tensors.keys(), stored.are_same)
    try:
        facts, notes = family.config.read(said, config_file)
    except CkptError:
        _check_class(whole, config_file, family, stored, given=bool(part or read_as))
        raise
    _enter_config(ledger, config_file, whole, config, said, family, part, reading.drops_predictors(request))
    enter_left_out(ledger, folder, weights)
    architecture = architecture_of(facts, config_file)
    arrangement = family.arranged_by(config)
    leftovers = NOTHING if facts.present("predictors") else family.leftovers
    shapes = {name: tensor.shape for name, tensor in stored.tensors.items()}
    made = {**arrangement, **({} if part else family.by_shapes(architecture, shapes))}
    spellings = family.spellings(made)
    if part:
        spellings, leftovers = part.spellings(spellings, stored.tensors), part.leftovers(leftovers)
    match = matching(spellings, stored.tensors, architecture, leftovers)
    if not match.complete:
        _check_class(whole, config_file, family, stored, given=bool(part or read_as))
    if os.path.isdir(path) and not request.options.get(OPTION):
        check_outside(folder, weights, match.natives)
    evidence = [part.evidence if part else f"{family.class_name} by model_type={family.model_type!r}"]
    if match.spelling.hints():
        evidence.append(f"names of tensors {match.spelling}, as every one of them bears out")
    if stored.wrapper:
        evidence.append(f"weights: the {stored.wrapper!r} of what the file holds")
    evidence += quantised.evidence
    # a model that sees is written back as it was found: the versions of transformers save it under other names
    as_found = family.choices(made)[match.number] if family.head is heads.SEES else {}
    beside = os.path.isdir(path) and part is None
    companions = sidecars(folder) if has_config or os.path.isdir(path) else {}  # around a lone file lies anything
    names = match.spelling.hints() | ({"wrapper": stored.wrapper} if stored.wrapper else {})
    noted = {name: notes[name] for name in family.noted if name in notes}
    return Description(
        architecture=architecture,
        tables=match.tables,
        ranks=[RankTensors({}, stored.tensors, folder)],
        where=folder,
        files=[*stored.states, disk.FileState.of(config_file)],
        config=config_file if has_config else None,
        notes=notes,
        sidecars=part.companions(companions, ledger) if part else companions,
        ledger=ledger,
        hints={
            "model_type": family.model_type,
            "arrangement": arrangement,
            **({"names": names} if names else {}),
            **({"noted": noted} if noted else {}),
            **({"choices": as_found} if as_found else {}),
            **({HINT: quantised.hint} if quantised.hint else {}),
        },
        evidence=evidence,
        losses=[
            *code_beside(whole, family),
            *stored.losses,
            *quantised.losses,
            *(part.losses(match, stored.tensors) if part else _unread(match, stored.tensors)),
        ],
        training=(lambda: _training_beside(folder, family, arrangement, architecture)) if beside else None,
        natives=match.natives,
    )


def _enter_config(
    ledger: ledgers.Ledger,
    file: str,
    whole: Mapping[str, Any],
    config: Mapping[str, Any],
    said: Mapping[str, Any],
    family: Family,
    part: Part | None,
    dropped: bool,
) -> None:
    """What became of the keys of a config: `whole` as it is in the file, `config` of the family alone, `said` what was read of that.

    `dropped`: the user wants the layers that predict further tokens left out.
    """
    if part:
        part.enter(ledger, file, whole)
    else:
        ledger.config(file, {key: ("used", "") for key in whole if key not in config})  # said in a section
        ledger.config(file, family.config.fates(said))
        for entry in family.config.entries if family.head is heads.SEES else ():
            if isinstance(entry, configs.Nested) and isinstance(said.get(entry.key), dict):
                inner = Config(entry.key, entry.lines).fates(said[entry.key])
                known = {key: fate for key, fate in inner.items() if key in (whole.get(entry.key) or whole)}
                ledger.config(file, known, entry.key if entry.key in whole else "")
    counted = [(part.section if part else "", config, said)]
    if family.head is heads.SEES:
        counted.append((SECTION if SECTION in whole else "", config[SECTION], said[SECTION]))
    for section, given, kept in counted:
        left = [key for key in KEYS if key in given and key not in kept]
        why = "as -o predictors=drop asks" if dropped else NOT_STORED
        ledger.config(file, dict.fromkeys(left, ("left", why)), section)
    ledger.used("class of the model", file, "model_type", "architectures")


def _fitting(config: dict[str, Any], file: str, folder: str, weights: WeightSet) -> list[str]:
    """The classes of the type of a config that fit the tensors of a folder, by their names."""
    from ckpt_hf.unnamed import fitting

    stored = read_tensors(folder, weights.files, weights.index)
    return fitting(config, file, stored.tensors.keys(), stored.are_same)


def _check_class(config: dict[str, Any], file: str, family: Family, stored: StoredFiles, given: bool) -> None:
    """Propose the class that the tensors are of, where nobody named one; `given`: the user did."""
    if not given:
        from ckpt_hf.unnamed import check_class

        names = stored.tensors.keys()
        check_class(config, file, family, names, stored.are_same, "if that is right, say so: -o read_as={}")


def _part_of(config: dict[str, Any], file: str, request: ReadRequest) -> Part | None:
    """The language model of a model that sees, where the user wants it and not the whole."""
    if request.options.get(PART.name) != "language":
        return None
    from ckpt_hf.parts import language_in

    return language_in(config, file)


def _training_beside(
    folder: str, family: Family, arrangement: Mapping[str, layouts.Value], architecture: Architecture
) -> reading.SavedTraining | None:
    """The state of the training beside a model of this class; None where there is no optimizer."""
    if not os.path.isfile(os.path.join(folder, OPTIMIZER)):
        return None
    from ckpt_hf.trainer import training_beside

    return training_beside(folder, family, arrangement, architecture)


def _weight_set(path: str, folder: str, asked: str) -> WeightSet:
    """The weight files to read: those asked for, the one file that was given, or those of the folder."""
    if os.path.isfile(path) and not asked:
        return WeightSet((os.path.basename(path),))
    return chosen_set(folder, asked)


def _unread(match: Match, names: Collection[str]) -> Iterator[ledgers.Loss]:
    """What lies beside the tensors of the model, by the rule that leaves it."""
    others = set(names) - match.natives.keys()
    for dropped in match.leftovers.drops:
        if any(layouts.matches(dropped.native, name) for name in others):
            yield ledgers.Loss("dropped", dropped.native, dropped.why)
