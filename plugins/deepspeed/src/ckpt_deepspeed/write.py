"""Writing a universal checkpoint of a transformers model, which DeepSpeed loads into any ZeRO stage and number of ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ckpt_core.sdk import (
    Checkpoint,
    DType,
    Native,
    Placement,
    Target,
    WriteRequest,
    dtypes,
    layouts,
    storage_dtype,
    torch_files,
)
from ckpt_deepspeed.files import LATEST_UNIVERSAL
from ckpt_deepspeed.universal import (
    DS_VERSION,
    NEW_MOMENTS,
    Written,
    torch_size,
    write_optimizer_state,
    write_parameter,
)
from ckpt_hf.sdk import CONFIG, TransformersModel, model_of_checkpoint

_TAG = "global_step0_universal"


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """A universal folder of weights alone, with the model's `config.json`. Raises `Refusal` naming what transformers cannot hold."""
    hints, options = checkpoint.hints_for("deepspeed"), request.options
    model = model_of_checkpoint(checkpoint)
    flat = bool(hints.get("flat") if options.get("flat") is None else options["flat"])
    moments = bool(options.get("moments", True))
    natives = list(layouts.BoundTables(model.tables, model.architecture).natives().values())
    written = Written()
    owned = [native for native in natives if not native.row.copy]
    for native in owned:
        beside = {} if flat else {"cat_dim": 0}
        write_parameter(written, _TAG, native.name, [native], flat=flat, beside=beside, rows={}, moments=moments)
    write_optimizer_state(written, _TAG)
    dtype = _module_dtype(model, owned, request, hints.get("module"))
    _write_states(written, model, natives, flat, dtype)
    written.documents |= {LATEST_UNIVERSAL: _TAG.encode(), **model.documents}
    losses = [*model.losses]
    if moments:
        losses.append(NEW_MOMENTS)
    return Target(
        "deepspeed",
        model.architecture,
        model.tensors,
        written.files,
        written.placements,
        written.documents,
        {path: sidecar for path, sidecar in checkpoint.sidecars.items() if path not in written.documents},
        decisions={
            "container": "universal",
            "hf_class": model.class_name,
            "flat": flat,
            "rewrites": list(model.rewrites),
            **({"tokens": model.tokens} if model.tokens else {}),
        },
        losses=losses,
        said=model.said,
        config={"dtype": dtype.name, "model": json.loads(model.documents[CONFIG])},
        held=checkpoint.sidecars.keys() & written.documents.keys() & {"preprocessor_config.json"},
    )


def _module_dtype(model: TransformersModel, natives: Sequence[Native], request: WriteRequest, known: object) -> DType:
    """The training dtype: what was asked for, that of the source's module, or the commonest."""
    if request.dtype is not None or isinstance(known, str):
        return request.dtype or dtypes.dtype_named(str(known))
    return dtypes.commonest(storage_dtype(native, model.tensors, None) for native in natives)


def _write_states(
    written: Written, model: TransformersModel, natives: Sequence[Native], flat: bool, dtype: DType
) -> None:
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
    offsets = written.add(path, body)
    if not flat:
        written.placements += [
            Placement(native, dtype, path, offsets["module", native.name]) for native in natives if not native.row.copy
        ]
