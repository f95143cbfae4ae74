"""Reading a nanotron checkpoint."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    CkptError,
    Description,
    Facts,
    RankTensors,
    ReadRequest,
    architecture_of,
    company,
    disk,
    documents,
    errors,
    ledgers,
    reading,
    schema,
)
from ckpt_nanotron.config import MODELS, ModelClass, decoder_of, model_of
from ckpt_nanotron.contents import RUN_MODEL, RUN_SECTIONS, enter_training
from ckpt_nanotron.files import (
    CONFIG,
    LATEST,
    METADATA,
    TRAINING_CONFIG,
    Files,
    find_step,
    masters,
    optimizer_files,
    read_files,
)
from ckpt_nanotron.optimizer import training_in
from ckpt_nanotron.weights import TABLES

_OWN_FILES = {CONFIG, METADATA, TRAINING_CONFIG}


def read(path: str, request: ReadRequest) -> Description:
    """What lies at a step folder, or at the run folder that holds it."""
    step = find_step(path)
    found = functools.cache(functools.partial(read_files, step))  # thousands, which a wrong config need not wait for
    model, files = _model(step, found, request), found()
    ledger, evidence, states = model.ledger, [*model.evidence], [*files.states, *model.files]
    enter_training(ledger, step, request.weights == "master")
    if os.path.isfile(latest := os.path.join(path, LATEST)):
        ledger.used("the step to read", latest)
    parameters = files.parameters
    if request.weights == "master":
        parameters, more = masters(step, files)
        states += more
        evidence.append("weights: fp32 masters of optimizer/ (gradient_accumulator)")
    asked, multiple = request.options.get("vocab"), model.multiple * files.tp
    return Description(
        architecture=model.architecture,
        tables=TABLES,
        choices={
            "model": model.kind.kind,
            "rope_interleaved": model.interleaved,
            "grouped_query": model.grouped,
        },
        ranks=[
            RankTensors({}, {name: stored.shards for name, stored in parameters.items()}, os.path.join(step, "model"))
        ],
        where=step,
        root=path if step == path else os.path.dirname(step),
        files=states,
        config=model.config,
        vocabulary=reading.Vocabulary(
            rows=lambda tokens: -(-tokens // multiple) * multiple,
            said=multiple == 1,
            asked=None if asked is None else _vocabulary(str(asked), step),
        ),
        notes=model.notes,
        sidecars=company.files_in(
            step, lambda name: name not in _OWN_FILES and not name.startswith((".", "ckpt-receipt"))
        ),
        parallel={"tp": files.tp, "pp": files.pp},
        ledger=ledger,
        hints={
            "model": model.kind.kind,
            "interleaved": model.interleaved,
            "grouped": model.grouped,
            "shared_experts": any(layer.moe and layer.moe.shared for layer in decoder_of(model.architecture).layers),
            "target": model.release,
            "tp": files.tp,
            "pp": files.pp,
        },
        evidence=evidence,
        losses=model.losses,
        masters=bool(optimizer_files(step)) and _records_masters(step),
        training=lambda: training_in(step, files),
    )


@schema.dataclass
class ConfigModel:
    """The model that the configs (or `--config`) describe, and what that rests on. nanotron pads the vocabulary to
    `multiple` rows for each tensor parallel rank (helpers.py, _vocab_size_with_padding)."""

    kind: ModelClass
    architecture: Architecture
    interleaved: bool
    grouped: bool
    release: str
    config: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    files: list[disk.FileState] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    losses: list[ledgers.Loss] = field(default_factory=list)
    ledger: ledgers.Ledger = field(default_factory=ledgers.Ledger)
    multiple: int = 1


def _model(step: str, files: Callable[[], Files], request: ReadRequest) -> ConfigModel:
    training_file = os.path.join(step, TRAINING_CONFIG)
    sections = documents.read_yaml_object(training_file) if os.path.isfile(training_file) else {}
    training, ledger = _section(sections, "model"), ledgers.Ledger()
    ledger.contents(training_file, sections, RUN_SECTIONS)
    ledger.contents(training_file, training, RUN_MODEL, section="model")
    config_file = os.path.join(step, CONFIG)
    config: Mapping[str, Any] | None = documents.read_json_object(config_file) if os.path.isfile(config_file) else None
    twin = _section(training, "model_config")
    if config is None and not twin:
        return _model_of_user(step, files(), request)
    twin = reading.without_ignored(twin, request, ledger, training_file, "model.model_config")
    if config is None:
        config, config_file = twin, training_file
    else:
        config = reading.without_ignored(config, request, ledger, config_file)
        if twin:
            _check_twins(config, twin, config_file)
    kind = model_of(config, config_file)
    facts, notes = kind.config.read(config, config_file)
    ledger.config(config_file, kind.config.fates(config))
    newer = "rope_interleaved" in config or kind.kind == "qwen2"
    release, interleaved = "main" if newer else "0.4", False
    states, evidence = [disk.FileState.of(config_file)], [f"{kind.config.name} by {kind.marker}"]
    losses: list[ledgers.Loss] = []
    if kind.kind == "starcoder2":
        release = "0.4" if files().version in ("1.2", "1.3", "1.4") else "main"
    else:
        interleaved = _rotary_order(config, request, evidence)
        _rope_scaling(config, losses)
        _tied_head(config, files(), facts, evidence, losses)
    _scale(training, facts, evidence)
    architecture = architecture_of(facts, config_file)
    grouped = bool(config.get("grouped_query"))
    multiple = training.get("make_vocab_size_divisible_by")
    multiple = multiple if type(multiple) is int and multiple > 0 else 1
    return ConfigModel(
        kind,
        architecture,
        interleaved,
        grouped,
        release,
        config_file,
        notes,
        states,
        evidence,
        losses,
        ledger,
        multiple,
    )


def _model_of_user(step: str, files: Files, request: ReadRequest) -> ConfigModel:
    """A folder of weights alone: the architecture from `--config`, the rotary order from the user."""
    name = "model.token_position_embeddings.pp_block.token_embedding.weight"
    architecture = reading.given(
        request,
        step,
        rows=files.parameters[name].shape[0] if name in files.parameters else None,
        problem="the folder holds no config",
        expected=f"{CONFIG} or {TRAINING_CONFIG}",
    )
    kind = next(
        kind
        for kind in MODELS
        if kind.kind == ("starcoder2" if "model.token_embeddings" in " ".join(files.parameters) else "qwen2")
    )
    interleaved = request.options.get("rope_interleaved")
    if interleaved is None and kind.kind != "starcoder2":
        raise CkptError(
            "nothing says whether rotary pairs are interleaved",
            file=step,
            expected="-o rope_interleaved=true for weights trained before September 2024, false for weights trained since",
        )
    release = "0.4" if interleaved else "main"
    grouped = any(name.endswith(".attn.query_key_value.weight") for name in files.parameters)
    return ConfigModel(
        kind, architecture, bool(interleaved), grouped, release, evidence=["architecture: given with --config"]
    )


def _section(value: object, key: str) -> Mapping[str, Any]:
    inner = value.get(key) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _check_twins(config: Mapping[str, Any], twin: Mapping[str, Any], file: str) -> None:
    """The model config is stored twice; if they differ, someone edited one of them."""
    problems = errors.Problems(f"{CONFIG} and {TRAINING_CONFIG} describe different models")
    for key in sorted(config.keys() & twin.keys()):
        if config[key] != twin[key]:
            problems.add(CkptError(f"{key} is {config[key]} in {CONFIG}, {twin[key]} in {TRAINING_CONFIG}", file=file))
    problems.raise_any()


def _rotary_order(config: Mapping[str, Any], request: ReadRequest, evidence: list[str]) -> bool:
    """Whether rotary pairs are interleaved: by the key where there is one, else by the age of the code that wrote it.

    Code before September 2024 had no such key and always interleaved. Newer nanotron reads such a config with its
    new default (False), and silently computes another model.
    """
    asked = request.options.get("rope_interleaved")
    if asked is not None:
        evidence.append(f"rotary pairs: rope_interleaved={asked} by option")
        return bool(asked)
    if "rope_interleaved" in config:
        evidence.append(f"rotary pairs: rope_interleaved={config['rope_interleaved']}")
        return bool(config["rope_interleaved"])
    evidence.append("rotary pairs: interleaved, as all code without the key rope_interleaved computes")
    return True


def _scale(training: Mapping[str, Any], facts: Facts, evidence: list[str]) -> None:
    """Spectral muP divides scores by head_dim, not by its root; only the training config says so."""
    if _section(training, "init_method").get("use_mup"):
        facts["attention.scale"] = 1.0 / facts["attention.head_dim"]
        evidence.append("attention scale: 1/head_dim by model.init_method.use_mup in config.yaml")


def _rope_scaling(config: Mapping[str, Any], losses: list[ledgers.Loss]) -> None:
    if config.get("rope_scaling") is not None:
        losses.append(
            ledgers.Loss(
                "assumed",
                f"rope_scaling={json.dumps(config['rope_scaling'])}",
                "nanotron stores it and computes plain rotary positions",
            )
        )


def _tied_head(
    config: Mapping[str, Any], files: Files, facts: Facts, evidence: list[str], losses: list[ledgers.Loss]
) -> None:
    """Release 0.1 had the key tie_word_embeddings but never tied: a head that is stored is the head that was trained."""
    if config.get("tie_word_embeddings") and "model.lm_head.pp_block.weight" in files.parameters:
        facts["head.tied"] = False
        evidence.append("head: untied, since lm_head is stored")
        losses.append(
            ledgers.Loss(
                "assumed",
                "tie_word_embeddings=true",
                "lm_head is stored beside it, as release 0.1 does, which never tied",
            )
        )


def _records_masters(step: str) -> bool:
    path = os.path.join(step, "optimizer", "optimizer_config.json")
    return os.path.isfile(path) and documents.read_json_object(path).get("type") == "OptimizerFromGradientAccumulator"


def _vocabulary(text: str, step: str) -> int:
    if text != "tokenizer":
        if not text.isdigit():
            raise errors.UsageError("option vocab is a number of tokens, or the word tokenizer", found=text)
        return int(text)
    path = os.path.join(step, "tokenizer.json")
    if not os.path.isfile(path):
        raise CkptError(
            "there is no tokenizer.json to take the vocabulary from", file=step, fix="give the number: -o vocab=..."
        )
    body = documents.read_json_object(path)
    ids = (
        list((body.get("model") or {}).get("vocab", {}).values())
        if isinstance((body.get("model") or {}).get("vocab"), dict)
        else []
    )
    ids += [token["id"] for token in body.get("added_tokens", [])]
    if not ids:
        raise CkptError("the tokenizer does not list its tokens", file=path, fix="give the number: -o vocab=...")
    return max(ids) + 1
