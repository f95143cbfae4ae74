"""What the keys of `params.json` mean: the fields of `ModelArgs`, with the defaults of the code where a file leaves them out."""

import math
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    Activation,
    Config,
    Facts,
    configs,
    custom,
    derived,
    fact_is,
    ignore,
    key,
    note,
    same_as,
    schema,
)

NORMS = ("attention.norm", "mlp.norm", "final_norm")


def width(dim: int, multiplier: float | None, multiple: int) -> int:
    """The width of the MLP (`FeedForward.__init__`): two thirds of four times `dim`, stretched, and rounded up."""
    hidden = int(2 * (4 * dim) / 3)
    return multiple * math.ceil((hidden if multiplier is None else int(multiplier * hidden)) / multiple)


def read_width(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    said = config.get("ffn_dim_multiplier"), config.get("multiple_of", 256)
    notes["meta-llama.width"] = list(said)
    facts["mlp.ffn"] = width(config["dim"], *said)


def write_width(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    """The keys of the source if they give this width; else the width itself as the multiple, and what rounds up to it."""
    dim, ffn = config["dim"], facts["mlp.ffn"]
    usual = (None, 256), (ffn / int(2 * (4 * dim) / 3), ffn)
    said = (tuple(notes.get("meta-llama.width") or usual[0]), *usual)
    config["ffn_dim_multiplier"], config["multiple_of"] = next(pair for pair in said if width(dim, *pair) == ffn)


def read_vocabulary(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if config["vocab_size"] > 0:  # Llama 1 and 2 say -1, and the rows are counted
        facts["tokens.vocabulary"] = facts["tokens.padded_vocabulary"] = config["vocab_size"]


def write_vocabulary(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    config["vocab_size"] = facts["tokens.padded_vocabulary"]


# fmt: off
LLAMA = Config("Meta's Llama", [
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    key("dim", "hidden"),
    key("n_layers", "layers"),
    key("n_heads", "attention.heads"),
    key("n_kv_heads", "attention.groups", default=same_as("n_heads")),
    derived(None, "attention.head_dim", "dim / n_heads"),
    custom(["vocab_size"], ["tokens.vocabulary", "tokens.padded_vocabulary"], read=read_vocabulary, write=write_vocabulary,
           why="the rows of the embedding; -1 where a file leaves them to be counted"),
    custom(["ffn_dim_multiplier", "multiple_of"], ["mlp.ffn"], read=read_width, write=write_width, uses=["dim"],
           why="the width of the MLP by a rule that rounds, which has many inverses"),
    fact_is("mlp.gated", True),
    fact_is("mlp.activation", Activation.SILU),
    *(fact_is(f"{norm}.kind", "rms") for norm in NORMS),
    key("norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    fact_is("head.tied", False),
    key("rope_theta", "attention.rotary.theta", default=10000.0),
    configs.switched("use_scaled_rope", [                           # Llama 3.1; the factor of 3.2 is said
        fact_is("attention.rotary.scaling.kind", schema.RotaryKind.LLAMA3),
        fact_is("attention.rotary.scaling.low_frequency_factor", 1.0),
        fact_is("attention.rotary.scaling.original_positions", 8192),
        key("rope_scaling_factor", "attention.rotary.scaling.factor", default=8.0),
        key("rope_high_freq_factor", "attention.rotary.scaling.high_frequency_factor", default=4.0),
    ]),
    note("max_seq_len", "max_positions"),
    ignore("max_batch_size", why="the size of a cache"),
])
