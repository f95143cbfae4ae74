"""Writing an adapter by itself: a run of Megatron-Bridge, or a folder of NeMo 2. Their tensors are the same, and what lies around them is not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from ckpt_core.sdk import (
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
    backend_document,
    common_document,
    dist_files,
    dist_place,
    fiddle,
    run_of,
)
from ckpt_nemo.sdk import PREFIX, WEIGHTS, Context
from ckpt_peft.keys import DOWN, MAGNITUDE, UP
from ckpt_peft.megatron import nemo
from ckpt_peft.megatron.alone import gpt_model
from ckpt_peft.megatron.canonical import LORA as CANONICAL
from ckpt_peft.megatron.canonical import SHARED, stored_as
from ckpt_peft.megatron.files import COMMON
from ckpt_peft.pairs import (
    MERGE,
    Pair,
    adapter_of,
    all_of,
    alpha_of,
    check_same_weights,
    joined,
    pairs_in,
    places_of,
    without_weights,
)

NEMO = "nemo2"
_KEYS = {DOWN: "linear_in.weight", UP: "linear_out.weight", MAGNITUDE: "weight_magnitude"}
_LORA, _DORA = "megatron.bridge.peft.lora.LoRA", "megatron.bridge.peft.dora.DoRA"
_TOKENIZER, _FC1 = "tokenizer", "linear_fc1"
_ONE_EXPERT = re.compile(r"\.experts\.local_experts\.\d+\.")


@schema.dataclass(frozen=True)
class Written:
    """An adapter as it is written: the adapted tensors of the GPTModel with their pairs, which have one rank and one scale."""

    base: Checkpoint
    model: ModelInMemory
    modules: Sequence[tuple[layouts.Native, list[Pair]]]
    rank: int
    alpha: float | int
    dora: bool
    names: str | None

    @property
    def experts(self) -> bool:
        """Whether experts have pairs."""
        return any(_is_of_experts(native) for native, _ in self.modules)


@schema.dataclass(frozen=True)
class Around:
    """What lies around the tensors: the `folder` of the distributed checkpoint, a `prefix` of its keys, and everything beside it."""

    folder: str
    prefix: str
    common: Mapping[str, Any]
    documents: Mapping[str, bytes]
    sidecars: Mapping[str, company.Sidecar]
    decisions: Mapping[str, Any]
    config: Mapping[str, Any]
    losses: list[ledgers.Loss] = field(default_factory=list)


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The folder. Raises `Refusal` naming what no adapter of Megatron-Bridge, or of NeMo 2, can hold."""
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
    held = {pair.parameter for _, own in modules for pair in own}
    if absent := sorted(pairs.keys() - held):
        raise Refusal(f"{absent[0]} has no module in Megatron's GPTModel", file=checkpoint.path)
    modules, rank = _of_one_rank(modules, said)
    by_parameter = {pair.parameter: pair for _, own in modules for pair in own}
    adapter, tensors = adapter_of(by_parameter, checkpoint.adapter.base)
    builder = TargetBuilder(rewrites.Rewritable(checkpoint.architecture, tensors, tuple(said)), (), request.dtype)
    written = Written(
        bare,
        model,
        modules,
        rank,
        alpha_of(_only(by_parameter, "scale", lambda pair: pair.scale), rank),
        _only(by_parameter, "kind", lambda pair: pair.magnitude is not None),
        adapter.base,
    )
    around = (_of_nemo if request.options.get("layout") == NEMO else _of_bridge)(
        written, checkpoint, request, canonical
    )
    _add_chunks(builder, modules, known, around)
    builder.documents |= around.documents
    target = builder.target(
        "megatron-lora",
        sidecars=dict(around.sidecars),
        decisions={**around.decisions, "dim": rank},
        losses=around.losses,
        config=around.config,
    )
    target.adapter = adapter
    return target


def _of_bridge(written: Written, checkpoint: Checkpoint, request: WriteRequest, canonical: bool) -> Around:
    """The run of Megatron-Bridge that trained the adapter."""
    if canonical and written.experts:
        raise Refusal(
            "a canonical adapter of Megatron-Bridge has gate and up of experts in one, or apart, as the experts are computed",
            found="pairs of experts",
            fix="leave out -o canonical",
        )
    if canonical and written.dora:
        raise Refusal(
            "a canonical adapter of Megatron-Bridge has no magnitudes", found="DoRA", fix="leave out -o canonical"
        )
    section = {
        "_target_": CANONICAL if canonical else _DORA if written.dora else _LORA,
        "alpha": written.alpha,
        "dim": written.rank,
        "dropout": 0.0,
        "exclude_modules": [],
        "target_modules": _targets(written.modules, written.model),
    }
    if canonical or written.experts:
        section[SHARED] = not written.experts
    base = request.options.get("pretrained_checkpoint")
    sections: dict[str, Mapping[str, Any]] = {
        "peft": section,
        "checkpoint": {"pretrained_checkpoint": base, "finetune": True},
    }
    if written.names is not None:
        sections["model"] = {"hf_model_id": written.names}
    run = run_of(written.base, request)
    return Around(
        run.layout.folder,
        "",
        {"checkpoint_version": 3.0, "iteration": run.layout.iteration, "content_metadata": CONTENT},
        run.documents(request.destination, company.has_tokenizer(checkpoint.sidecars), sections),
        {f"{run.layout.folder}/{_TOKENIZER}/{name}": file for name, file in checkpoint.sidecars.items()},
        {"class": run.target, "bridge_version": run.version},
        run.fields,
        _of_base(written, base, "Megatron-Bridge", "checkpoint.pretrained_checkpoint"),
    )


def _of_nemo(written: Written, checkpoint: Checkpoint, request: WriteRequest, canonical: bool) -> Around:
    """The folder of NeMo 2 that `llm.finetune` would have left (nemo 2.4, lightning/pytorch/callbacks/peft.py)."""
    kinds = {"a canonical adapter": canonical, "DoRA": written.dora, "pairs of experts": written.experts}
    if refused := [kind for kind, there in kinds.items() if there]:
        raise Refusal(
            "of the adapters of NeMo 2 only LoRA on layers that every token passes is written",
            found=", ".join(refused),
            fix="write it for Megatron-Bridge: -o layout=bridge",
        )
    # A name with the layer is looked for in the whole path, which begins with that of the module around the model.
    targets = [f"*{name}" if "." in name else name for name in _targets(written.modules, written.model)]
    arguments = {"target_modules": targets, "dim": written.rank, "alpha": written.alpha, "dropout": 0.0}
    base = request.options.get("pretrained_checkpoint")
    context = Context.of(written.base, request)
    losses = _of_base(written, base, "NeMo", f"{nemo.METADATA}: {nemo.BASE}")
    if any(native.name.endswith(f"{_FC1}.weight") for native, _ in written.modules):
        decoder = context.model.architecture.decoder
        gated = decoder is None or all(layer.mlp.gated for layer in decoder.layers if layer.mlp)
        when = "2.3 or later" if gated else "before 2.3"
        why = f"others divide the rows of {_FC1}'s matrix over tensor parallel ranks in another order"
        losses.append(ledgers.Loss("assumed", f"NeMo {when}, or one tensor parallel rank", why))
    metadata = json.dumps({nemo.BASE: str(base)})  # NeMo writes str(None), too
    return Around(
        WEIGHTS,
        PREFIX,
        {},
        {
            **context.documents(fiddle.Call(nemo.LORA, arguments)),
            f"{WEIGHTS}/{nemo.METADATA}": metadata.encode(),
        },
        context.sidecars,
        {"config": context.classes.config, "model": context.classes.model},
        context.fields,
        [*losses, *context.tokenizer.losses],
    )


def _of_base(written: Written, base: object, framework: str, key: str) -> list[ledgers.Loss]:
    if base is not None:
        return []
    said = f"the adapter names {written.names!r}, " if written.names else ""
    reason = f"{said}and {framework} needs the folder of the imported base: -o pretrained_checkpoint=FOLDER"
    return [ledgers.Loss("unsaid", key, reason)]


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
    around: Around,
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
            chunked.ChunkSpec(
                f"{around.prefix}{key}", dtype, (*sizes, *factor.shape), (*origin, *zeros), (*ones, *factor.shape), file
            )
        )
    plan = chunked.plan_distributed(around.folder, chunks)
    builder.files += plan.files
    for (_, _, factor), chunk, offset in zip(factors, chunks, plan.offsets, strict=True):
        builder.place(factor, f"{around.folder}/{chunk.file}", offset)
    builder.documents[f"{around.folder}/{chunked.METADATA}"] = plan.metadata
    builder.documents[f"{around.folder}/{DIST_METADATA}"] = backend_document("torch_dist")
    builder.documents[f"{around.folder}/{COMMON}"] = common_document(dict(around.common))


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
