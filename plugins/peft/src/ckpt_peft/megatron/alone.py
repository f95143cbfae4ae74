"""An adapter of Megatron-Bridge or NeMo 2 by itself, without the weights of its base: read, to be written as one of another kind, and written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    Checkpoint,
    Refusal,
    Target,
    TargetBuilder,
    WriteRequest,
    chunked,
    company,
    layouts,
    ledgers,
    rewrites,
    schema,
)
from ckpt_hf.sdk import ModelInMemory
from ckpt_megatron.sdk import (
    CONTENT,
    DIST_METADATA,
    architecture_of_run,
    backend_document,
    common_document,
    dist_files,
    dist_place,
    expressed_for,
    run_of,
    weights,
)
from ckpt_peft.alone import alone
from ckpt_peft.keys import DOWN, MAGNITUDE, UP
from ckpt_peft.megatron import nemo
from ckpt_peft.megatron.canonical import LORA as CANONICAL
from ckpt_peft.megatron.canonical import SHARED, check_release, stored_as
from ckpt_peft.megatron.canonical import TABLES as WITH_PARTS
from ckpt_peft.megatron.files import COMMON, Files, of_model
from ckpt_peft.merge import Merger
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
from ckpt_peft.settings import Settings

_KEYS = {DOWN: "linear_in.weight", UP: "linear_out.weight", MAGNITUDE: "weight_magnitude"}
_LORA, _DORA = "megatron.bridge.peft.lora.LoRA", "megatron.bridge.peft.dora.DoRA"
_TOKENIZER = "tokenizer"
_ONE_EXPERT = re.compile(r"\.experts\.local_experts\.\d+\.")


def gpt_model(base: Checkpoint, canonical: bool = False) -> ModelInMemory:
    """A base as Megatron's GPTModel, whose weights the adapter's names are about. `canonical`: the parts of fused layers are modules, too."""
    own = rewrites.Rewritable(base.architecture, base.tensors, files=base.files)
    model = expressed_for(own, 1, by_fields=True)
    names = layouts.BoundTables(WITH_PARTS if canonical else weights.TABLES, model.architecture).natives()
    if all(model.tensors.get(name) == tensor for name, tensor in base.tensors.items()):
        model = own  # what Megatron needs besides are biases of zeros
    return ModelInMemory("GPTModel", model.architecture, model.tensors, names, model.rewrites)


def read_alone(files: Files, settings: Settings, path: str, given: Architecture | None) -> Checkpoint | None:
    """The adapter as it is. What its base is says run_config.yaml, and for one of NeMo 2 --config (`given`): None where it is missing."""
    architecture = given if files.of_nemo else architecture_of_run(files.config_file)
    if architecture is None:
        return None
    model = model_of(files, without_weights(architecture, "", ""))
    merger = Merger(model, settings, files.folder, files.states, exact=False)
    merger.add_all(of_model(files, model))
    merger.check_whole()
    base = settings.base
    if not files.of_nemo:
        files.ledger.used("architecture", files.config_file, "model")
        origin = files.run["model"].get("hf_model_id")
        base = origin if isinstance(origin, str) and origin else base
    return alone("megatron-lora", path, architecture, pairs_of(merger, files.states), base, files.states, files.ledger)


def model_of(files: Files, base: Checkpoint) -> ModelInMemory:
    """The base as the GPTModel whose modules an adapter in files changes. In CanonicalLoRA parts of fused layers are modules."""
    canonical = files.peft.get("_target_") == CANONICAL
    model = gpt_model(base, canonical)
    if files.of_nemo:
        _check_rows(files, model)
    if canonical:
        layers = model.architecture.decoder.layers if model.architecture.decoder else ()
        groups = max((layer.attention.groups for layer in layers if layer.attention), default=1)
        check_release(files.peft, [one.path for one in files.adapted], groups, files.config_file)
    return model


def _check_rows(files: Files, model: ModelInMemory) -> None:
    """Raise a `Refusal` for matrices of NeMo 2 whose rows are in the order of its tensor parallel ranks."""
    layers = model.architecture.decoder.layers if model.architecture.decoder else ()
    gated = all(layer.mlp.gated for layer in layers if layer.mlp)
    for one in files.adapted:
        if nemo.rows_of_ranks(one, gated):
            raise Refusal(
                f"the rows of {one.up.key} lie by tensor parallel ranks",
                file=files.folder,
                found="as NeMo before 2.3 stores an adapter of linear_fc1 with a gate, and NeMo since 2.3 one without a gate",
                # other sizes load these rows in another order, and so does NeMo's export of an adapter, which has one rank
                fix="merge it with NeMo (llm.peft.merge_lora) at the tensor parallel size of its training, and convert the model",
            )


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The folder of a run. Raises `Refusal` naming what no adapter of Megatron-Bridge can hold."""
    assert checkpoint.adapter is not None
    bare = without_weights(checkpoint.architecture, "", "")
    canonical = bool(request.options.get("canonical"))
    model, pairs = gpt_model(bare, canonical), pairs_in(checkpoint)
    check_same_weights(model, pairs)
    known = schema.parameters(model.architecture)
    said: list[str] = []
    modules: list[tuple[layouts.Native, list[Pair]]] = []
    for native in all_of(model.names.values(), pairs):
        own, how = joined(native, pairs, known)
        modules.append((native, own))
        if how is not None:
            said.append(how)
    written = {pair.parameter: pair for _, own in modules for pair in own}
    if absent := sorted(pairs.keys() - written.keys()):
        raise Refusal(f"{absent[0]} has no module in Megatron's GPTModel", file=checkpoint.path)
    modules, rank = _of_one_rank(modules, said)
    written = {pair.parameter: pair for _, own in modules for pair in own}
    adapter, tensors = adapter_of(written, checkpoint.adapter.base)
    builder = TargetBuilder(rewrites.Rewritable(checkpoint.architecture, tensors, tuple(said)), (), request.dtype)
    run = run_of(bare, request)
    experts = any(_is_of_experts(native) for native, _ in modules)
    _add_chunks(builder, modules, known, run.layout.folder)
    common = {"checkpoint_version": 3.0, "iteration": run.layout.iteration, "content_metadata": CONTENT}
    builder.documents[f"{run.layout.folder}/{COMMON}"] = common_document(common)
    scale, dora = (
        _only(written, "scale", lambda pair: pair.scale),
        _only(written, "kind", lambda pair: pair.magnitude is not None),
    )
    if canonical and experts:
        raise Refusal(
            "a canonical adapter of Megatron-Bridge has gate and up of experts in one, or apart, as the experts are computed",
            found="pairs of experts",
            fix="leave out -o canonical",
        )
    if canonical and dora:
        raise Refusal(
            "a canonical adapter of Megatron-Bridge has no magnitudes", found="DoRA", fix="leave out -o canonical"
        )
    section = {
        "_target_": CANONICAL if canonical else _DORA if dora else _LORA,
        "alpha": alpha_of(scale, rank),
        "dim": rank,
        "dropout": 0.0,
        "exclude_modules": [],
        "target_modules": _targets(modules, model),
    }
    if canonical or experts:
        section[SHARED] = not experts
    said_of_base = {"pretrained_checkpoint": request.options.get("pretrained_checkpoint"), "finetune": True}
    sections: dict[str, Mapping[str, Any]] = {"peft": section, "checkpoint": said_of_base}
    if adapter.base is not None:
        sections["model"] = {"hf_model_id": adapter.base}
    builder.documents |= run.documents(request.destination, company.has_tokenizer(checkpoint.sidecars), sections)
    target = builder.target(
        "megatron-lora",
        sidecars={f"{run.layout.folder}/{_TOKENIZER}/{name}": file for name, file in checkpoint.sidecars.items()},
        decisions={"class": run.target, "bridge_version": run.version, "dim": rank},
        losses=_losses(request, adapter.base),
        config=run.fields,
    )
    target.adapter = adapter
    return target


def _is_of_experts(native: layouts.Native) -> bool:
    return "{x}" in native.row.native


def _of_one_rank(
    modules: Sequence[tuple[layouts.Native, list[Pair]]], said: list[str]
) -> tuple[list[tuple[layouts.Native, list[Pair]]], int]:
    """The modules with one rank, as `peft.dim` is that of all: matrices of a smaller one get zeros."""
    rank = max(pair.rank for _, own in modules for pair in own)
    wide = [(native, [pair.widened(rank, 0, pair.down.parameter.name) for pair in own]) for native, own in modules]
    if smaller := sorted({pair.rank for _, own in modules for pair in own} - {rank}):
        said.append(
            f"pairs of rank {', '.join(map(str, smaller))} have rank {rank}, with zeros, as peft.dim is one for all modules"
        )
    return wide, rank


def _only(pairs: Mapping[str, Pair], what: str, of: Any) -> Any:
    """What all pairs have alike, for which the config has one key."""
    found = {of(pair): name for name, pair in pairs.items()}
    if len(found) > 1:
        raise Refusal(
            f"an adapter of Megatron-Bridge has one {what} for all modules",
            found=", ".join(f"{value} ({name})" for value, name in found.items()),
            fix=MERGE,
        )
    return next(iter(found))


def _add_chunks(
    builder: TargetBuilder,
    modules: Sequence[tuple[layouts.Native, list[Pair]]],
    known: Mapping[str, schema.Parameter],
    folder: str,
) -> None:
    """Plan the distributed checkpoint: tensors of all layers in one where every layer has it and they are alike, as Megatron-Core stacks them."""
    layers = {native.layer for native, _ in modules}
    kinds: dict[str, set[tuple[int, tuple[int, ...]]]] = {}
    for native, _ in modules:
        if native.layer is not None:
            kinds.setdefault(native.name.replace(f".{native.layer}.", ".", 1), set()).add((native.layer, native.shape))
    shapes = [{shape for _, shape in held} for held in kinds.values()]
    whole = all(len(held) == len(layers) for held in kinds.values()) and layers == set(range(len(layers)))
    stacked = len(layers) if whole and all(len(held) == 1 for held in shapes) else None
    factors = [
        (native, f"{stored_as(native.name.removesuffix('.weight'))}.{_KEYS[role]}", factor)
        for native, own in modules
        for role, factor in places_of(native, 0, 1, own, known)
    ]
    files = dist_files([math.prod(factor.shape) * builder.dtype_of(factor).size for _, _, factor in factors])
    chunks = []
    for (native, name, factor), file in zip(factors, files, strict=True):
        experts = known[native.pieces[0].parameter].axes[0].size if _is_of_experts(native) else 0
        key, origin, sizes = dist_place(name, native.layer, stacked, experts)
        ones, zeros = (1,) * len(origin), (0,) * len(factor.shape)
        dtype = builder.dtype_of(factor)
        chunks.append(
            chunked.ChunkSpec(key, dtype, (*sizes, *factor.shape), (*origin, *zeros), (*ones, *factor.shape), file)
        )
    plan = chunked.plan_distributed(folder, chunks)
    builder.files += plan.files
    for (_, _, factor), chunk, offset in zip(factors, chunks, plan.offsets, strict=True):
        builder.place(factor, f"{folder}/{chunk.file}", offset)
    builder.documents[f"{folder}/{chunked.METADATA}"] = plan.metadata
    builder.documents[f"{folder}/{DIST_METADATA}"] = backend_document("torch_dist")


def _targets(modules: Sequence[tuple[layouts.Native, list[Pair]]], model: ModelInMemory) -> list[str]:
    """The names of the adapted modules; with the layer where not every layer has them."""
    adapted = {native.name.removesuffix(".weight") for native, _ in modules}
    short = {name.rpartition(".")[2] for name in adapted}
    every = {
        name.removesuffix(".weight")
        for name, native in model.names.items()
        if name.endswith(".weight") and len(native.shape) == 2
    }
    if all(name in adapted for name in every if name.rpartition(".")[2] in short):
        return sorted(short)
    # A star means any part of a name: Bridge has one module of all experts (linear_fc1) or one of each (local_experts.3.linear_fc1).
    return sorted({_ONE_EXPERT.sub(".experts*.", name) for name in adapted})


def _losses(request: WriteRequest, base: str | None) -> list[ledgers.Loss]:
    if request.options.get("pretrained_checkpoint") is not None:
        return []
    said = f"the adapter names {base!r}, " if base else ""
    reason = f"{said}and Megatron-Bridge needs the folder of the imported base: -o pretrained_checkpoint=FOLDER"
    return [ledgers.Loss("unsaid", "checkpoint.pretrained_checkpoint", reason)]
