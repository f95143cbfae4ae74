"""Writing a vision transformer for any number of tensor and pipeline parallel ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    Checkpoint,
    CkptError,
    Target,
    WriteRequest,
    architecture_of,
    company,
    dtypes,
    facts_of,
    layouts,
    ledgers,
    rewrites,
    schema,
)
from ckpt_nemo.container.optimizer import is_norm_or_bias
from ckpt_nemo.container.writing import STEP, Form, NemoBuilder, State, as_stepped, container_for
from ckpt_nemo.gpt.config import TRAINING_KEYS
from ckpt_nemo.vit.config import POSITIONS, VIT, choices_of
from ckpt_nemo.vit.files import Stages, order
from ckpt_nemo.vit.image_processor import differences
from ckpt_nemo.vit.rewrites import expressed_for
from ckpt_nemo.vit.template import TARGET, TEMPLATE, VERSIONS
from ckpt_nemo.vit.weights import CONVOLUTION, LINEAR, TABLES

_SOURCE = "the config of the source"


@schema.dataclass(frozen=True)
class _Files:
    """What was decided about the files."""

    tp: int
    pp: int
    choices: layouts.Chosen
    dtype: dtypes.DType | None


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """The files of a vision transformer's weights. Raises `Refusal` naming what NeMo's ViT cannot hold."""
    hints = checkpoint.hints_for("nemo")
    hints = hints if hints.get("kind") == "vit" else {}
    checkpoint = as_stepped(checkpoint, request, request.dtype)
    before: Mapping[str, Any] = hints.get("config") or {}
    container = container_for(request.options.get("container"), request.destination)
    layer = _patch_layer(checkpoint.architecture, request, hints)
    model = expressed_for(
        rewrites.Rewritable(checkpoint.architecture, checkpoint.tensors, files=checkpoint.files),
        layer,
        request.options.get("image_size"),
    )
    said = VIT.write(facts_of(model.architecture), checkpoint.notes)
    kept = before if _says(before, model.architecture) else _adapted(before, said)
    files = _Files(request.tp or 1, request.pp or 1, choices_of(kept, layer), request.dtype)
    config = _config(kept, model, files, hints)
    form = Form(container, str(hints.get("step") or STEP), config)
    stages = Stages(files.pp, len(model.architecture.encoder.layers) if model.architecture.encoder else 0)
    builder = NemoBuilder(model, TABLES, files.dtype, form, choices=files.choices, trained=checkpoint)
    builder.continue_run(is_norm_or_bias)
    for t in range(files.tp):
        natives = builder.natives({"tp": (t, files.tp)})
        for stage in range(files.pp):
            builder.add_rank((t, stage), (files.tp, files.pp), [_state(natives, stages, stage)])
    processor = (
        company.processor_file(checkpoint, model.architecture) if company.PROCESSOR in checkpoint.sidecars else None
    )
    return builder.packed(
        config,
        {} if processor is None else {company.PROCESSOR: processor},
        {name: file for name, file in checkpoint.sidecars.items() if name != company.PROCESSOR},
        held={company.PROCESSOR} & checkpoint.sidecars.keys(),
        losses=list(_losses(checkpoint, model.architecture)),
        parallel={"tp": files.tp, "pp": files.pp},
        decisions={"model": VIT.name, "container": container, "patch_layer": layer},
        # what NeMo does otherwise than a noted processor is among the losses already
        said=VIT.said(config) | {"image_processor": checkpoint.notes.get("image_processor")},
    )


def _patch_layer(architecture: Architecture, request: WriteRequest, hints: Mapping[str, Any]) -> str:
    """The layer that is asked for, else that of the source, else the one that holds the model without any change."""
    asked = request.options.get("patch_layer") or hints.get("patch_layer")
    if asked is not None:
        return str(asked)
    return CONVOLUTION if architecture.patches is not None and not architecture.patches.bias else LINEAR


# --- the config --------------------------------------------------------------------------------------------------------


def _adapted(before: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """A new config for another model than that of `before`: its training settings, and what is `said`."""
    kept = {
        key: value for key, value in before.items() if key in TRAINING_KEYS and not key.startswith("megatron_legacy")
    }
    return {**TEMPLATE, **kept, **said, **({POSITIONS: before[POSITIONS]} if POSITIONS in before else {})}


def _config(
    kept: Mapping[str, Any], model: rewrites.Rewritable, files: _Files, hints: Mapping[str, Any]
) -> dict[str, Any]:
    kind = dtypes.commonest(files.dtype or assembly.dtype for assembly in model.tensors.values()).name
    same_layer = hints.get("patch_layer") == files.choices["patch_layer"]
    return {
        **kept,
        "tensor_model_parallel_size": files.tp,
        "pipeline_model_parallel_size": files.pp,
        "virtual_pipeline_model_parallel_size": None,
        "megatron_amp_O2": kind in ("bf16", "fp16"),
        "precision": {"bf16": "bf16", "fp16": 16}.get(kind, kept.get("precision", 32)),
        "target": kept.get("target") or TARGET,
        "nemo_version": kept.get("nemo_version")
        if same_layer and "nemo_version" in kept
        else VERSIONS[str(files.choices["patch_layer"])],
    }


def _says(before: Mapping[str, Any], architecture: Architecture) -> bool:
    """Whether a config describes a model; of the bias of patches it says nothing."""
    if not before or architecture.patches is None:
        return False
    try:
        facts, _ = VIT.read(before, _SOURCE)
        facts["patches.bias"] = architecture.patches.bias
        return not schema.differing(facts_of(architecture_of(facts, _SOURCE)), facts_of(architecture))
    except CkptError:
        return False


def _losses(checkpoint: Checkpoint, architecture: Architecture) -> Iterator[ledgers.Loss]:
    settings = company.processor_settings(checkpoint)
    if settings is None or architecture.patches is None:
        return
    otherwise = differences({key: value for key, value in settings.items() if key != "size"}, architecture.patches)
    if otherwise:
        why = f"NeMo prepares images in code, by the mean and standard deviation of ImageNet; {company.PROCESSOR} says {', '.join(otherwise)}"
        yield ledgers.Loss("unsaid", "the image processor", why)


# --- the state dict of a rank ------------------------------------------------------------------------------------------


def _state(natives: Mapping[str, layouts.Native], stages: Stages, stage: int) -> State:
    """The state dict of a stage, in the order of the modules."""
    named = ((stages.name(name, stage), natives[name]) for name in sorted(natives, key=order))
    return {f"model.{name}": native for name, native in named if name is not None}
