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

KEY = "num_nextn_predict_layers"
"""The key that counts them."""
NOT_STORED = "the files do not have the layers that predict further tokens, which it counts"
"""Why the key is left where it counts layers that the files have no tensor of."""

_NORMS = ("embed_norm", "hidden_norm", "out_norm")
_FINAL = ("kind", "eps", "zero_centred", "bias")


def _read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    count = values.checked(KEY, config.get(KEY) or 0, values.count)
    if count:
        facts["predictors.count"] = count
        said = {name: facts[f"final_norm.{name}"] for name in _FINAL if f"final_norm.{name}" in facts}
        facts.update({f"predictors.{norm}.{name}": value for norm in _NORMS for name, value in said.items()})


def predictors() -> configs.Entry:
    """How many layers predict further tokens, each built as the last layer is; their three norms are of the kind of the final norm."""
    return decided(
        [KEY],
        ["predictors.*"],
        read=_read,
        values={KEY: [configs.value_of("predictors.count"), 0]},
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

_MERGING = re.compile(r"(?:^|\.)(?:layers\.\d+\.eh_proj|mtp_layers\.\d+\.input_proj)\.weight$")


def stored_predictors(config: Mapping[str, Any], names: Collection[str], same: Same) -> Mapping[str, Any]:
    """The config as the tensors called `names` bear it out: without `KEY` where none of them is of such a layer.

    Raises `CkptError` where there are others than it counts.
    """
    count = sum(_MERGING.search(name) is not None for name in names)
    if not count:
        return without_predictors(config)
    if config.get(KEY) not in (None, 0, count):
        raise CkptError(
            f"key {KEY!r} counts other layers than the files have",
            found=f"{KEY} = {str(config[KEY])[:20]}, and {count} in the files",
            fix="leave these layers out with -o predictors=drop",
        )
    return {**config, KEY: count}


def without_predictors(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the model without them."""
    return {key: value for key, value in config.items() if key != KEY}
