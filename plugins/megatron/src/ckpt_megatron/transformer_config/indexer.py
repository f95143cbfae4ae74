"""Latent attention that sees what an indexer chose: `experimental_attention_variant: dsa` (experimental_attention_variant/dsa.py, core 0.19).

Its function for the layers makes every norm on a latent a module of its own, and an indexer below each core attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Facts,
    Refusal,
    configs,
    custom,
    fact_is,
    ignore,
    key,
    note,
    same_as,
    schema,
    values,
)
from ckpt_megatron.transformer_config.config_fields import inert

_VARIANT, _DSA = "experimental_attention_variant", "dsa"
_EVERY, _OFFSET = "dsa_indexer_topk_freq", "dsa_indexer_skip_topk_offset"
_INDEXER = "latent_attention.indexer"
_BEFORE = "latent_attention.index_from_before"


def _chooses(layer: int, offset: int, every: int) -> bool:
    """Whether a layer, counted from 0 on, has an indexer: `is_dsa_skip_topk_layer`, which counts from 1."""
    return max(layer + 1 - max(offset, 1), 0) % every == 0


def _read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    variant = config.get(_VARIANT)
    if variant is None:
        return
    if variant != _DSA:
        raise CkptError(
            f"key {_VARIANT!r} says something that is not supported", found=repr(variant)[:60], expected=_DSA
        )
    every = values.checked(_EVERY, config.get(_EVERY, 1), values.whole)
    offset = values.checked(_OFFSET, config.get(_OFFSET, 0), values.count)
    facts[_INDEXER + ".heads"] = values.checked("dsa_indexer_n_heads", config.get("dsa_indexer_n_heads"), values.whole)
    chooses = [_chooses(layer, offset, every) for layer in range(facts["layers"])]
    if not all(chooses):
        facts[f"{_INDEXER}?"] = schema.PerLayer(chooses)
        facts[_BEFORE] = schema.PerLayer(not one for one in chooses)


def _write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    layers, present = facts["layers"], facts.present(_INDEXER)
    if present is False:
        return
    chooses = list(present) if isinstance(present, schema.PerLayer) else [True] * layers
    before = facts.get(_BEFORE, False)
    before = list(before) if isinstance(before, schema.PerLayer) else [bool(before)] * layers
    pairs = ((every, offset) for every in range(1, layers + 1) for offset in range(layers + 1))
    fits = (pair for pair in pairs if [_chooses(layer, pair[1], pair[0]) for layer in range(layers)] == chooses)
    found = next(fits, None)
    if found is None or before != [not one for one in chooses]:
        raise Refusal(
            "after some first layers, every n-th has an indexer, and those between see what the one below chose",
            found=f"{_INDEXER} in layers {[layer for layer, one in enumerate(chooses) if one]}",
            fact=f"{_INDEXER}?",
        )
    if facts.present("predictors") is not False and found[0] > 1:
        raise Refusal(
            "layers of multi-token prediction count from 1 on, so that which of them has an indexer is another question",
            found=f"{_EVERY} = {found[0]}",
            fix="leave them out with -o src.predictors=drop",
            fact="predictors.*",
        )
    config |= {
        _VARIANT: _DSA,
        "dsa_indexer_n_heads": configs.uniform(facts, f"{_INDEXER}.heads"),
        _EVERY: found[0],
        _OFFSET: found[1],
    }


def refuse_unwritten_indexer(facts: Facts, version: str, newest: str, names: str) -> None:
    """`Refusal` for a version of Bridge, or modules, of whose indexers nothing is known."""
    if facts.present(_INDEXER) is not False and (version != newest or names != "te"):
        raise Refusal(
            "indexers are written for the newest Bridge and TransformerEngine's modules alone",
            found=f"bridge_version = {version}, names = {names}, {_INDEXER}",
            fix=f"-o bridge_version={newest} -o names=te",
            fact=f"{_INDEXER}.*",
        )


def indexers() -> list[configs.Entry]:
    """The lines of latent attention, some or all of whose layers have an indexer. Where none has, nothing is written."""
    return [
        custom(
            [_VARIANT, "dsa_indexer_n_heads", _EVERY, _OFFSET],
            [f"{_INDEXER}.heads", f"{_INDEXER}?", _BEFORE],
            read=_read,
            write=_write,
            uses=["layers", "predictors.count"],
            why="dsa is an indexer in every n-th layer after some first ones, and the layers between see what the one below chose",
        ),
        configs.where(
            _INDEXER,
            [
                key("dsa_indexer_head_dim", f"{_INDEXER}.head_dim", type=values.whole),
                key("dsa_indexer_topk", f"{_INDEXER}.top_k", type=values.whole),
                key("dsa_indexer_k_norm_epsilon", f"{_INDEXER}.norm.eps", default=same_as("layernorm_epsilon")),
                fact_is(f"{_INDEXER}.norm.kind", "layer"),
                fact_is(f"{_INDEXER}.norm.bias", True),
                fact_is(f"{_INDEXER}.norm.zero_centred", False),
                inert("dsa_indexer_scoring_relu", True),
                note("dsa_indexer_rope_interleaved", "index_interleaved"),
                ignore(
                    "dsa_indexer_rotate_activation",
                    why="both sides of the scores are turned by one rotation, which changes no score",
                    written=lambda facts: False,
                ),
            ],
        ),
    ]
