"""What a checkpoint that a config class describes is written with, in NeMo 2 as in Megatron-Bridge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Facts, Refusal, dtypes, rewrites, schema
from ckpt_megatron.layout import FileLayout
from ckpt_megatron.rewrites import check_ranks
from ckpt_megatron.transformer_config.reading import RANKS

FUNCTIONS = ("activation_func", "params_dtype", "pipeline_dtype", "autocast_dtype")
"""Fields that hold a function or a dtype, which a dump names."""


def check_layout(model: rewrites.Rewritable, facts: Facts, layout: FileLayout) -> None:
    """`Refusal` for ranks that cannot share a model."""
    check_ranks(model.architecture, layout)
    if facts["layers"] % layout.pp:
        raise Refusal(f"pp={layout.pp} does not divide the {facts['layers']} layers")


def number_layers(fields: dict[str, Any], facts: Facts, hints: Mapping[str, Any]) -> bool:
    """Whether every layer has keys of its own, as it has where moe_layer_freq is a list; enter it as in the source.

    So it has where some layers are delta nets or have an indexer, whatever moe_layer_freq is, and in hybrid models.
    """
    if facts.present("mamba") is not False:
        return True
    if fields.get("hetereogenous_dist_checkpoint"):
        return True
    frequency = fields["moe_layer_freq"]
    if hints.get("layers") == "numbered" and not isinstance(frequency, list) and fields["num_moe_experts"] is not None:
        fields["moe_layer_freq"] = [frequency] * facts["layers"]
    several = (
        isinstance(facts.present("latent_attention.indexer"), schema.PerLayer) or facts.present("delta") is not False
    )
    return isinstance(fields["moe_layer_freq"], list) or several


def running(layout: FileLayout, model: rewrites.Rewritable, dtype: dtypes.DType | None) -> dict[str, Any]:
    """The fields that do not say what the model is, but that a loader builds it by."""
    most = dtypes.commonest(dtype or assembly.dtype for assembly in model.tensors.values())
    sizes = {key: getattr(layout, name) for name, key in RANKS.items() if name != "vpp"}
    dtype_name = f"torch.{most.torch}"
    named = {"params_dtype": dtype_name, "pipeline_dtype": dtype_name}
    if layout.sequence_parallel:
        sizes["sequence_parallel"] = True
    return {**sizes, **named, "bf16": most.name == "bf16", "fp16": most.name == "fp16"}
