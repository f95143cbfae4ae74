"""A small adapter of a model, for the self-check of `ckpt doctor`."""

from __future__ import annotations

from ckpt_core.sdk import Adapter, Architecture, schema

RANK = 3
SCALE = 2.0
_MODULES = ("attention.out.weight", "mlp.down.weight")
"""Those that no framework fuses with another: a fused layer has one pair for all of its parts, and so would have more than was written."""


def example(architecture: Architecture) -> Adapter | None:
    """A pair for each layer's output of attention and MLP; None for a model that has neither.

    A has the axes of a parameter's input, and B those of its output, which is the first one here.
    """
    rank = schema.Axis("rank", RANK)
    known: dict[str, schema.Parameter] = {}
    settings = {}
    for name, parameter in schema.parameters(architecture).items():
        if name.endswith(_MODULES) and not name.endswith(("experts.down.weight", "shared.down.weight")):
            out, *into = parameter.axes
            known[f"{name}.A"] = schema.Parameter(f"{name}.A", (rank, *into))
            known[f"{name}.B"] = schema.Parameter(f"{name}.B", (out, rank))
            settings[name] = {"A": f"{name}.A", "scale": SCALE, "dora": False}
    return Adapter(known, settings) if known else None
