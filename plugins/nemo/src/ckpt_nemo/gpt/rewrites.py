"""A model as NeMo's GPT has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Refusal, facts_of, rewrites
from ckpt_megatron.sdk import padded, with_biases
from ckpt_nemo.gpt.layout import FileLayout
from ckpt_nemo.gpt.versions import newer


def expressed_for(model: rewrites.Rewritable, layout: FileLayout, hints: Mapping[str, Any]) -> rewrites.Rewritable:
    """The attention scale that can be said, biases on all linear layers or none, and the rows that NeMo expects.

    `hints` are those of a source of this format.
    """
    tokens, facts = model.architecture.tokens, facts_of(model.architecture)
    if tokens is None or facts["kind"] != "decoder":
        raise Refusal(
            "NeMo's GPT model is a decoder that reads tokens",
            found=f"kind = {facts['kind']}" + ("" if tokens else ", no tokens"),
        )
    if layout.names == "mcore" or facts.get("attention.scale") != 1.0:
        model = rewrites.folded_attention_scale(model)
    model = with_biases(model, fused_gelu=layout.names == "mcore" and not newer(layout.version, (2, 0)))
    rows = padded(tokens.vocabulary, layout.multiple, layout.tp)
    ranks = (layout.tp, layout.pp if layout.backend == "ranks" else hints.get("pp"))
    if ranks != (hints.get("tp"), hints.get("pp")):
        # NeMo's own repartitioning goes through one rank, and so keeps no more rows than that has: the rest are zeros.
        model = rewrites.vocabulary_rows(model, padded(tokens.vocabulary, layout.multiple, 1))
    return rewrites.vocabulary_rows(model, rows)
