"""A model as NeMo's T5 can say it: what it cannot say is folded into the weights, or undone where it was folded before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Refusal, facts_of, rewrites
from ckpt_nemo.t5.config import SECTIONS, T5, sections
from ckpt_nemo.values import flag


def expressed_for(
    model: rewrites.Rewritable, notes: Mapping[str, Any], before: Mapping[str, Any], pp: int
) -> tuple[rewrites.Rewritable, dict[str, Any]]:
    """The model and the config keys that say it. `before` is the config it had in NeMo, if it ever was there.

    Raises the refusals of the model as it is, where no rewrite helps.
    """
    # its only ReLU is reglu
    model = rewrites.gated_relu(_headed(rewrites.shared_relative_bias(model), before, pp))
    first: CkptError | None = None
    for candidate in _scaled(model, before):
        try:
            return candidate, T5.write(facts_of(candidate.architecture), notes)
        except CkptError as refusal:
            first = first or refusal
    assert first is not None
    raise first


def _headed(model: rewrites.Rewritable, before: Mapping[str, Any], pp: int) -> rewrites.Rewritable:
    """NeMo scales neither the embedding nor logits. Its pipelines need a tied head; one that was tied before becomes so again."""
    if model.architecture.tokens is not None and model.architecture.tokens.scale != 1:
        model = rewrites.normed_logit_scale(rewrites.folded_embedding_scale(model), 1.0)
    head = model.architecture.head
    if head is None:
        return model
    if before and head.scale == 1 and flag(before, "share_decoder_tokens_head_embeddings", True):
        model = rewrites.tied_head(model)
    elif head.tied and (pp > 1 or (before and flag(before, "share_decoder_tokens_head_embeddings", True))):
        model = rewrites.normed_logit_scale(model, 1.0)
    model = rewrites.folded_logit_scale(model)
    if pp > 1 and model.architecture.head is not None and not model.architecture.head.tied:
        raise Refusal(
            "pipeline stages need share_decoder_tokens_head_embeddings, and this model's head is a matrix of its own",
            found=f"pp={pp}",
            fix="use --pp 1",
        )
    return model


def _scaled(model: rewrites.Rewritable, before: Mapping[str, Any]) -> Iterator[rewrites.Rewritable]:
    """As it is, or with the scale of attention folded into q; first as it was in NeMo before."""
    usual, one = rewrites.folded_attention_scale(model), rewrites.folded_attention_scale(model, 1.0)
    known = sections(before)
    if before and all(flag(known, f"{section}.normalize_attention_scores", True) for section in SECTIONS):
        yield usual
    yield model
    yield usual
    yield one
