"""Layers of multi-token prediction: how many, and what they are built as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, configs, decided, schema
from ckpt_megatron.args.values import flag, given

COUNT, REPEATED = "mtp_num_layers", "mtp_use_repeated_layer"
_NORMS = ("embed_norm", "hidden_norm", "out_norm")
_FINAL = ("kind", "eps", "zero_centred", "bias")
_BY_LAYER = ("attention.window", "attention.rotary")


def _read(args: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    count = given(args, COUNT, 0)
    if type(count) is not int or count < 0:
        raise CkptError(f"key {COUNT!r} is not a number of layers", found=repr(count)[:80])
    if not count:
        return
    if flag(args, REPEATED) and count > 1:  # since core 0.17
        raise CkptError(
            f"key {REPEATED!r}: one layer of multi-token prediction that is applied {count} times is not supported",
            fix="leave it out with -o predictors=drop",
        )
    differing = [path for path in _BY_LAYER if isinstance(facts.present(path), schema.PerLayer)]
    if differing:
        raise CkptError(
            "layers of multi-token prediction count from 1 on, so that they are not built as the last layer is",
            found=f"{', '.join(differing)} is not the same in all layers",
            fix="leave them out with -o predictors=drop",
        )
    facts["predictors.count"] = count
    said = {name: facts[f"final_norm.{name}"] for name in _FINAL if f"final_norm.{name}" in facts}
    facts.update({f"predictors.{norm}.{name}": value for norm in _NORMS for name, value in said.items()})


def predictors() -> configs.Entry:
    """How many layers of multi-token prediction; their block is that of the last layer (`get_gpt_mtp_block_spec_for_backend`)."""
    return decided(
        [COUNT, REPEATED],
        ["predictors.*"],
        read=_read,
        values={COUNT: [configs.value_of("predictors.count"), configs.LEFT_OUT]},
        uses=[*(f"final_norm.{name}" for name in _FINAL), *_BY_LAYER],
        why="how many layers, built as the last one is, predict a further token each; their norms are of the kind of the final norm, "
        "and attention is the same in all layers, as these count their own from 1 on",
    )
