"""`ckpt fingerprint`: one hash that depends on the model alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.names import PATH, FormatCommand
from ckpt_core.cli.options import reading, training_state
from ckpt_core.cli.output import emit_json, say
from ckpt_core.cli.progress import progress, steadily_said

if TYPE_CHECKING:
    from ckpt_core.checkpoint import Checkpoint


@click.command(cls=FormatCommand, short_help="Hash the model in a checkpoint.")
@click.argument("src", type=PATH)
@reading
@training_state
def command(src: str, *, as_json: bool, training: bool, **asked: Any) -> None:
    """Print `v2-HEX SRC`: a hash of names, shapes and values, and the version of how it is made.

    Equal models have equal fingerprints, whatever format, parallel layout or dtype they are stored in. With --training-state it is that
    of the moments of the optimizer, and of its masters where they lie beside the weights.

    \b
    ckpt fingerprint run/step-1000
    """
    from ckpt_core.api import digests, fingerprint_of, of_training, read_checkpoint
    from ckpt_core.tensors.digest import VERSION

    def hashed() -> tuple[Checkpoint, str]:
        checkpoint = read_checkpoint(src, **asked, training_state="keep" if training else "drop")
        checkpoint = of_training(checkpoint) if training else checkpoint
        with progress("hashing") as listener:
            return checkpoint, fingerprint_of(checkpoint, digests(checkpoint, listener=listener))

    checkpoint, value = steadily_said(hashed)
    if as_json:
        emit_json(
            {
                "fingerprint": value,
                "version": VERSION,
                "path": src,
                "format": checkpoint.format,
                "tensors": len(checkpoint.tensors),
            },
            "fingerprint",
        )
    else:
        say(f"{value} {src}")
