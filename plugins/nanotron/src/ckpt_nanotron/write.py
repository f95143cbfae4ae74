"""Writing a nanotron checkpoint for a named release, from which a run can start."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    Checkpoint,
    Refusal,
    Target,
    TargetBuilder,
    WriteRequest,
    company,
    dtypes,
    errors,
    facts_of,
    layouts,
    ledgers,
    rewrites,
    schema,
)
from ckpt_nanotron.config import MODELS, RELEASES, ModelClass, Release, attention_of, config_for, decoder_of
from ckpt_nanotron.files import CONFIG, LATEST, METADATA, TRAINING_CONFIG, file_name, slices_metadata
from ckpt_nanotron.training import Run, metadata_json, training_yaml
from ckpt_nanotron.weights import TABLES
from ckpt_nanotron.write_optimizer import Ranks, add_optimizer

_DEFAULTS = {"bos": 1, "eos": 2}


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The folder of a nanotron run: a fresh one at step 0, or one that goes on with the state of its training.

    Raises `Refusal` naming what the release cannot express.
    """
    checkpoint, masters = _stepped(checkpoint, request)
    hints = checkpoint.hints_for("nanotron")
    release = RELEASES[str(request.options.get("target") or hints.get("target") or "main")]
    tp, pp = request.tp or 1, request.pp or 1
    multiple = int(request.options.get("make_vocab_size_divisible_by") or 1) * tp
    model = rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors, files=checkpoint.files)
    model = _vocabulary(
        rewrites.folded_attention_scale(model),
        multiple,
        whole=checkpoint.training is not None and request.training_state == "keep",
    )
    if hints.get("shared_experts") is False:  # a format on the way that always has them was given some of zeros
        model = rewrites.without_zero_shared_experts(model)
    interleaved = _interleaved(release, request, hints)
    notes, tokens, losses = _notes(checkpoint)
    # Grouped attention of one key-value head can't be divided; multi-query attention can.
    arrangement = {"interleaved": interleaved, "grouped": bool(hints.get("grouped")) and tp == 1}
    model, kind, config = _choose(release, model, {**notes, **arrangement}, str(hints.get("model") or ""))
    _check_ranks(model.architecture, tp, pp, copied=bool(config.get("multi_query")))
    grouped = bool(config.get("grouped_query"))
    choices: dict[str, layouts.Value] = {"model": kind.kind, "rope_interleaved": interleaved, "grouped_query": grouped}
    builder = TargetBuilder(model, TABLES, request.dtype, choices=choices, trained=checkpoint, masters=masters)
    whole, stages = builder.natives(), pipeline_stages(kind, config, pp)
    ranks = Ranks(tp, pp, int(request.options.get("dp") or 1), int(request.options.get("zero") or 0))
    step = "0" if builder.training is None else str(builder.training.step)
    for rank in range(tp):
        for name, native in builder.natives({"tp": (rank, tp)}).items():
            sharded = "tp" in dict(native.row.splits)
            if rank and not sharded:
                continue
            path = f"{step}/" + file_name(native, (rank, tp), (stage_of(native, stages), pp), sharded)
            metadata = slices_metadata(native, whole[name], rank, release.checkpoint_version) if sharded else {}
            builder.add_file(path, {"data": native}, metadata=metadata)
    places = {name: stage_of(native, stages) for name, native in whole.items()}
    losses += add_optimizer(builder, release, step, ranks, places, stages["head"])
    run = Run(str(request.destination or ""), ranks.dp, ranks.zero, builder.training)
    tokenizer = company.has_tokenizer(checkpoint.sidecars)
    builder.documents |= {
        LATEST: step.encode(),
        f"{step}/{CONFIG}": json.dumps(config).encode(),
        f"{step}/{METADATA}": metadata_json(release, tp, int(config["max_position_embeddings"]), run),
        f"{step}/{TRAINING_CONFIG}": training_yaml(
            release, config, run, tp, pp, builder.commonest_dtype, multiple // tp, tokenizer
        ),
    }
    return builder.target(
        "nanotron",
        sidecars={f"{step}/{path}": sidecar for path, sidecar in checkpoint.sidecars.items()},
        parallel={"tp": tp, "pp": pp, **({"dp": ranks.dp} if ranks.dp > 1 else {})},
        decisions={
            "target": release.name,
            "model": kind.config.name,
            "rope_interleaved": interleaved,
            "checkpoint_version": release.checkpoint_version,
            **({"tokens": tokens} if tokens else {}),
        },
        losses=[*losses, *run.losses(release, int(config["max_position_embeddings"]))],
        said=kind.config.said(config),
        config=config,
        says=(
            "consumed_samples",
            "clip_grad",
            "schedule.step",
            *(["consumed_tokens"] if release.counts_tokens else []),
        ),
    )


def _stepped(checkpoint: Checkpoint, request: WriteRequest) -> tuple[Checkpoint, bool]:
    """The checkpoint, and whether fp32 masters are written beside its weights: where these are narrower. Weights in fp32 are themselves what
    nanotron steps."""
    state = checkpoint.training
    if state is None:
        return checkpoint, False
    weights = [checkpoint.tensors[name].dtype for name in state.master]
    narrow = any(dtype.size < dtypes.FP32.size for dtype in ([request.dtype] if request.dtype else weights))
    if not narrow:
        return TargetBuilder.stepped(checkpoint, request, pads=True), False
    rounded = request.dtype is not None and any(dtype.size > request.dtype.size for dtype in weights)
    return checkpoint, state.own_masters or rounded


def _tokens(architecture: Architecture) -> schema.Tokens:
    if architecture.tokens is None:
        raise Refusal("nanotron models read tokens", found="no token embedding")
    return architecture.tokens


def _vocabulary(model: rewrites.Rewritable, multiple: int, whole: bool) -> rewrites.Rewritable:
    """Rows that every tensor parallel rank gets alike: nanotron stores the padded size as its vocab_size. `whole`: none of the source's rows
    is cut, since a run goes on as it was only with them."""
    tokens = _tokens(model.architecture)
    least = tokens.padded_vocabulary if whole else tokens.vocabulary
    return rewrites.vocabulary_rows(model, math.ceil(least / multiple) * multiple)


def _interleaved(release: Release, request: WriteRequest, hints: Mapping[str, Any]) -> bool:
    asked = request.options.get("rope_interleaved")
    if release.interleaved is not None:
        if asked is not None and asked != release.interleaved:
            raise Refusal(f"nanotron {release.name} always interleaves rotary pairs", found=f"rope_interleaved={asked}")
        return release.interleaved
    return bool(hints.get("interleaved", False)) if asked is None else bool(asked)


def _choose(
    release: Release, model: rewrites.Rewritable, notes: Mapping[str, Any], original: str
) -> tuple[rewrites.Rewritable, ModelClass, dict[str, Any]]:
    """The model class that holds the model exactly: the source's own if it fits, else the first that does.

    If none does, the model is tried without output biases of zeros: SmolLM3 of transformers has one wherever q, k and v have.
    """
    refusals = []
    kinds = sorted((kind for kind in MODELS if kind.kind in release.keys), key=lambda kind: kind.kind != original)
    for variant in _variants(model):
        # nanotron has one vocabulary size, and it is the padded one
        tokens = _tokens(variant.architecture)
        stored = replace(variant.architecture, tokens=replace(tokens, vocabulary=tokens.padded_vocabulary))
        for kind in kinds:
            try:
                return variant, kind, config_for(release, kind, facts_of(stored), notes)
            except (Refusal, errors.ProblemsFound) as problem:
                refusals.append((len(getattr(problem, "problems", [problem])), kind.config.name, problem))
    _, name, nearest = min(refusals, key=lambda refusal: refusal[0])
    raise Refusal(
        f"no model of nanotron {release.name} holds this architecture exactly; the nearest is {name}",
        found=errors.Lines(str(nearest).split("\n")),
    )


def _variants(model: rewrites.Rewritable) -> Iterator[rewrites.Rewritable]:
    yield model
    bare = rewrites.without_zero_biases(model, ".attention.out.bias")
    if bare is not model:
        yield bare


def _notes(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[str], list[ledgers.Loss]]:
    """Notes as nanotron's strict types take them, one integer for each special token; and which files say some of these."""
    ids, reasons = company.known_ids(checkpoint)
    notes, losses = {**checkpoint.notes, **ids}, []
    for name in ("bos", "eos", "pad"):
        value = notes.get(name)
        if isinstance(value, list) and value:
            notes[name] = value[0]  # the others are named as unsaid
        elif value is None and name in _DEFAULTS:
            notes.pop(name, None)
            losses.append(
                ledgers.Loss(
                    "unsaid",
                    f"no {name} token",
                    f"nanotron's config needs one; its default {_DEFAULTS[name]} is written",
                )
            )
    return notes, reasons, losses


def _check_ranks(architecture: Architecture, tp: int, pp: int, *, copied: bool) -> None:
    """Raises `Refusal` for ranks that can't divide the model; `copied`: every rank has the one key-value head."""
    problems = errors.Problems(f"tp={tp} pp={pp}")
    decoder = decoder_of(architecture)
    attention = attention_of(decoder)
    divided = {"query heads": attention.heads} | ({} if copied else {"key-value heads": attention.groups})
    able = [n for n in range(1, attention.heads + 1) if not any(size % n for size in divided.values())]
    for axis, size in divided.items():
        if size % tp:
            problems.add(
                Refusal(
                    f"nanotron has no copies of heads: tp={tp} must divide the {size} {axis}",
                    fix=f"--tp {' or '.join(map(str, able))}, as far as heads go",
                )
            )
    if pp > len(decoder.layers):
        problems.add(Refusal(f"pp={pp} is more than the {len(decoder.layers)} layers"))
    problems.raise_any()


def pipeline_stages(model: ModelClass, config: Mapping[str, Any], pp: int) -> dict[str, int]:
    """The stage of every block, balanced by cost as nanotron does (models/base.py, build_model).

    A block goes to the current stage; if the cost so far, itself included, exceeds the stage's share, the next
    block goes to the next one. Embedding and norms cost nothing, and a layer of experts counts as a dense one
    (get_block_compute_costs).
    """
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    layer = 4 * hidden * hidden + model.mlp_matrices * config["intermediate_size"] * hidden
    blocks = ["embedding", *(f"layer {index}" for index in range(layers)), "final_norm", "head"]
    costs = [0, *([layer] * layers), 0, config["vocab_size"] * hidden]
    total, stage, stages = sum(costs), 0, {}
    for block, cost in zip(blocks, itertools.accumulate(costs), strict=True):
        stages[block] = stage
        if cost > total * ((stage + 1) / pp) and stage + 1 < pp:
            stage += 1
    return stages


def stage_of(native: layouts.Native, stages: Mapping[str, int]) -> int:
    """The pipeline stage that holds a parameter; a tied head lies with the embedding."""
    if native.layer is not None:
        return stages[f"layer {native.layer}"]
    block = (
        "head" if ".lm_head." in native.name else "final_norm" if ".final_layer_norm." in native.name else "embedding"
    )
    return stages[block]
