"""Exact rewrites: the same function, said with another architecture.

A target that cannot say a fact may still hold the model if the fact can be folded into the weights, exactly.
Each rewrite takes a `Rewritable` and returns one; what it did is recorded, so that a reader of the receipt can
undo it. What no rewrite expresses is refused by the target's tables.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.rewrite.attention import (
        folded_attention_scale,
        folded_head_scale,
        own_relative_bias,
        shared_relative_bias,
    )
    from ckpt_core.rewrite.biases import gated_relu, plain_relu, without_zero_biases, zero_biases
    from ckpt_core.rewrite.experts import without_zero_shared_experts, zero_shared_experts
    from ckpt_core.rewrite.head import (
        folded_embedding_scale,
        folded_logit_scale,
        normed_logit_scale,
        tied_head,
        untied_head,
        vocabulary_rows,
        without_head,
    )
    from ckpt_core.rewrite.model import Rewritable, map_attentions, map_layers, map_mlp, values_of
    from ckpt_core.rewrite.norms import latent_norms, uncentred_norms
    from ckpt_core.rewrite.patches import (
        folded_layer_scale,
        folded_patch_bias,
        resized_images,
    )
    from ckpt_core.rewrite.predictors import without_predictors
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            ".attention": "folded_attention_scale folded_head_scale own_relative_bias shared_relative_bias",
            ".biases": "gated_relu plain_relu without_zero_biases zero_biases",
            ".experts": "without_zero_shared_experts zero_shared_experts",
            ".head": "folded_embedding_scale folded_logit_scale normed_logit_scale tied_head untied_head vocabulary_rows without_head",
            ".model": "Rewritable map_attentions map_layers map_mlp values_of",
            ".norms": "latent_norms uncentred_norms",
            ".patches": "folded_layer_scale folded_patch_bias resized_images",
            ".predictors": "without_predictors",
        },
    )

__all__ = [
    "Rewritable", "folded_attention_scale", "folded_embedding_scale", "folded_head_scale", "folded_layer_scale", "folded_logit_scale", "folded_patch_bias",
    "gated_relu", "latent_norms", "map_attentions", "map_layers", "map_mlp", "normed_logit_scale", "own_relative_bias", "plain_relu", "resized_images",
    "shared_relative_bias", "tied_head", "uncentred_norms", "untied_head", "values_of", "vocabulary_rows",
    "without_head", "without_predictors", "without_zero_biases", "without_zero_shared_experts", "zero_biases", "zero_shared_experts",
]  # fmt: skip
