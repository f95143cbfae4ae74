"""An adapter of PEFT by itself, without the weights of its base: read, to be written as one of another kind, and written."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    Adapter,
    Architecture,
    Checkpoint,
    ReadRequest,
    Refusal,
    Target,
    TargetBuilder,
    WriteRequest,
    disk,
    errors,
    layouts,
    ledgers,
    reading,
    rewrites,
    schema,
)
from ckpt_hf.sdk import CONFIG as MODEL_CONFIG
from ckpt_hf.sdk import ModelInMemory, model_in_memory
from ckpt_peft.files import Files, companions
from ckpt_peft.keys import DOWN, MAGNITUDE, PREFIX, UP, sorted_out
from ckpt_peft.merge import Merger, out_dimension
from ckpt_peft.pairs import (
    MERGE,
    Pair,
    adapter_of,
    all_of,
    alpha_of,
    check_same_weights,
    joined,
    pairs_in,
    pairs_of,
    places_of,
    without_weights,
)
from ckpt_peft.places import CONFIG, WEIGHTS
from ckpt_peft.settings import enter, read_settings

_KEYS = {DOWN: "lora_A.weight", UP: "lora_B.weight", MAGNITUDE: "lora_magnitude_vector"}


# --- reading ---------------------------------------------------------------------------------------------------------


def read_alone(files: Files, path: str, request: ReadRequest) -> Checkpoint | None:
    """The adapter as it is. What its base is says --config, or the receipt that lies beside it; None where neither is there."""
    receipt = reading.receipt_of(files.folder, "peft")
    architecture = request.architecture or (None if receipt is None else receipt.architecture)
    if architecture is None:
        return None
    settings = read_settings(files.config, files.config_file, bool(request.options.get("residual_base")))
    contents = sorted_out(files.named, files.weights)
    if contents.saved:
        raise Refusal(
            "whole tensors that were trained are put in the place of the base's, and not turned into an adapter of another kind",
            file=files.weights,
            found=", ".join(sorted(contents.saved)[:4]),
            fix=MERGE,
        )
    of_hf = request.config is not None and os.path.basename(request.config) == MODEL_CONFIG
    model = model_in_memory(without_weights(architecture, *(("hf", request.config or "") if of_hf else ("", ""))))
    merger = Merger(model, settings, files.weights, files.states, exact=False)
    merger.add_all(contents.adapted)
    merger.check_whole()
    enter(files.config, files.config_file, files.ledger)
    pairs = pairs_of(merger, files.states)
    found = alone("peft", path, architecture, pairs, settings.base, files.states, files.ledger)
    return replace(found, sidecars=companions(files.folder, files.ledger))


def alone(
    format: str,
    path: str,
    architecture: Architecture,
    pairs: Mapping[str, Pair],
    base: str | None,
    states: Sequence[disk.FileState],
    ledger: ledgers.Ledger,
) -> Checkpoint:
    """The checkpoint of an adapter of a model."""
    adapter, tensors = adapter_of(pairs, base)
    said = f"an adapter by itself: pairs for {errors.plural(len(pairs), 'parameter')}, {errors.plural(len(tensors), 'tensor')}"
    found = Checkpoint(format, path, architecture, tensors, list(states), ledger=ledger, adapter=adapter)
    return found.because(said)


# --- writing ---------------------------------------------------------------------------------------------------------


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """A folder of PEFT. Raises `Refusal` naming what it can't hold."""
    assert checkpoint.adapter is not None
    bare = without_weights(checkpoint.architecture, "", "")
    model, pairs = model_in_memory(bare, str(request.options.get("hf_class") or "")), pairs_in(checkpoint)
    check_same_weights(model, pairs)
    known = schema.parameters(model.architecture)
    names = {name: native for name, native in model.names.items() if len(native.shape) == 2}
    written: dict[str, Pair] = {}
    modules: dict[str, tuple[layouts.Native, list[Pair]]] = {}
    said: list[str] = []
    for native in all_of(names.values(), pairs):
        own, how = joined(native, pairs, known)
        written |= {pair.parameter: pair for pair in own}
        modules[native.name.removesuffix(".weight")] = native, own
        if how is not None:
            said.append(how)
    if absent := sorted(pairs.keys() - written.keys()):
        raise Refusal(f"{absent[0]} has no module in a {model.class_name} that PEFT adapts", file=checkpoint.path)
    adapter, tensors = adapter_of(written, checkpoint.adapter.base)
    builder = TargetBuilder(rewrites.Rewritable(checkpoint.architecture, tensors, tuple(said)), (), request.dtype)
    held = {}
    for module, (native, own) in modules.items():
        out = out_dimension(native)
        for role, factor in places_of(native, out, 1 - out, own, known):
            held[f"{PREFIX}{module}.{_KEYS[role]}"] = factor
    builder.add_file(WEIGHTS[0], held, metadata={"format": "pt"})
    turned = {out_dimension(native) == 1 for native, _ in modules.values()}
    if len(turned) > 1:
        raise Refusal("the adapter changes linear layers and Conv1D, which one fan_in_fan_out can't say")
    config = _config(modules, adapter, model, checkpoint.architecture, turned == {True})
    builder.documents[CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
    target = builder.target(
        "peft", sidecars=dict(checkpoint.sidecars), decisions={"hf_class": model.class_name}, config=config
    )
    target.adapter = adapter
    return target


def _config(
    modules: Mapping[str, tuple[layouts.Native, list[Pair]]],
    adapter: Adapter,
    model: ModelInMemory,
    architecture: Architecture,
    turned: bool,
) -> dict[str, Any]:
    """What `adapter_config.json` says."""
    ranks = {module: own[0].rank for module, (_, own) in modules.items()}
    alphas = {module: alpha_of(own[0].scale, own[0].rank) for module, (_, own) in modules.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    (dora,) = {own[0].magnitude is not None for _, own in modules.values()}
    return {
        "peft_type": "LORA",
        "auto_mapping": None,
        "base_model_name_or_path": adapter.base,
        "bias": "none",
        "fan_in_fan_out": turned,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "r": rank,
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "target_modules": _targets(modules, model),
        "task_type": None if architecture.head is None else "CAUSAL_LM",
        "use_dora": dora,
        "use_rslora": False,
    }


def _targets(modules: Iterable[str], model: ModelInMemory) -> list[str]:
    """Names that mean these modules and no others: the last part of a path, where every module of that name is one of them."""
    adapted, by_last = set(modules), dict[str, set[str]]()
    for name, native in model.names.items():
        if name.endswith(".weight") and len(native.shape) == 2:
            module = name.removesuffix(".weight")
            by_last.setdefault(module.rpartition(".")[2], set()).add(module)
    short = {last for last, held in by_last.items() if held <= adapted}
    return sorted(short | {module for module in adapted if module.rpartition(".")[2] not in short})
