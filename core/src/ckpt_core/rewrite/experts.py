"""A shared expert that adds nothing."""

from __future__ import annotations

from dataclasses import replace

from ckpt_core.architecture import Architecture, Layer, SharedExpert, parameters
from ckpt_core.rewrite.model import Rewritable, holds_only, map_layers
from ckpt_core.tensors.assembly import LazyParameter
from ckpt_core.text import plural


def zero_shared_experts(model: Rewritable) -> Rewritable:
    """The model with a gated shared expert of zeros, as wide as one of the experts, wherever there are experts without one.

    sigmoid(x 0) (act(x 0) (x 0)) 0 = 0. Its tensors are of the dtype of the model's first tensor.
    """

    def shared(layer: Layer) -> Layer:
        moe = layer.moe
        if moe is None or moe.shared is not None:
            return layer
        return _with(layer, SharedExpert(ffn=moe.ffn, gate=True))

    architecture = map_layers(model.architecture, shared)
    if architecture == model.architecture:
        return model
    wanted, dtype = parameters(architecture), next(iter(model.tensors.values())).dtype
    tensors = {
        name: model.tensors[name] if name in model.tensors else LazyParameter(parameter, dtype, (), fill=0.0)
        for name, parameter in wanted.items()
    }
    added = len(tensors) - len(model.tensors)
    return model.rewritten(architecture, tensors, f"shared experts of zeros added ({plural(added, 'tensor')})")


def without_zero_shared_experts(model: Rewritable) -> Rewritable:
    """The way back from `zero_shared_experts`, for a model all of whose shared experts hold only zeros. Reads them."""
    names = [name for name in model.tensors if ".mlp.shared." in name or ".mlp.shared_gate." in name]
    if not names or not all(holds_only(model.tensors[name], model.files, 0.0) for name in names):
        return model
    architecture: Architecture = map_layers(
        model.architecture, lambda layer: _with(layer, None) if layer.moe else layer
    )
    tensors = {name: model.tensors[name] for name in parameters(architecture)}
    return model.rewritten(architecture, tensors, f"shared experts of zeros left out ({plural(len(names), 'tensor')})")


def _with(layer: Layer, shared: SharedExpert | None) -> Layer:
    assert layer.mlp is not None and layer.moe is not None
    return replace(layer, mlp=replace(layer.mlp, moe=replace(layer.moe, shared=shared)))
