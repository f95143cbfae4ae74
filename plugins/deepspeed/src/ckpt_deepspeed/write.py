"""Writing a universal checkpoint of a transformers model, which DeepSpeed loads into any ZeRO stage and number of ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ckpt_core.sdk import Checkpoint, Target, TargetBuilder, WriteRequest, dtypes, layouts, rewrites, torch_files
from ckpt_deepspeed.files import LATEST_UNIVERSAL
from ckpt_deepspeed.universal import (
    DS_VERSION,
    NEW_MOMENTS,
    add_nest,
    add_optimizer_state,
    add_parameter,
    torch_size,
)
from ckpt_hf.sdk import CONFIG, model_of_checkpoint

_TAG = "global_step0_universal"


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """A universal folder of weights alone, with the model's `config.json`. Raises `Refusal` naming what transformers cannot hold."""
    hints, options = checkpoint.hints_for("deepspeed"), request.options
    model = model_of_checkpoint(checkpoint)
    flat = bool(hints.get("flat") if options.get("flat") is None else options["flat"])
    moments = bool(options.get("moments", True))
    builder = TargetBuilder(
        rewrites.Rewritable(model.architecture, model.tensors, tuple(model.rewrites)), model.tables, request.dtype
    )
    natives = list(builder.natives().values())
    owned = [native for native in natives if not native.row.copy]
    for native in owned:
        beside = {} if flat else {"cat_dim": 0}
        add_parameter(builder, _TAG, native.name, [native], flat=flat, beside=beside, rows={}, moments=moments)
    add_optimizer_state(builder, _TAG)
    dtype = _module_dtype(builder, owned, hints.get("module"))
    _add_states(builder, natives, flat, dtype)
    builder.documents |= {LATEST_UNIVERSAL: _TAG.encode(), **model.documents}
    return builder.target(
        "deepspeed",
        sidecars={path: sidecar for path, sidecar in checkpoint.sidecars.items() if path not in builder.documents},
        decisions={
            "container": "universal",
            "hf_class": model.class_name,
            "flat": flat,
            **({"tokens": model.tokens} if model.tokens else {}),
        },
        losses=[*model.losses, *([NEW_MOMENTS] if moments else [])],
        said=model.said,
        config={"dtype": dtype.name, "model": json.loads(model.documents[CONFIG])},
        held=checkpoint.sidecars.keys() & builder.documents.keys() & {"preprocessor_config.json"},
    )


def _module_dtype(builder: TargetBuilder, natives: Sequence[layouts.Native], known: object) -> dtypes.DType:
    """The training dtype: what was asked for, that of the source's module, or the commonest."""
    if builder.dtype is not None:
        return builder.dtype
    return dtypes.dtype_named(known) if isinstance(known, str) else dtypes.commonest(map(builder.dtype_of, natives))


def _add_states(builder: TargetBuilder, natives: Sequence[layouts.Native], flat: bool, dtype: dtypes.DType) -> None:
    """The model states: names, shapes, and the weights in the training dtype, which ZeRO-3 leaves empty."""
    owners = {piece.parameter: native.name for native in natives if not native.row.copy for piece in native.pieces}
    aliases = {native.name: owners[native.pieces[0].parameter] for native in natives if native.row.copy}
    module = {
        native.name: torch_files.TensorSpec(
            dtype, (0,) if flat else native.shape, storage=aliases.get(native.name, native.name)
        )
        for native in natives
    }
    body = {
        "module": module,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [{native.name: torch_size(native.shape) for native in natives if not native.row.copy}],
        "frozen_param_shapes": None,
        "shared_params": aliases,
        "frozen_param_fragments": None,
        "lr_scheduler": None,
        "data_sampler": None,
        "random_ltd": None,
        "skipped_steps": 0,
        "global_steps": 0,
        "global_samples": 0,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
        "ds_config": {},
        "ds_version": DS_VERSION,
    }
    path = f"{_TAG}/" + ("zero_pp_rank_0_mp_rank_00_model_states.pt" if flat else "mp_rank_00_model_states.pt")
    offsets = add_nest(builder, path, body)
    for native in () if flat else natives:
        if not native.row.copy:
            builder.place(native, path, offsets["module", native.name], dtype)
