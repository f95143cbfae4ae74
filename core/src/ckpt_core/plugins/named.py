"""Models of one format inside another: DeepSpeed, FSDP and others keep the tensors of a transformers model.

Plugins do not import each other. One that keeps such tensors asks here, and the plugin whose names they are answers.
"""

from __future__ import annotations

from collections.abc import Collection

from ckpt_core.checkpoint import Checkpoint, NamedModel
from ckpt_core.errors import CkptError
from ckpt_core.plugins.discovery import all_plugins, require


def named_by(config: str, names: Collection[str]) -> tuple[str, NamedModel]:
    """The format whose config file `config` is, and its model with tensors called `names`."""
    for plugin in all_plugins():
        if plugin.broken is None:
            model = plugin.hooks.ckpt_named(path=config, names=names)
            if model is not None:
                return plugin.name, model
    raise CkptError("no installed format reads this config", file=config, expected="an HF config.json")


def named_for(format: str, checkpoint: Checkpoint) -> NamedModel:
    """`checkpoint` as a model of `format`, under whose names another format is to keep it."""
    model = require(format).hooks.ckpt_name(checkpoint=checkpoint)
    if model is None:
        raise CkptError(f"models of format {format} are kept by no other format")
    return model
