"""Writing a Megatron-DeepSpeed checkpoint for any tensor and pipeline parallel layout, or a universal one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    Checkpoint,
    Refusal,
    Target,
    TargetBuilder,
    WriteRequest,
    dtypes,
    errors,
    facts_of,
    layouts,
    ledgers,
    rewrites,
    schema,
    torch_files,
)
from ckpt_deepspeed.files import LATEST, LATEST_UNIVERSAL
from ckpt_deepspeed.megatron.config import GPT, attention_of, decoder_of, tokens_of
from ckpt_deepspeed.megatron.files import FIRST_LAYER, TOKENIZER, parameter_name, place_of
from ckpt_deepspeed.megatron.rotary import INVERSE_FREQUENCIES
from ckpt_deepspeed.megatron.weights import TABLES
from ckpt_deepspeed.universal import (
    DS_VERSION,
    NEW_MOMENTS,
    add_nest,
    add_optimizer_state,
    add_parameter,
    torch_size,
)
from ckpt_megatron.sdk import DIVISIBLE, inverse_frequencies, namespace, padded, with_biases
from ckpt_megatron.sdk import weights as megatron


@schema.dataclass(frozen=True)
class _Layout:
    """What was decided about the files."""

    tp: int
    pp: int
    step: int
    universal: bool
    version: float

    @property
    def folder(self) -> str:
        return f"global_step{self.step}" + ("_universal" if self.universal else "")


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """A step's folder of weights alone. Raises `Refusal` naming what GPTModelPipe cannot hold."""
    hints, options = checkpoint.hints_for("megatron-deepspeed"), request.options
    universal = bool(hints.get("universal") if options.get("universal") is None else options["universal"])
    layout = _Layout(
        request.tp or 1,
        request.pp or 1,
        int(options.get("step") or 0),
        universal,
        float(hints.get("checkpoint_version") or 3.0),
    )
    moments = bool(options.get("moments", True))
    multiple = int(options.get(DIVISIBLE) or hints.get(DIVISIBLE) or 128)
    model = _expressed_for(rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors), multiple, layout.tp)
    facts = facts_of(model.architecture)
    args = GPT.write(facts, checkpoint.notes)
    _check_ranks(model.architecture, layout)
    dtype = request.dtype or dtypes.commonest(assembly.dtype for assembly in model.tensors.values())
    args |= _run_args(layout, multiple, dtype)
    choices = {megatron.VERSION.name: megatron.VERSION.until(layout.version)}
    builder = TargetBuilder(model, TABLES, dtype, choices=choices)
    natives = [list(builder.natives({"tp": (rank, layout.tp)}).values()) for rank in range(layout.tp)]
    if universal:
        _add_universal(builder, layout, natives, facts["layers"], moments)
    else:
        _add_layers(builder, layout, natives, dtype)
    _add_states(builder, layout, args, natives, facts["layers"])
    return builder.target(
        "megatron-deepspeed",
        sidecars={f"{TOKENIZER}/{name}": sidecar for name, sidecar in checkpoint.sidecars.items()},
        parallel={"tp": layout.tp, "pp": layout.pp},
        decisions={"model": GPT.name, "universal": universal, DIVISIBLE: multiple},
        losses=_losses(dtype, universal, moments),
        said=GPT.said(args),
        config=args,
    )


def _losses(dtype: dtypes.DType, universal: bool, moments: bool) -> Sequence[ledgers.Loss]:
    found = []
    if universal and moments:
        found.append(NEW_MOMENTS)
    if dtype.name == "bf16" and not universal:
        # BF16_Optimizer makes its masters when it is built, and does not refresh them from weights that are loaded later.
        found.append(
            ledgers.Loss(
                "assumed",
                "zero_optimization.stage 1 or above",
                "with stage 0 and bf16, DeepSpeed overwrites weights loaded without optimizer files at the first step",
            )
        )
    return found


# --- the model -----------------------------------------------------------------------------------------------------


def _expressed_for(model: rewrites.Rewritable, multiple: int, tp: int) -> rewrites.Rewritable:
    """The model as GPTModelPipe has it: usual attention scale, a bias everywhere, padded vocabulary."""
    decoder_of(model.architecture)
    tokens = tokens_of(model.architecture)
    model = with_biases(rewrites.folded_attention_scale(model), always=True)
    if tokens.padded_vocabulary % (multiple * tp) == 0:
        return model  # rows that were padded already, and trained
    return rewrites.vocabulary_rows(model, padded(tokens.vocabulary, multiple, tp))


def _check_ranks(architecture: Architecture, layout: _Layout) -> None:
    problems = errors.Problems(f"tp={layout.tp} pp={layout.pp}")
    layers, heads = decoder_of(architecture).layers, attention_of(decoder_of(architecture)).heads
    if heads % layout.tp:
        problems.add(Refusal(f"tp={layout.tp} does not divide the {heads} heads"))
    if len(layers) % layout.pp:
        problems.add(Refusal(f"pp={layout.pp} does not divide the {len(layers)} layers (arguments.py)"))
    problems.raise_any()


def _run_args(layout: _Layout, multiple: int, dtype: dtypes.DType) -> dict[str, Any]:
    """The args that do not describe the model, but that a loader compares or a reader asks for."""
    return {
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        DIVISIBLE: multiple,
        "params_dtype": dtype,
        "bf16": dtype.name == "bf16",
        "fp16": dtype.name == "fp16",
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "apply_query_key_layer_scaling": False,
        "vocab_file": None,
        "iteration": layout.step,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
        "consumed_train_tokens": 0,
    }


# --- the files -----------------------------------------------------------------------------------------------------


def _add_layers(
    builder: TargetBuilder, layout: _Layout, ranks: Sequence[Sequence[layouts.Native]], dtype: dtypes.DType
) -> None:
    """`layer_XX-model_YY` for every place in the list of pipeline layers that holds tensors, and every rank."""
    decoder = decoder_of(builder.architecture)
    layers, frequencies = len(decoder.layers), inverse_frequencies(attention_of(decoder))
    for rank, natives in enumerate(ranks):
        places: dict[int, list[tuple[str, layouts.Native]]] = {}
        for native in natives:
            place, name = place_of(native.name, layers)
            places.setdefault(place, []).append((name, native))
        for place in sorted(places):
            path = f"{layout.folder}/layer_{place:02d}-model_{rank:02d}-model_states.pt"
            specs = {name: torch_files.TensorSpec(dtype, native.shape) for name, native in places[place]}
            buffer: dict[tuple, bytes] = {}
            if frequencies is not None and FIRST_LAYER <= place < FIRST_LAYER + layers:
                specs |= {INVERSE_FREQUENCIES: torch_files.TensorSpec(dtype, frequencies.shape)}
                buffer = {(INVERSE_FREQUENCIES,): dtypes.encode(frequencies, dtype).tobytes()}
            offsets = add_nest(builder, path, specs, buffer)
            for name, native in places[place]:
                builder.place(native, path, offsets[(name,)])


def _add_universal(
    builder: TargetBuilder, layout: _Layout, ranks: Sequence[Sequence[layouts.Native]], layers: int, moments: bool
) -> None:
    """One folder per parameter, as tools/convert_checkpoint/ds_to_universal.py of Megatron-DeepSpeed has them ("v0.1")."""
    for blocks in zip(*ranks, strict=True):
        splits, rows = dict(blocks[0].row.splits), {}
        parts: Sequence[layouts.Native] = blocks if splits else blocks[:1]
        beside = (
            {"cat_dim": 1 if blocks[0].row.native.endswith(("dense.weight", "4h_to_h.weight")) else 0} if splits else {}
        )
        if splits.get("tp") == "v":
            rows["vocab_divisibility_padding_tensor"] = _last_row(blocks[-1])
        name = parameter_name(blocks[0].name, layers)
        if beside.get("cat_dim") == 1:
            parts = [_columns(blocks)]
        add_parameter(builder, layout.folder, name, parts, flat=False, beside=beside, rows=rows, moments=moments)
    add_optimizer_state(builder, layout.folder)


def _columns(blocks: Sequence[layouts.Native]) -> layouts.Native:
    """The tensors of all ranks side by side."""
    width, pieces = blocks[0].shape[1], []
    for rank, block in enumerate(blocks):
        for piece in block.pieces:
            row, column = piece.tile.native_base
            pieces.append(layouts.Part(piece.parameter, piece.tile._replace(native_base=(row, column + rank * width))))
    return replace(blocks[0], shape=(blocks[0].shape[0], width * len(blocks)), pieces=tuple(pieces))


def _last_row(table: layouts.Native) -> layouts.Native:
    """The last row of a table of word embeddings, which stands for its padding."""
    last = table.shape[0] - 1
    (piece,) = table.pieces
    (tile,) = piece.tile.cut_native(0, last, last + 1)
    tile = tile._replace(native_base=(0,), links=tuple(link._replace(dim=0) for link in tile.links if link.dim == 1))
    row = replace(table.row, copy=True)
    return replace(
        table,
        name=f"{table.name} (last row)",
        shape=table.shape[1:],
        pieces=(layouts.Part(piece.parameter, tile),),
        row=row,
    )


def _add_states(
    builder: TargetBuilder,
    layout: _Layout,
    args: Mapping[str, Any],
    ranks: Sequence[Sequence[layouts.Native]],
    layers: int,
) -> None:
    """`mp_rank_MM` for every pair of ranks, and the name of the step; a loader needs all keys, and args only to compare."""
    original = args.get("original_vocab_size")
    stored = namespace({key: value for key, value in args.items() if key != "original_vocab_size"})
    for number in range(layout.tp * layout.pp):
        natives = ranks[number % layout.tp]
        body = {
            "module": None,
            "buffer_names": [],
            "optimizer": None,
            "param_shapes": [{parameter_name(native.name, layers): torch_size(native.shape) for native in natives}]
            if layout.universal
            else None,
            "lr_scheduler": dict.fromkeys(("max_lr", "min_lr"), 0.0)
            | dict.fromkeys(("warmup_steps", "num_steps", "warmup_tokens", "num_tokens", "decay_steps"), 0)
            | {"decay_style": "constant"},
            "skipped_steps": 0,
            "global_steps": layout.step,
            "global_samples": 0,
            "dp_world_size": 1,
            "mp_world_size": layout.tp * layout.pp,
            "ds_config": {},
            "ds_version": DS_VERSION,
            "args": stored,
            "checkpoint_version": layout.version,
            "iteration": layout.step,
            "tokens": 0,
            "checkpoint_info": {"padded_vocab_size": args["padded_vocab_size"], "original_vocab_size": original},
        }
        path = f"{layout.folder}/mp_rank_{number:02d}_model_states.pt"
        builder.documents[path] = torch_files.torch_bytes(body, path)
    builder.documents[LATEST_UNIVERSAL if layout.universal else LATEST] = layout.folder.encode()
