"""Reading a nanotron checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from ckpt_core.architecture import architecture_of, facts_of
from ckpt_core.checkpoint import Checkpoint, Loss, Sidecar
from ckpt_core.engine.assembly import Assembler
from ckpt_core.errors import CkptError, Problems
from ckpt_core.layout import Layout, account
from ckpt_core.plugins import ReadRequest
from ckpt_core.receipt import original_of, with_vocabulary
from ckpt_core.storage.files import FileState, read_small
from ckpt_core.storage.jsonfile import parse_yaml, read_json_object
from ckpt_nanotron.config import model_of
from ckpt_nanotron.files import CONFIG, METADATA, TRAINING_CONFIG, Files, find_step, masters, optimizer_files, read_files

_OWN_FILES = {CONFIG, METADATA, TRAINING_CONFIG}


def read(path: str, request: ReadRequest) -> Checkpoint:
    """The checkpoint at a step folder, or at the run folder that holds it."""
    step = find_step(path)
    config_file = os.path.join(step, CONFIG)
    config = read_json_object(config_file)
    training = _training_config(step)
    model = model_of(config, config_file)
    evidence = [f"{model.config.name} by {model.marker}"]
    losses: list[Loss] = []
    files = read_files(step)
    facts, notes = model.config.read(config, config_file)
    interleaved = _rotary_order(config, model.kind, evidence)
    _scale(training, facts, evidence)
    if model.kind != "starcoder2":
        _rope_scaling(config, losses)
        _tied_head(config, files, facts, evidence, losses)
    architecture = architecture_of(facts, config_file)
    if request.architecture is not None and request.architecture != architecture:
        _disagree(request, architecture, config_file)
    layout = Layout(model.tables(architecture, interleaved), architecture)
    natives = layout.natives()
    has_masters = bool(optimizer_files(step)) and _records_masters(step)
    states = [*files.states, FileState.of(config_file)]
    parameters = files.parameters
    if request.weights == "master":
        parameters, more = masters(step, files)
        states += more
        evidence.append("weights: fp32 masters of optimizer/ (gradient_accumulator)")
    assembler = Assembler(layout.parameters, step)
    for problem in account(natives, layout.tables, parameters, os.path.join(step, "model")):
        assembler.problems.add(problem)
    for name, native in natives.items():
        if name in parameters:
            if parameters[name].shape != native.shape:
                assembler.problems.add(
                    CkptError(
                        f"tensor {name!r} does not have the shape of this architecture",
                        file=os.path.join(step, "model"),
                        found=f"shape {parameters[name].shape}",
                        expected=f"shape {native.shape}, laid out as {native.row.sentence}",
                    )
                )
            else:
                assembler.add(native, parameters[name].shards)
    checkpoint = Checkpoint(
        "nanotron",
        path,
        architecture,
        assembler.finish(),
        states,
        notes=notes,
        sidecars=_sidecars(step),
        parallel={"tp": files.tp, "pp": files.pp},
        hints=_hints(model.kind, interleaved, config, files),
        evidence=evidence,
        losses=losses,
        masters=has_masters,
    )
    checkpoint = original_of(checkpoint, os.path.dirname(step) if step != path else path)
    vocabulary = request.options.get("vocab")
    if vocabulary:
        checkpoint = with_vocabulary(checkpoint, _vocabulary(str(vocabulary), step))
    return checkpoint


def _training_config(step: str) -> Mapping[str, object]:
    path = os.path.join(step, TRAINING_CONFIG)
    value = parse_yaml(read_small(path), path) if os.path.isfile(path) else {}
    return value if isinstance(value, dict) else {}


def _rotary_order(config: Mapping[str, object], kind: str, evidence: list[str]) -> bool:
    """Whether rotary pairs are interleaved: by the key where there is one, else by the age of the code that wrote it.

    Code before September 2024 had no such key and always interleaved. Newer nanotron reads such a config with its
    new default (False), and silently computes another model.
    """
    if kind == "starcoder2":
        return False
    if "rope_interleaved" in config:
        evidence.append(f"rotary pairs: rope_interleaved={config['rope_interleaved']}")
        return bool(config["rope_interleaved"])
    evidence.append("rotary pairs: interleaved, as all code without the key rope_interleaved computes")
    return True


def _scale(training: Mapping[str, object], facts: dict, evidence: list[str]) -> None:
    """Spectral muP divides scores by head_dim, not by its root; only the training config says so."""
    model = training.get("model")
    init = model.get("init_method") if isinstance(model, dict) else None
    if isinstance(init, dict) and init.get("use_mup"):
        facts["attention.scale"] = 1.0 / facts["attention.head_dim"]
        evidence.append("attention scale: 1/head_dim by model.init_method.use_mup in config.yaml")


def _rope_scaling(config: Mapping[str, object], losses: list[Loss]) -> None:
    if config.get("rope_scaling") is not None:
        losses.append(
            Loss("assumed", f"rope_scaling={json.dumps(config['rope_scaling'])}", "nanotron stores it and computes plain rotary positions")
        )


def _tied_head(config: Mapping[str, object], files: Files, facts: dict, evidence: list[str], losses: list[Loss]) -> None:
    """Release 0.1 had the key tie_word_embeddings but never tied: a head that is stored is the head that was trained."""
    if config.get("tie_word_embeddings") and "model.lm_head.pp_block.weight" in files.parameters:
        facts["head.tied"] = False
        evidence.append("head: untied, since lm_head is stored")
        losses.append(Loss("assumed", "tie_word_embeddings=true", "lm_head is stored beside it, as release 0.1 does, which never tied"))


def _records_masters(step: str) -> bool:
    path = os.path.join(step, "optimizer", "optimizer_config.json")
    return os.path.isfile(path) and read_json_object(path).get("type") == "OptimizerFromGradientAccumulator"


def _sidecars(step: str) -> dict[str, Sidecar]:
    found = {}
    for name in sorted(os.listdir(step)):
        path = os.path.join(step, name)
        if os.path.isfile(path) and name not in _OWN_FILES and not name.startswith((".", "ckpt-receipt")):
            found[name] = Sidecar(path, os.path.getsize(path))
        elif os.path.isdir(path) and name == "additional_chat_templates":
            for inner in sorted(os.listdir(path)):
                found[f"{name}/{inner}"] = Sidecar(os.path.join(path, inner), os.path.getsize(os.path.join(path, inner)))
    return found


def _hints(kind: str, interleaved: bool, config: Mapping[str, object], files: Files) -> dict[str, object]:
    newer = "rope_interleaved" in config or "is_qwen2_config" in config
    target = "main" if newer or (kind == "starcoder2" and files.version not in ("1.2", "1.3", "1.4")) else "0.4"
    return {"model": kind, "interleaved": interleaved, "target": target, "tp": files.tp, "pp": files.pp}


def _vocabulary(text: str, step: str) -> int:
    if text != "tokenizer":
        if not text.isdigit():
            raise CkptError("option vocab is a number of tokens, or the word tokenizer", found=text)
        return int(text)
    path = os.path.join(step, "tokenizer.json")
    if not os.path.isfile(path):
        raise CkptError("there is no tokenizer.json to take the vocabulary from", file=step, fix="give the number: -o vocab=...")
    body = read_json_object(path)
    ids = list((body.get("model") or {}).get("vocab", {}).values()) if isinstance((body.get("model") or {}).get("vocab"), dict) else []
    ids += [token["id"] for token in body.get("added_tokens", [])]
    if not ids:
        raise CkptError("the tokenizer does not list its tokens", file=path, fix="give the number: -o vocab=...")
    return max(ids) + 1


def _disagree(request: ReadRequest, architecture: object, file: str) -> None:
    one, two = facts_of(request.architecture), facts_of(architecture)
    problems = Problems("--config and the checkpoint describe different models")
    for path in sorted(one.keys() | two.keys()):
        if one.get(path) != two.get(path):
            problems.add(CkptError(f"{path} is {two.get(path)} in the checkpoint, {one.get(path)} in --config", file=file))
    problems.raise_any()
