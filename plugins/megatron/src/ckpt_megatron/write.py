"""Writing a Megatron checkpoint: torch files for one parallel layout, or torch_dist for any."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ckpt_core.architecture import Activation, Architecture, Layer, facts_of
from ckpt_core.checkpoint import Checkpoint, Placement, Target
from ckpt_core.engine.plan import storage_dtype
from ckpt_core.errors import Problems, Refusal
from ckpt_core.layout import Layout, Native
from ckpt_core.plugins import WriteRequest
from ckpt_core.rewrite import Model, folded_attention_scale, map_layers, vocabulary_rows, zero_biases
from ckpt_core.storage.dcp import METADATA
from ckpt_core.storage.dcp_write import ChunkSpec, plan_distributed
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.opaque import Opaque
from ckpt_core.storage.output import OutputFile
from ckpt_core.storage.torchnest import plan_nest, torch_bytes
from ckpt_core.storage.torchzip_write import TensorSpec
from ckpt_megatron import names as naming
from ckpt_megatron.config import table_for
from ckpt_megatron.extra_states import extra_states, stacked_extra_states
from ckpt_megatron.files import COMMON, DIST_METADATA, TRACKER
from ckpt_megatron.read import SIDECARS
from ckpt_megatron.stages import stages
from ckpt_megatron.weights import in_blocks, row_block, tables

_MODEL_FILE = "model_optim_rng.pt"
_DIVISIBLE = "make_vocab_size_divisible_by"
_DIST_FILES, _DIST_FILE_BYTES = 4, 4 << 30  # several files, so that several threads write
_EXPERT = re.compile(r"\.mlp\.experts\.local_experts\.(\d+)\.")


@dataclass(frozen=True)
class _Layout:
    """What was decided about the files."""

    container: str
    names: str
    grouped: bool
    tp: int
    pp: int
    ep: int
    vpp: int
    iteration: int | None
    version: float = 3.0
    spelling: naming.LegacySpelling = naming.LegacySpelling()

    @property
    def folder(self) -> str:
        return "release" if self.iteration is None else f"iter_{self.iteration:07d}"


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """A checkpoint of weights alone. Raises `Refusal` naming what Megatron's GPTModel cannot hold."""
    hints, options = checkpoint.hints_for("megatron"), request.options
    names = str(options.get("names") or hints.get("names") or "te")
    experts = options.get("experts") or hints.get("experts") or ("grouped" if names == "te" else "sequential")
    container = str(options.get("container") or hints.get("container") or "torch_dist")
    layout = _Layout(
        container,
        names,
        experts == "grouped",
        request.tp or 1,
        request.pp or 1,
        request.ep or 1,
        int(options.get("vpp") or 1),
        options.get("iteration"),
    )
    if names == "legacy":
        layout = _legacy(layout, options, hints)
    multiple = int(options.get(_DIVISIBLE) or hints.get(_DIVISIBLE) or 128)
    model = _fitted(Model(checkpoint.architecture, checkpoint.tensors), multiple * layout.tp)
    config = table_for(model.architecture)
    facts = facts_of(model.architecture)
    args = config.write(facts, {**checkpoint.notes, "interleaved": False})
    _check_ranks(model.architecture, layout)
    placed, split_args = stages(facts["layers"], layout.pp, layout.vpp, options, hints)
    dtypes = [request.dtype or assembly.dtype for assembly in model.tensors.values()]
    tokenizer = f"{request.destination}/{SIDECARS}" if checkpoint.sidecars else None
    args |= split_args | _run_args(layout, multiple, max(dtypes, key=dtypes.count), tokenizer)
    namespace = Opaque("argparse", "Namespace", args=(), state=args)
    common = {"args": namespace, "checkpoint_version": layout.version, "iteration": layout.iteration or 0}
    written = _Written(layout, model, request.dtype)
    if container == "torch":
        _write_torch(written, placed, common)
    else:
        _write_dist(written, common, homogeneous=args["moe_layer_freq"] == 1)
    written.documents[TRACKER] = ("release" if layout.iteration is None else str(layout.iteration)).encode()
    return Target(
        "megatron",
        model.architecture,
        model.tensors,
        written.files,
        written.placements,
        written.documents,
        {f"{SIDECARS}/{path}": sidecar for path, sidecar in checkpoint.sidecars.items()},
        parallel={"tp": layout.tp, "pp": layout.pp, "ep": layout.ep} | ({"vpp": layout.vpp} if layout.vpp > 1 else {}),
        decisions={
            "model": config.name,
            "container": container,
            "names": names,
            "experts": "grouped" if layout.grouped else "sequential",
            "checkpoint_version": layout.version,
            _DIVISIBLE: multiple,
            "rewrites": list(model.rewrites),
        },
    )


def _legacy(layout: _Layout, options: Mapping[str, object], hints: Mapping[str, object]) -> _Layout:
    """The layout of a model from before Megatron-Core: torch files, in the source's own spelling and order if it has one."""
    if options.get("container") == "torch_dist":
        raise Refusal("the models before Megatron-Core have torch files alone", found="-o container=torch_dist -o names=legacy")
    spelling, version = hints.get("spelling"), hints.get("checkpoint_version")
    return replace(
        layout,
        container="torch",
        version=float(version) if isinstance(version, int | float) else 3.0,
        spelling=naming.LegacySpelling(**spelling) if isinstance(spelling, dict) else naming.LegacySpelling(),
    )


# --- the model ---------------------------------------------------------------------------------------------------------


def _fitted(model: Model, multiple: int) -> Model:
    """The model as Megatron has it: usual attention scale, biases on all linear layers or none, padded vocabulary."""
    tokens, kind = model.architecture.tokens, facts_of(model.architecture)["kind"]
    if tokens is None or kind != "decoder":
        raise Refusal("Megatron's GPTModel is a decoder that reads tokens", found=f"kind = {kind}" + ("" if tokens else ", no tokens"))
    model = _with_biases(folded_attention_scale(model))
    return vocabulary_rows(model, math.ceil(tokens.vocabulary / multiple) * multiple)


def _with_biases(model: Model) -> Model:
    """Zero biases where Megatron has them only all together: a zero bias changes nothing.

    --add-bias-linear gives one to every linear layer, --add-qkv-bias to q, k and v, and a LayerNorm always has one.
    GELU's tanh form is only reached through a bias.
    """

    def linear(layer: Layer) -> list[bool]:
        attention = layer.attention
        return [attention.out_bias if attention else bool(layer.latent_attention and layer.latent_attention.bias), layer.mlp.up_bias, layer.mlp.down_bias]

    layers = model.architecture.decoder.layers
    every = any(any(linear(layer)) for layer in layers) or any(layer.mlp.activation is Activation.GELU_TANH and not layer.mlp.gated for layer in layers)
    inputs = every or any(layer.attention and (layer.attention.q_bias or layer.attention.k_bias or layer.attention.v_bias) for layer in layers)

    def norm(old):
        return old if old is None or old.kind != "layer" else replace(old, bias=True)

    def biased(layer: Layer) -> Layer:
        mlp = replace(layer.mlp, norm=norm(layer.mlp.norm))
        if every and not (mlp.moe and mlp.moe.shared):  # shared experts have no biases
            mlp = replace(mlp, up_bias=True, down_bias=True)
        if layer.attention is None:
            return replace(layer, mlp=mlp)
        attention = replace(layer.attention, norm=norm(layer.attention.norm), qk_norm=norm(layer.attention.qk_norm))
        if inputs:
            attention = replace(attention, q_bias=True, k_bias=True, v_bias=True, out_bias=every or attention.out_bias)
        return replace(layer, mlp=mlp, attention=attention)

    wanted = map_layers(model.architecture, biased)
    wanted = replace(wanted, decoder=replace(wanted.decoder, final_norm=norm(wanted.decoder.final_norm)))
    if wanted == model.architecture:
        return model
    return zero_biases(model, wanted, model.tensors["embedding.tokens.weight"].dtype)


def _check_ranks(architecture: Architecture, layout: _Layout) -> None:
    problems = Problems(f"tp={layout.tp} pp={layout.pp} ep={layout.ep}")
    layer = architecture.decoder.layers[0]
    if layer.attention is not None:
        heads, groups = layer.attention.heads, layer.attention.groups
        if heads % layout.tp:
            problems.add(Refusal(f"tp={layout.tp} does not divide the {heads} heads"))
        if groups % layout.tp and layout.tp % groups:
            problems.add(Refusal(f"tp={layout.tp} neither divides the {groups} query groups nor is a multiple of them"))
    moe = any(one.mlp.moe for one in architecture.decoder.layers)
    if layout.names == "legacy":
        attention = layer.attention
        if attention is None or attention.qk_norm or attention.sinks or moe:
            problems.add(Refusal("the models before Megatron-Core have no latent attention, query norms, sinks or experts", fix="use -o names=te"))
        elif layout.version < 2 and attention.groups != attention.heads:
            problems.add(Refusal(f"checkpoint_version {layout.version:g} has no groups of heads", fix="use -o names=te"))
        problems.raise_any()
    if layout.ep > 1 and not moe:
        problems.add(Refusal("expert parallel ranks need experts", found=f"ep={layout.ep}"))
    if layout.grouped and layout.names == "local" and moe and architecture.decoder.layers[-1].mlp.up_bias:
        problems.add(Refusal("grouped experts of the local spec have no biases"))
    problems.raise_any()
    # raises where an axis is not divided
    Layout(tables(architecture, tp=layout.tp), architecture).natives({"tp": (0, layout.tp), "ep": (0, layout.ep)})


def _run_args(layout: _Layout, multiple: int, dtype: DType, tokenizer: str | None) -> dict[str, object]:
    """The args that do not describe the model, but that a loader asks for."""
    return {
        "tensor_model_parallel_size": layout.tp,
        **({"model_parallel_size": layout.tp} if layout.version < 3 else {}),
        "pipeline_model_parallel_size": layout.pp,
        "expert_model_parallel_size": layout.ep,
        "expert_tensor_parallel_size": layout.tp,
        "context_parallel_size": 1,
        "sequence_parallel": False,
        "transformer_impl": "transformer_engine" if layout.names == "te" else "local",
        "moe_grouped_gemm": layout.grouped,
        "use_legacy_models": layout.names == "legacy",
        _DIVISIBLE: multiple,
        "params_dtype": dtype,
        "bf16": dtype.name == "bf16",
        "fp16": dtype.name == "fp16",
        "ckpt_format": layout.container,
        "use_dist_ckpt": layout.container == "torch_dist",
        "tokenizer_type": "HuggingFaceTokenizer" if tokenizer else None,
        "tokenizer_model": tokenizer,
        "vocab_file": None,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "apply_query_key_layer_scaling": False,
        "data_parallel_random_init": False,
        "spec": None,
        "iteration": layout.iteration or 0,
        "consumed_train_samples": 0,
        "skipped_train_samples": 0,
        "consumed_valid_samples": 0,
    }


# --- the files -----------------------------------------------------------------------------------------------------


class _Written:
    """The target as it grows."""

    def __init__(self, layout: _Layout, model: Model, dtype: DType | None) -> None:
        self.layout, self.model, self.dtype = layout, model, dtype
        self.files: list[OutputFile] = []
        self.placements: list[Placement] = []
        self.documents: dict[str, bytes] = {}
        self.layers = model.architecture.decoder.layers
        self.latent = self.layers[0].latent_attention is not None

    def dtype_of(self, native: Native) -> DType:
        return storage_dtype(native, self.model.tensors, self.dtype)

    def moe(self, layer: int | None) -> bool:
        return layer is not None and self.layers[layer].mlp.moe is not None


def _write_torch(written: _Written, placed: Mapping[tuple[int, int], range], common: dict[str, object]) -> None:
    layout, architecture = written.layout, written.model.architecture
    grouped = layout.grouped and layout.names == "local"
    order = "2.0" if layout.version >= 2 else "1.0" if layout.version >= 1 else "0"
    bound = Layout(tables(architecture, order=order, grouped=grouped, tp=layout.tp), architecture)
    for t in range(layout.tp):
        for e in range(layout.ep):
            natives = [_block(native, t, layout) for native in bound.natives({"tp": (t, layout.tp), "ep": (e, layout.ep)}).values()]
            for p in range(layout.pp):
                held = {chunk: list(_stage(written, natives, placed, p, chunk, e)) for chunk in range(layout.vpp)}
                _write_rank(written, (t, p, e), held, common)


def _block(native: Native, rank: int, layout: _Layout) -> Native:
    """The rank's rows of a tensor that is cut into blocks; the down projections of TransformerEngine (0.14) are whole."""
    if in_blocks(native) and (layout.names == "local" or not native.name.endswith("_down_proj.weight")):
        return row_block(native, rank, layout.tp)
    return native


def _stage(
    written: _Written, natives: list[Native], placed: Mapping[tuple[int, int], range], stage: int, chunk: int, expert_rank: int
) -> Iterator[tuple[str, tuple[int, ...], Native]]:
    """The stored name, the stored shape and the tensor of everything in one (virtual) stage, in the order of the modules."""
    layout = written.layout
    last = (stage, chunk) == (layout.pp - 1, layout.vpp - 1)
    here = placed[stage, chunk]

    def outside(native: Native) -> bool:
        if native.name.startswith("embedding."):
            return (stage, chunk) == (0, 0)
        # One stage holds both ends of the model: its tied head is the embedding itself.
        return last and not (native.row.copy and layout.pp == 1)

    first = [native for native in natives if native.layer is None and native.name.startswith("embedding.") and outside(native)]
    inside = [native for native in natives if native.layer in here] if here else []
    ends = [native for native in natives if native.layer is None and not native.name.startswith("embedding.") and outside(native)]
    for native in [*first, *sorted(inside, key=lambda native: native.layer), *ends]:
        local = None if native.layer is None else native.layer - here.start
        expert = naming.expert_of(native.name)
        if expert is not None:
            expert -= expert_rank * (written.layers[native.layer].mlp.moe.experts // layout.ep)
        name = naming.renumbered(native.name, local, expert)
        if layout.names == "te":
            name = naming.te(name, latent=written.latent, moe=written.moe(native.layer), grouped=layout.grouped)
        elif layout.names == "legacy":
            name = layout.spelling.name(name, tied=native.row.copy)
        yield name, _stored_shape(native), native


def _stored_shape(native: Native) -> tuple[int, ...]:
    """GroupedMLP keeps its three-dimensional weights as [h, x * 2f] and [x * f, h], without moving an element."""
    if native.row.native.endswith("experts.weight1"):
        experts, hidden, width = native.shape
        return hidden, experts * width
    if native.row.native.endswith("experts.weight2"):
        experts, width, hidden = native.shape
        return experts * width, hidden
    return native.shape


def _write_rank(
    written: _Written,
    rank: tuple[int, int, int],
    held: Mapping[int, list[tuple[str, tuple[int, ...], Native]]],
    common: dict[str, object],
) -> None:
    layout = written.layout
    t, p, e = rank
    folder = f"mp_rank_{t:02d}" + (f"_{p:03d}" if layout.pp > 1 else "") + (f"_{e:03d}" if layout.ep > 1 else "")
    path = f"{layout.folder}/{folder}/{_MODEL_FILE}"
    body: dict[str, object] = dict(common)
    for chunk, tensors in held.items():
        state: dict[str, object] = {name: TensorSpec(written.dtype_of(native), shape) for name, shape, native in tensors}
        state |= dict.fromkeys(extra_states(list(state), layout.names))
        body[_model_key(chunk, layout)] = _nested(state, layout.spelling) if layout.names == "legacy" else state
    file, offsets = plan_nest(path, body)
    written.files.append(file)
    by_name = {(inside[0], ".".join(inside[1:])): offset for inside, offset in offsets.items()}
    for chunk, tensors in held.items():
        for name, _, native in tensors:
            written.placements.append(Placement(native, written.dtype_of(native), path, by_name[_model_key(chunk, layout), name]))


def _nested(state: Mapping[str, object], spelling: naming.LegacySpelling) -> dict[str, object]:
    """The nest of dicts of a legacy model, in which all layers lie flat in one."""
    nest: dict = {}
    for name, value in state.items():
        flat, inside = f"language_model.{spelling.container}.", nest
        *path, leaf = ["language_model", spelling.container, name.removeprefix(flat)] if name.startswith(flat) else name.split(".")
        for step in path:
            inside = inside.setdefault(step, {})
        inside[leaf] = value
    return nest


def _model_key(chunk: int, layout: _Layout) -> str:
    return f"model{chunk}" if layout.vpp > 1 else "model"


def _write_dist(written: _Written, common: dict[str, object], homogeneous: bool) -> None:
    layout, architecture = written.layout, written.model.architecture
    natives = [native for native in Layout(tables(architecture), architecture).natives().values() if not native.row.copy]
    natives.sort(key=lambda native: -1 if native.layer is None else native.layer)
    total = sum(math.prod(native.shape) * written.dtype_of(native).size for native in natives)
    size = max(1, math.ceil(total / max(_DIST_FILES, math.ceil(total / _DIST_FILE_BYTES))))
    chunks, done = [], 0
    for native in natives:
        dtype = written.dtype_of(native)
        key, origin, whole = _dist_place(written, native, homogeneous)
        shape = (*([1] * len(origin)), *native.shape)
        file = f"__{done // size}_0.distcp"
        chunks.append(ChunkSpec(key, dtype, (*whole, *native.shape), (*origin, *([0] * len(native.shape))), shape, file))
        done += math.prod(native.shape) * dtype.size
    # Without these objects a loader of default strictness fails with "Missing key ... _extra_state".
    nothing = torch_bytes([None], "archive")
    objects = stacked_extra_states([chunk.tensor for chunk in chunks], written.layers, layout.names, homogeneous)
    plan = plan_distributed(layout.folder, chunks, dict.fromkeys(objects, ("__0_0.distcp", nothing)))
    written.files += plan.files
    for native, chunk, offset in zip(natives, chunks, plan.offsets, strict=True):
        written.placements.append(Placement(native, chunk.dtype, f"{layout.folder}/{chunk.file}", offset))
    # common.pt is read by every version; exactly these four fields are accepted by all (core 0.18 and before)
    content = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    body = {**common, "num_floating_point_operations_so_far": 0, "content_metadata": content}
    backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}
    written.documents[f"{layout.folder}/{COMMON}"] = torch_bytes(body, COMMON)
    written.documents[f"{layout.folder}/{METADATA}"] = plan.metadata
    written.documents[f"{layout.folder}/{DIST_METADATA}"] = json.dumps(backend).encode()


def _dist_place(written: _Written, native: Native, homogeneous: bool) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """The key of a tensor, and its place and the sizes along the axes that only the key's tensor has: layers, experts."""
    name, origin, whole = native.name, (), ()
    if native.layer is not None:
        if written.layout.names == "te":
            name = naming.te(name, latent=written.latent, moe=written.moe(native.layer), grouped=False)
        else:
            name = naming.dist_local(name, latent=written.latent)
        if homogeneous:
            name = name.replace(f"decoder.layers.{native.layer}.", "decoder.layers.", 1)
            origin, whole = (native.layer,), (len(written.layers),)
        expert = _EXPERT.search(name)
        if expert is not None:
            name = _EXPERT.sub(naming.DIST_EXPERTS, name)
            origin, whole = (*origin, int(expert[1])), (*whole, written.layers[native.layer].mlp.moe.experts)
    return name, origin, whole
