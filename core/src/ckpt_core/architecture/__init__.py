"""What a model is: schema, canonical parameters with named axes, facts, and the JSON form."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.architecture.canonical import Axis, Parameter, parameters
    from ckpt_core.architecture.facts import Facts, PerLayer, architecture_of, differing, facts_of, same_value
    from ckpt_core.architecture.schema import (
        SCALING_FIELDS,
        Activation,
        Architecture,
        Attention,
        Classifier,
        DeltaNet,
        Head,
        Indexer,
        LatentAttention,
        Layer,
        Mamba,
        Mlp,
        Moe,
        Norm,
        Patches,
        Pooling,
        Positions,
        Predictors,
        Projector,
        RelativeBias,
        Rotary,
        RotaryKind,
        RotaryScaling,
        Router,
        SharedExpert,
        Stack,
        Temperature,
        Tokens,
        Transform,
        Vision,
    )
    from ckpt_core.architecture.serial import dumps, from_json, to_json
    from ckpt_core.architecture.validity import rotary_width, validate
    from ckpt_core.lean import dataclass
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            ".facts": "Facts PerLayer architecture_of differing facts_of same_value",
            ".canonical": "Axis Parameter parameters",
            ".schema": "SCALING_FIELDS Activation Architecture Attention Classifier DeltaNet Head Indexer LatentAttention Layer Mamba Mlp Moe Norm Patches Pooling Positions Predictors Projector RelativeBias Rotary RotaryKind RotaryScaling Router SharedExpert Stack Temperature Tokens Transform Vision",
            ".serial": "dumps from_json to_json",
            ".validity": "rotary_width validate",
            "ckpt_core.lean": "dataclass",
        },
    )

__all__ = [
    "SCALING_FIELDS", "Activation", "Architecture", "Attention", "Axis", "Classifier", "DeltaNet", "Facts", "Head", "Indexer", "LatentAttention", "Layer", "Mamba",
    "Mlp", "Moe", "Norm", "Parameter", "Patches", "PerLayer", "Pooling", "Positions", "Predictors", "Projector", "RelativeBias", "Rotary", "RotaryKind", "RotaryScaling", "Router",
    "SharedExpert", "Stack", "Temperature", "Tokens", "Transform", "Vision", "architecture_of", "dataclass", "differing", "dumps", "facts_of", "from_json", "parameters", "rotary_width",
    "same_value", "to_json", "validate",
]  # fmt: skip
