"""Writing a GGUF file: the architecture is chosen by what it can hold exactly, never by a name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ckpt_core.sdk import (
    Activation,
    Checkpoint,
    Refusal,
    Target,
    TargetBuilder,
    WriteRequest,
    architecture_of,
    company,
    disk,
    dtypes,
    errors,
    facts_of,
    layouts,
    lazy,
    ledgers,
    rewrites,
    schema,
)
from ckpt_gguf.architectures import in_order
from ckpt_gguf.blocks import Blocks, kept_of, numbers_of
from ckpt_gguf.config import Model, is_tensor
from ckpt_gguf.container import plan_file, single
from ckpt_gguf.kinds import BF16, BY_NAME, F32, PLAIN, Kind
from ckpt_gguf.places import SUFFIX
from ckpt_gguf.rotary import STRETCHING
from ckpt_gguf.vocabulary import Vocabulary, no_vocabulary, vocabulary_of

_FILE = "model.gguf"
_CONTEXT = 4096
_TOKEN_KEYS = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id"}


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """A GGUF file; a folder with it and the companions of the model where the destination is not called as a file is."""
    asked = asked_kind(request)
    architecture = checkpoint.architecture
    if architecture.tokens is None or request.options.get("tokenizer") == "none":
        vocabulary = no_vocabulary()
    else:
        pre = request.options.get("pre")
        vocabulary = vocabulary_of(checkpoint, architecture.tokens.vocabulary, None if pre is None else str(pre))
    notes, tokens, losses = _notes(checkpoint, request, vocabulary)
    rewritable = rewrites.Rewritable(architecture, checkpoint.tensors, files=checkpoint.files)
    if architecture.tokens is not None:
        rewritable = rewrites.vocabulary_rows(rewritable, architecture.tokens.vocabulary)
    if request.options.get("gelu") == "tanh":
        rewritable, approximated = _with_tanh(rewritable)
        losses += approximated
    rewritable, left_out = _without_windows(
        rewritable, notes["max_positions"], request.options.get("window") == "left-out"
    )
    losses += left_out
    rewritten, model, config = choose(rewritable, notes, checkpoint)
    losses += _unsaid(rewritten, model, config) + _rounded_ramps(rewritten, model)
    builder = TargetBuilder(rewritten, model.tables, PLAIN.get(asked.name) if asked else request.dtype)
    single_file = request.destination.endswith(SUFFIX)
    path = os.path.basename(request.destination) if single_file else _FILE
    # copies of a tensor are left out: llama.cpp takes the tensor itself
    natives = {name: native for name, native in builder.natives().items() if not native.row.copy}
    keeps = request.options.get("quantised") == "keep"
    if keeps and (asked is not None or request.dtype is not None):
        said = "-o type" if asked is not None else "--dtype"
        raise errors.UsageError(f"{said} would change what -o quantised=keep keeps", fix="leave one of them out")
    kept = kept_of(checkpoint, natives, "leave out -o quantised=keep") if keeps else {}
    kinds = {name: kind_kept(kept.get(name)) or kind_of(native, builder, asked) for name, native in natives.items()}
    stretching = {name: np.array(config[name], "<f4") for name in STRETCHING if name in config}
    specs = {name: (F32, values.shape) for name, values in stretching.items()}
    listed = {name: place for name in natives if (place := _listed(name, model)) is not None}
    specs |= {name: (kinds[name], native.shape) for name, native in natives.items() if name not in listed}
    metadata = _metadata(model, config, list(kinds.values()), request, checkpoint)
    numbers_of_layers = {
        key: [0.0] * (1 + max(layer for _, layer in listed.values())) for key in model.listed if listed
    }
    plan = plan_file(specs, {**vocabulary.metadata, **metadata, **numbers_of_layers})
    places = {name: plan.lists[key] + 4 * layer for name, (key, layer) in listed.items()}
    literals = [
        *_between(plan.header, places.values()),
        *((plan.offsets[name], values.tobytes()) for name, values in stretching.items()),
    ]
    builder.files.append(disk.OutputFile(path, plan.size, tuple(sorted(literals))))
    for name, native in natives.items():
        kind, offset = kinds[name], places[name] if name in places else plan.offsets[name]
        if kind.name in PLAIN:
            builder.place(native, path, offset, PLAIN[kind.name])
        else:
            numbers = numbers_of(kind, name, native.shape, path, offset)
            builder.place(native, path, 0, dtypes.FP32, numbers, kept.get(name))
    return builder.target(
        "gguf",
        sidecars={} if single_file else checkpoint.sidecars,
        decisions={
            "architecture": model.architecture,
            "type": str(_commonest(kinds.values())),
            **({"tokens": tokens} if tokens else {}),
        },
        losses=[*losses, *vocabulary.losses],
        said=model.config.said(config),
        held=vocabulary.held,
        config=metadata,
        single_file=single_file,
    )


def _listed(name: str, model: Model) -> tuple[str, int] | None:
    """The key of the metadata that a parameter is a number of, and which; None for a tensor."""
    _, layer, key = (*name.split(".", 2), "", "")[:3]
    return (key, int(layer)) if key in model.listed else None


def _between(header: bytes, places: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """The bytes of a header but for the numbers at these places, which are parameters."""
    begin = 0
    for place in sorted(places):
        if place > begin:
            yield begin, header[begin:place]
        begin = place + 4
    yield begin, header[begin:]


def asked_kind(request: WriteRequest) -> Kind | None:
    """The kind of matrices that the user asks for; None keeps each tensor's own."""
    name = request.options.get("type")
    if name is None:
        return None
    if request.dtype is not None and PLAIN.get(str(name)) != request.dtype:
        raise errors.UsageError("--dtype and -o type say different things", found=f"{request.dtype} and {name}")
    return BY_NAME[str(name)]


def kind_kept(blocks: lazy.Quantised | None) -> Kind | None:
    """The kind of blocks that are kept."""
    return BY_NAME[blocks.scheme.kind] if blocks is not None and isinstance(blocks.scheme, Blocks) else None


def kind_of(native: layouts.Native, builder: TargetBuilder, asked: Kind | None) -> Kind:
    """The kind of a tensor: float32 for all but matrices, and else what is asked for, or what the tensor has."""
    if native.row.dtype == "fp32" or len(native.shape) < 2:
        return F32
    if asked is not None:
        return asked
    own = builder.dtype_of(native)
    if own.name.startswith("fp8"):
        return BF16
    return next((BY_NAME[name] for name, dtype in PLAIN.items() if dtype == own), F32)


def _commonest(kinds: Any) -> Kind:
    """The kind of most matrices; float32 where all are."""
    found = [kind for kind in kinds if kind is not F32]
    return max(found, key=found.count) if found else F32


def choose(
    rewritable: rewrites.Rewritable, notes: Mapping[str, Any], checkpoint: Checkpoint
) -> tuple[rewrites.Rewritable, Model, dict[str, Any]]:
    """The first architecture that holds the model exactly, as it is or rewritten. Raises `Refusal` naming what the nearest lacks."""
    origin = str(checkpoint.hints_for("hf").get("model_type") or "")
    refused: list[tuple[int, int, Model, Exception]] = []
    for order, variant in enumerate(_variants(rewritable)):
        facts = facts_of(variant.architecture)
        for model in in_order(facts, origin):
            unsaid = sum(1 for _ in model.config.unsaid(facts))
            try:
                config = model.config.write(facts, notes)
                lacks = model.lacks(variant.architecture)
                if lacks is not None:
                    raise Refusal(f"{model.config.name}: {lacks}")
            except (Refusal, errors.ProblemsFound) as problem:
                refused.append((max(unsaid, len(getattr(problem, "problems", [problem]))), order, model, problem))
                continue
            return variant, model, config
    _, _, model, nearest = min(refused, key=lambda one: one[:2])
    raise Refusal(
        f"no architecture of llama.cpp holds this model exactly; the nearest is {model.config.name}",
        found=errors.Lines([*str(nearest).split("\n"), *checkpoint.explained(nearest)]),  # type: ignore[arg-type]
        fix="; ".join(fix for named, fix in _FIXES.items() if named in str(nearest)) or None,
        fact=getattr(nearest, "facts", ()),
    )


# By what the refusal of the nearest architecture names.
_FIXES = {
    str(Activation.GELU_ERF): "llama.cpp computes the tanh form of GELU: -o gelu=tanh takes it",
    "attention.window": "llama.cpp lets every position see all: -o window=left-out takes that",
}


def _without_windows(
    model: rewrites.Rewritable, positions: int, asked: bool
) -> tuple[rewrites.Rewritable, list[ledgers.Loss]]:
    """The model without the window that all of its layers have, if that is asked for, or if no window is shorter than the `positions`
    that the model is for (Phi-3 mini 128k); as it is where some layers have none, which its architecture then says."""
    stacks = model.architecture.stacks.values()
    windows = {layer.attention.window for stack in stacks for layer in stack.layers if layer.attention}
    sizes = sorted(one for one in windows if one is not None)
    if not sizes or None in windows or not (asked or sizes[0] >= positions):
        return model, []

    def changed(layer: schema.Layer) -> schema.Layer:
        return rewrites.map_attentions(layer, lambda attention: replace(attention, window=None))

    what = f"no window in place of one of {', '.join(map(str, sizes))} positions"
    why = "as -o window=left-out asks" if asked else f"the model is for {positions} positions"
    architecture = rewrites.map_layers(model.architecture, changed)
    losses = [ledgers.Loss("assumed", what, f"{why}: the same outputs for texts that are no longer")]
    return model.rewritten(architecture, dict(model.tensors), what), losses


def _with_tanh(model: rewrites.Rewritable) -> tuple[rewrites.Rewritable, list[ledgers.Loss]]:
    """The model with the tanh form of GELU in place of the exact one: the only form that llama.cpp computes for most architectures."""

    def changed(layer: schema.Layer) -> schema.Layer:
        if layer.mlp is None or layer.mlp.activation is not Activation.GELU_ERF:
            return layer
        return replace(layer, mlp=replace(layer.mlp, activation=Activation.GELU_TANH))

    architecture = rewrites.map_layers(model.architecture, changed)
    if architecture == model.architecture:
        return model, []
    what = "the tanh form of GELU in place of the exact one"
    why = "as -o gelu=tanh asks: up to 5e-4 away for each element"
    return model.rewritten(architecture, dict(model.tensors), what), [ledgers.Loss("assumed", what, why)]


def _variants(model: rewrites.Rewritable) -> Iterator[rewrites.Rewritable]:
    """The model as it is, then with what differs from the usual said by weights, the least change first."""
    seen: list[rewrites.Rewritable] = []
    for variant in (
        model,
        rewrites.folded_attention_scale(model),
        rewrites.untied_head(model),
        rewrites.uncentred_norms(rewrites.folded_attention_scale(model)),
        rewrites.untied_head(rewrites.uncentred_norms(rewrites.folded_attention_scale(model))),
    ):
        if all(variant.architecture != one.architecture for one in seen):
            seen.append(variant)
            yield variant


def _notes(
    checkpoint: Checkpoint, request: WriteRequest, vocabulary: Vocabulary
) -> tuple[dict[str, Any], list[str], list[ledgers.Loss]]:
    """Notes as the keys take them, what those of special tokens rest on, and what is assumed."""
    ids, reasons = company.known_ids(checkpoint)
    notes, losses = {**checkpoint.notes, **ids}, []
    for role, key in _TOKEN_KEYS.items():
        value, own = notes.get(role), vocabulary.metadata.get(f"tokenizer.ggml.{key}")
        if own is not None:
            notes[role] = own  # by which the tokenizer frames texts; another one is named as unsaid
        elif isinstance(value, list):
            notes[role] = value[0]  # the others are named as unsaid
        if notes.get(role) is None:
            notes.pop(role, None)
    length = request.options.get("context_length")
    if length is not None:
        notes["max_positions"] = int(length)
    elif type(notes.get("max_positions")) is not int:
        notes["max_positions"] = _CONTEXT
        why = "llama.cpp asks for the length, and nothing says it: -o context_length=N"
        losses.append(ledgers.Loss("assumed", f"a context of {_CONTEXT} tokens", why))
    return notes, reasons, losses


def _unsaid(model: rewrites.Rewritable, chosen: Model, config: Mapping[str, Any]) -> list[ledgers.Loss]:
    """What the written metadata says otherwise than the model has it: numbers that 32 bits do not hold, lengths of llama3."""
    said, _ = chosen.config.read({key: _rounded(value) for key, value in config.items()}, "what is written")
    found, wanted = facts_of(architecture_of(said, "what is written")), facts_of(model.architecture)
    different = schema.differing(found, wanted)
    if not different:
        return []
    values = ", ".join(f"{path} = {found.get(path)}" for path in different)
    numbers = [path for path in different if isinstance(wanted.get(path), float) and path in found]
    if numbers == different:
        return [ledgers.Loss("rounded", ", ".join(different), f"real numbers have 32 bits in the metadata: {values}")]
    why = "the file keeps what follows from it alone, and is read as the same function said otherwise"
    return [ledgers.Loss("unsaid", ", ".join(different), why)]


def _rounded_ramps(model: rewrites.Rewritable, chosen: Model) -> list[ledgers.Loss]:
    """That llama.cpp rounds the ends of yarn's ramp, where the model does not."""
    path = "attention.rotary.scaling.truncate"
    if not chosen.rounds or facts_of(model.architecture).get(path) is not False:
        return []
    why = "llama.cpp rounds the ends of yarn's ramp to whole elements in every model, and computes a slightly other one"
    return [ledgers.Loss("assumed", f"{path} = True", why)]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return single(value)
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def _metadata(
    model: Model, config: Mapping[str, Any], kinds: list[Kind], request: WriteRequest, checkpoint: Checkpoint
) -> dict[str, Any]:
    """The keys of a file, but for those of the tokenizer."""
    own = {key: value for key, value in config.items() if not key.startswith("tokenizer.")}
    said = {key: value for key, value in own.items() if not is_tensor(key) and value is not None}
    name = request.options.get("name") or checkpoint.hints_for("gguf").get("name")
    return {
        "general.architecture": model.architecture,
        "general.type": "model",
        **({"general.name": str(name)} if name else {}),
        **{f"{model.architecture}.{key}": value for key, value in said.items()},
        "general.file_type": _commonest(kinds).file_type,
        "general.quantization_version": 2,
        **{key: value for key, value in config.items() if key.startswith("tokenizer.") and value is not None},
    }
