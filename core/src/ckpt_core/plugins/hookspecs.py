"""The whole contract between ckpt and a format, on one screen.

A plugin is a module with the functions below, marked `@hookimpl`, and an entry point in the group
`ckpt.formats` whose *name is the format's name*. Functions take any subset of the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import numpy as np

    from ckpt_core.architecture import Architecture
    from ckpt_core.checkpoint import Adapter, Checkpoint, Target
    from ckpt_core.description import Description, Fragment
    from ckpt_core.launch import Launch
    from ckpt_core.plugins.judgement import Judgement
    from ckpt_core.plugins.request import FormatInfo, ReadRequest, WriteRequest
    from ckpt_core.plugins.tables import FamilyTables

SDK = 1

hookspec = pluggy.HookspecMarker("ckpt")
hookimpl = pluggy.HookimplMarker("ckpt")
"""The decorator of every hook that a plugin implements."""

# The bodies are empty: pluggy reads a specification's signature and never calls it.


@hookspec(firstresult=True)
def ckpt_info() -> FormatInfo:  # type: ignore[empty-body]
    """What the format is: one line, its options, its families, the SDK version it was written for."""


@hookspec(firstresult=True)
def ckpt_detect(path: str) -> str | None:
    """If `path` looks like this format, the fact that says so ("config.json beside *.safetensors"); else None."""


@hookspec(firstresult=True)
def ckpt_architecture(path: str) -> Architecture | None:
    """The architecture in a config *file* of this format, for `--config`; None if it is not one."""


@hookspec(firstresult=True)
def ckpt_notes(path: str) -> Mapping[str, object] | None:
    """The notes in a config *file* of this format, for `--config`; None if it is not one. Optional."""


@hookspec(firstresult=True)
def ckpt_read(path: str, request: ReadRequest) -> Description | Checkpoint:  # type: ignore[empty-body]
    """What lies at `path`, from headers alone: the model, and the tensors of every rank. The core makes the checkpoint of it.

    A format with a read option of kind `Checkpoint` returns the checkpoint that it made of the one there.
    """


@hookspec(firstresult=True)
def ckpt_fragment(path: str, request: ReadRequest) -> Fragment | None:
    """What lies at `path`, where that is not a model as `request` stands: an adapter without its base. None for a model. `ckpt inspect`
    shows it. Optional."""


@hookspec(firstresult=True)
def ckpt_write(checkpoint: Checkpoint, request: WriteRequest) -> Target:  # type: ignore[empty-body]
    """The files that would hold `checkpoint` in this format; `Refusal` for what it cannot hold exactly."""


@hookspec(firstresult=True)
def ckpt_adapter(architecture: Architecture) -> Adapter | None:
    """A small adapter of a model, as the format has them: `ckpt doctor` writes it and reads it again, with values of its own. None where
    the format has none of this model. Optional: for formats with `FormatInfo.adapters`."""


@hookspec(firstresult=True)
def ckpt_tables() -> Sequence[FamilyTables]:  # type: ignore[empty-body]
    """What the format calls the tensors and config keys of each kind of model, for `ckpt explain` and for documentation.
    Optional."""


@hookspec(firstresult=True)
def ckpt_launch(target: Target, request: WriteRequest, resumed: bool) -> Launch | None:
    """How the framework is started with `target`, which `ckpt_write` made of `request`, once it lies at the destination.
    `resumed`: it lies there already, with the state of an optimizer. Optional: for formats that a program trains."""


@hookspec(firstresult=True)
def ckpt_logits(checkpoint: Checkpoint, inputs: Mapping[str, np.ndarray]) -> Judgement | np.ndarray | None:
    """What the framework itself makes of a checkpoint of this format: float32 logits, or why there are none; None if it
    is not installed. Nothing that the checkpoint says may be executed.

    `inputs`: int64 `tokens` [batch, position]; of a model with encoder and decoder also `source`; of one that reads images
    `pixels` [batch, channel, y, x]; `mask` and `source_mask` where some tokens are padding. Optional.
    """
