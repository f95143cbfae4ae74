"""torchtitan's own arguments of a model, for `--config`: a dump of TransformerModelArgs or Qwen3ModelArgs, as JSON.

Until 0.2 a model is built of one dataclass (models/llama3/model/args.py, models/qwen3/model/args.py), and
`json.dumps(dataclasses.asdict(args))` says all of it. A dump has every field, so none has a default here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_core.sdk import (
    Activation,
    Architecture,
    Config,
    Facts,
    architecture_of,
    configs,
    decided,
    derived,
    documents,
    fact_is,
    ignore,
    key,
    key_is,
    nested,
    note,
    same_as,
    schema,
)

_NORMS = ("attention.norm", "mlp.norm", "final_norm")


def _read_width(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """`FeedForward.__init__`: two thirds of four times `dim`, stretched, and rounded up."""
    wide = int(2 * 4 * config["dim"] / 3)
    multiplier, multiple = config["ffn_dim_multiplier"], config["multiple_of"]
    facts["mlp.ffn"] = multiple * math.ceil((wide if multiplier is None else int(multiplier * wide)) / multiple)


# fmt: off
_COMMON: list[configs.Entry | Sequence[configs.Entry]] = [
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    key("dim", "hidden"),
    key("n_layers", "layers"),
    key("n_heads", "attention.heads"),
    key("n_kv_heads", "attention.groups", default=same_as("n_heads")),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    fact_is("mlp.gated", True),
    fact_is("mlp.activation", Activation.SILU),
    *(fact_is(f"{norm}.kind", "rms") for norm in _NORMS),
    key("rope_theta", "attention.rotary.theta"),
    note("max_seq_len", "max_positions"),
    ignore("depth_init", why="how weights were initialised"),
    # block_causal ends attention where a document ends: eos_id says where, and a prompt has one document
    ignore("attn_mask_type", "eos_id", why="how documents in one sequence are kept apart while training"),
    ignore("attn_type", "use_flex_attn", why="which function computes attention"),
]

LLAMA3 = Config("torchtitan's TransformerModelArgs", [
    *_COMMON,
    derived(None, "attention.head_dim", "dim / n_heads"),
    decided(["ffn_dim_multiplier", "multiple_of"], ["mlp.ffn"], read=_read_width, uses=["dim"],
            values={"ffn_dim_multiplier": [None], "multiple_of": [configs.value_of("mlp.ffn")]},
            why="two thirds of 4 dim, times ffn_dim_multiplier, rounded up to multiple_of"),
    key("norm_eps", *(f"{norm}.eps" for norm in _NORMS)),
    fact_is("head.tied", False),
    # precompute_freqs_cis scales always; versions without the field do not, and their dumps are refused
    nested("rope_scaling_args", [
        fact_is("attention.rotary.scaling.kind", schema.RotaryKind.LLAMA3),
        key("scaling_factor", "attention.rotary.scaling.factor"),
        key("low_freq_factor", "attention.rotary.scaling.low_frequency_factor"),
        key("high_freq_factor", "attention.rotary.scaling.high_frequency_factor"),
        key("original_max_position_embeddings", "attention.rotary.scaling.original_positions"),
    ]),
])

QWEN3 = Config("torchtitan's Qwen3ModelArgs", [
    *_COMMON,
    key("head_dim", "attention.head_dim"),
    key("hidden_dim", "mlp.ffn"),
    fact_is("attention.qk_norm.kind", "rms"),
    key("norm_eps", *(f"{norm}.eps" for norm in (*_NORMS, "attention.qk_norm"))),
    key_is("qk_norm", True, why="without these norms nothing tells the model from llama3, which rotates other elements"),
    key_is("moe_enabled", False, why="experts are read with the config of transformers alone", fix="give its config.json"),
    ignore("moe_inter_dim", "moe_args", why="of experts, which this model does not have"),
    key("enable_weight_tying", "head.tied"),
])
# fmt: on


def architecture_in(path: str) -> Architecture | None:
    """The architecture in a dump of arguments; None if the file is not one.

    `depth_init` tells it from the `params.json` of Meta's own code, which has the other names, too.
    """
    args = documents.read_json_object(path) if path.endswith(".json") else {}
    if not {"dim", "n_layers", "depth_init"} <= args.keys():
        return None
    return architecture_of((QWEN3 if "qk_norm" in args else LLAMA3).read(args, path)[0], path)
