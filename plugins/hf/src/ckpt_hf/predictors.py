"""Layers that predict further tokens (multi-token prediction): how many there are, and what their tensors are called.

No class of transformers has them: it leaves their tensors where they are when it loads a model, and saves the model without them. So
a config may count layers that the files do not have, and only the names of tensors say whether they are there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, Table, configs, decided, drop, row, values
from ckpt_hf.common import Same
from ckpt_hf.files import SECTION

KEY = "num_nextn_predict_layers"
"""The key that counts them."""
QWEN = "mtp_num_hidden_layers"
"""The key that counts them since Qwen 3.5."""
KEYS = (KEY, QWEN)
NOT_STORED = "the files do not have the layers that predict further tokens, which it counts"
"""Why the key is left where it counts layers that the files have no tensor of."""

_NORMS = ("embed_norm", "hidden_norm", "out_norm")
_FINAL = ("kind", "eps", "zero_centred", "bias")


def predictors(key: str = KEY, *, none: object = 0) -> configs.Entry:
    """How many layers predict further tokens, each built as the last layer is; their three norms are of the kind of the final norm.

    `none` is what `key` says of a model without any.
    """

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        count = values.checked(key, config.get(key) or 0, values.count)
        if count:
            facts["predictors.count"] = count
            said = {name: facts[f"final_norm.{name}"] for name in _FINAL if f"final_norm.{name}" in facts}
            facts.update({f"predictors.{norm}.{name}": value for norm in _NORMS for name, value in said.items()})

    return decided(
        [key],
        ["predictors.*"],
        read=read,
        values={key: [configs.value_of("predictors.count"), none]},
        uses=[f"final_norm.{name}" for name in _FINAL],
        why="how many layers, built as the last one is, predict a further token each; their norms are of the kind of the final norm",
    )


# fmt: off
# Where they are numbered on after the layers of the model: DeepSeek-V3, GLM-4.5. Files hold the embedding and the head once more for each.
AFTER = "model.layers.{after}"
NUMBERED_ON = (
    Table(AFTER, to="predictors.{l}", rows=[
        row("enorm.weight",            "h",                      "embed_norm.weight"),
        row("hnorm.weight",            "h",                      "hidden_norm.weight"),
        row("eh_proj.weight",          "i ((embed + hidden) h)", "{part}.weight"),
        row("shared_head.norm.weight", "h",                      "out_norm.weight"),
    ]),
    Table(AFTER, rows=[
        row("embed_tokens.weight",     "v h", "embedding.tokens.weight", copy=True),
        row("shared_head.head.weight", "v h", "head.weight",             copy=True),
        row("shared_head.head.weight", "v h", "embedding.tokens.weight", copy=True, when="head.tied"),
    ]),
)
"""Their tables but for that of the block, which has the rows of a layer: `Table(AFTER, to=BLOCK, rows=LAYER.rows)`."""
BLOCK = "predictors.{l}.layer"

# Where the norm on their output has no module of its own: Ling 2, Hy 3 (bailing_moe2_bridge.py, hy_v3_bridge.py of Megatron-Bridge).
NUMBERED_WITHOUT_COPIES = Table(AFTER, to="predictors.{l}", rows=[
    row("enorm.weight",           "h",                      "embed_norm.weight"),
    row("hnorm.weight",           "h",                      "hidden_norm.weight"),
    row("eh_proj.weight",         "i ((embed + hidden) h)", "{part}.weight"),
    row("final_layernorm.weight", "h",                      "out_norm.weight"),
])

# Qwen's files have one: a second would share its norms and its projection.
QWEN_PREDICTOR = Table(rows=[
    row("mtp.pre_fc_norm_embedding.weight", "h",                      "predictors.0.embed_norm.weight"),
    row("mtp.pre_fc_norm_hidden.weight",    "h",                      "predictors.0.hidden_norm.weight"),
    row("mtp.fc.weight",                    "i ((embed + hidden) h)", "predictors.0.{part}.weight"),
    row("mtp.norm.weight",                  "h",                      "predictors.0.out_norm.weight"),
])
QWEN_BLOCK = "mtp.layers.{l}"

MIMO = "model.mtp_layers.{l}"
MIMO_PREDICTOR = Table(MIMO, to="predictors.{l}", rows=[
    row("token_layernorm.weight",  "h",                      "embed_norm.weight"),
    row("hidden_layernorm.weight", "h",                      "hidden_norm.weight"),
    # the hidden state comes first, the other way round than everywhere else
    row("input_proj.weight",       "i ((hidden + embed) h)", "{part}.weight"),
    row("final_layernorm.weight",  "h",                      "out_norm.weight"),
])
# fmt: on

LEFT = Table(rows=[drop("mtp.*", why="the layers that predict further tokens; transformers does not load them")])
"""What lies beside a model whose layers of this kind are not read, as a family's `leftovers`: a loss names them."""

_MERGING = re.compile(r"(?:^|\.)(?:layers\.\d+\.eh_proj|mtp_layers\.\d+\.input_proj|mtp\.fc)\.weight$")


def stored_predictors(
    config: Mapping[str, Any], names: Collection[str], same: Same, key: str = KEY
) -> Mapping[str, Any]:
    """The config as the tensors called `names` bear it out: without `key` where none of them is of such a layer.

    Raises `CkptError` where there are others than it counts.
    """
    count = sum(_MERGING.search(name) is not None for name in names)
    if not count:
        return without_predictors(config)
    if config.get(key) not in (None, 0, count):
        raise CkptError(
            f"key {key!r} counts other layers than the files have",
            found=f"{key} = {str(config[key])[:20]}, and {count} in the files",
            fix="leave these layers out with -o predictors=drop",
        )
    return {**config, key: count}


def without_predictors(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the model without them, also where its language model has a section of its own."""
    return {
        key: without_predictors(value) if key == SECTION and isinstance(value, dict) else value
        for key, value in config.items()
        if key not in KEYS
    }
