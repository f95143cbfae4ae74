"""Biases that are zero, and a ReLU that is said with a gate."""

from __future__ import annotations

from dataclasses import replace

from ckpt_core.architecture import Activation, Architecture, Attention, Layer, Mlp, Stack, parameters
from ckpt_core.rewrite.model import Rewritable, holds_only, map_attentions, map_layers, map_mlp, map_stacks
from ckpt_core.tensors.assembly import LazyParameter
from ckpt_core.text import plural


def zero_biases(model: Rewritable, architecture: Architecture) -> Rewritable:
    """The model under an `architecture` that differs by biases alone, if at all; biases the model lacks become zeros.

    They are of the dtype of the model's first tensor.
    """
    if architecture == model.architecture:
        return model
    wanted, dtype = parameters(architecture), next(iter(model.tensors.values())).dtype
    added = [name for name in wanted if name not in model.tensors]
    tensors = {
        name: model.tensors[name] if name in model.tensors else LazyParameter(wanted[name], dtype, (), fill=0.0)
        for name in wanted
    }
    return model.rewritten(architecture, tensors, f"zero biases added ({plural(len(added), 'tensor')})")


def without_zero_biases(model: Rewritable, among: str = ".bias") -> Rewritable:
    """The model without the biases of projections and of the head whose every value is zero. Reads the biases.

    `among`: only those whose names end so.
    """
    names = [name for name in model.tensors if name.endswith(among) and "norm" not in name]
    zero = {name for name in names if holds_only(model.tensors[name], model.files, 0.0)}
    if not zero:
        return model

    def kept(flag: bool, *parts: str) -> bool:
        return flag and not all(part in zero for part in parts if part in model.tensors)

    def attention(paths: list[str], name: str, old: Attention | None) -> Attention | None:
        if old is None:
            return None
        q, k, v, out = (
            kept(getattr(old, f"{part}_bias"), *(f"{path}.{name}.{part}.bias" for path in paths))
            for part in ("q", "k", "v", "out")
        )
        return replace(old, q_bias=q, k_bias=k, v_bias=v, out_bias=out)

    def layer(paths: list[str], old: Layer) -> Layer:
        mlp = old.mlp
        if mlp is not None:
            up = kept(mlp.up_bias, *(f"{path}.mlp.{part}.bias" for path in paths for part in ("up", "gate")))
            down = kept(mlp.down_bias, *(f"{path}.mlp.down.bias" for path in paths))
            mlp = replace(mlp, up_bias=up, down_bias=down)
        return replace(
            old,
            attention=attention(paths, "attention", old.attention),
            cross_attention=attention(paths, "cross_attention", old.cross_attention),
            mlp=mlp,
        )

    def stack(prefix: str, old: Stack) -> Stack:
        names = [f"{prefix}{block}" for block in old.blocks]
        # those that predict further tokens have the biases of the last layer, or none of them
        paths = [[name] for name in names[: len(old.layers) - 1]] + [names[len(old.layers) - 1 :]]
        return replace(old, layers=tuple(map(layer, paths, old.layers)))

    architecture, head = map_stacks(model.architecture, stack), model.architecture.head
    if head is not None:
        architecture = replace(architecture, head=replace(head, bias=kept(head.bias, "head.bias")))
    tensors = {name: model.tensors[name] for name in parameters(architecture)}
    left = len(model.tensors) - len(tensors)
    return model.rewritten(architecture, tensors, f"biases of zeros left out ({plural(left, 'tensor')})")


def gated_relu(model: Rewritable) -> Rewritable:
    """A plain ReLU as a gated one whose second factor is one: its weight is zero and its bias one. Biases are added everywhere.

    relu(x W) = relu(x W) (x 0 + 1), for a format whose only ReLU is a gated one.
    """

    def is_plain(layer: Layer) -> bool:
        mlp = layer.mlp
        return mlp is not None and not mlp.gated and mlp.activation == Activation.RELU and mlp.moe is None

    stacks = model.architecture.stacks
    if not all(is_plain(layer) for stack in stacks.values() for layer in stack.layers):
        return model

    def gated(layer: Layer) -> Layer:
        layer = map_attentions(layer, lambda old: replace(old, q_bias=True, k_bias=True, v_bias=True, out_bias=True))
        return map_mlp(layer, lambda old: replace(old, gated=True, up_bias=True, down_bias=True))

    architecture = map_layers(model.architecture, gated)
    tensors: dict[str, LazyParameter] = {}
    for name, parameter in parameters(architecture).items():
        part, source = name.rpartition(".mlp.")[2], name
        if part.startswith("gate."):  # what was the only factor is the one that the activation is applied to
            source = name.replace(".mlp.gate.", ".mlp.up.")
        if part.startswith("up.") or source not in model.tensors:
            dtype = next(iter(model.tensors.values())).dtype
            tensors[name] = LazyParameter(parameter, dtype, (), fill=float(part == "up.bias"))
        else:
            tensors[name] = replace(model.tensors[source], parameter=parameter)
    return model.rewritten(architecture, tensors, "relu written with a gate that is one everywhere")


def plain_relu(model: Rewritable) -> Rewritable:
    """The way back from `gated_relu`, for a model whose second factors are still one. Reads them."""

    def is_gated(mlp: Mlp) -> bool:
        plain = mlp.clamp is None and mlp.up_offset == 0.0  # else the second factor is not what `up` is
        return mlp.gated and mlp.activation == Activation.RELU and mlp.moe is None and mlp.up_bias and plain

    paths = [
        f"{prefix}{block}.mlp"
        for prefix, stack in model.architecture.stacks.items()
        for block, layer in stack.blocks.items()
        if layer.mlp is not None and is_gated(layer.mlp)
    ]
    if len(paths) != sum(len(stack.blocks) for stack in model.architecture.stacks.values()) or not all(
        holds_only(model.tensors[f"{path}.up.bias"], model.files, 1.0)
        and holds_only(model.tensors[f"{path}.up.weight"], model.files, 0.0)
        for path in paths
    ):
        return model
    architecture = map_layers(model.architecture, lambda layer: map_mlp(layer, lambda mlp: replace(mlp, gated=False)))
    tensors = {
        name: replace(model.tensors[name.replace(".mlp.up.", ".mlp.gate.")], parameter=parameter)
        for name, parameter in parameters(architecture).items()
    }
    return model.rewritten(architecture, tensors, "relu without its gate, which is one everywhere")
