"""What a model is: schema, canonical parameters with named axes, facts, and the JSON form."""

from ckpt_core.architecture.facts import Facts, PerLayer, architecture_of, differing, facts_of, same_value
from ckpt_core.architecture.parameters import Axis, Parameter, parameters
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
from ckpt_core.architecture.validate import rotary_width, validate
from ckpt_core.lean import dataclass

__all__ = [
    "SCALING_FIELDS", "Activation", "Architecture", "Attention", "Axis", "Classifier", "DeltaNet", "Facts", "Head", "Indexer", "LatentAttention", "Layer", "Mamba",
    "Mlp", "Moe", "Norm", "Parameter", "Patches", "PerLayer", "Pooling", "Positions", "Predictors", "Projector", "RelativeBias", "Rotary", "RotaryKind", "RotaryScaling", "Router",
    "SharedExpert", "Stack", "Temperature", "Tokens", "Transform", "Vision", "architecture_of", "dataclass", "differing", "dumps", "facts_of", "from_json", "parameters", "rotary_width",
    "same_value", "to_json", "validate",
]  # fmt: skip
