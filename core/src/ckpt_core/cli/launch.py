"""`ckpt launch`: how a framework is started with a checkpoint, so that it computes the same model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.names import PATH, FormatCommand, FormatName
from ckpt_core.cli.options import layout, reading
from ckpt_core.cli.output import emit_json, say

if TYPE_CHECKING:
    from ckpt_core.launch import Launch


@click.command(cls=FormatCommand, short_help="Print how a framework is started with a checkpoint.")
@click.argument("src", type=PATH)
@click.option(
    "--to", type=FormatName(), metavar="FORMAT", help="The format that SRC is converted to.  [default: its own]"
)
@click.option("--at", "dst", type=PATH, metavar="DST", help="Where the converted checkpoint lies.")
@reading
@layout
def command(src: str, *, as_json: bool, **asked: Any) -> None:
    """Print how the framework is started with SRC, or with what SRC is converted to: a command, or the file it reads.

    A checkpoint does not restore everything: what a framework does not take from it, it silently keeps at its own
    default. Only headers are read, and nothing is written.

    \b
    ckpt launch run/megatron
    ckpt launch Meta-Llama-3-8B --to megatron --at run/llama3 --tp 8 -o megatron_version=0.16
    """
    from ckpt_core.api import launch_of

    launch = launch_of(src, **asked)
    if as_json:
        emit_json({"path": src, **launch.to_json()}, "launch")
    else:
        show(launch)


def show(launch: Launch) -> None:
    """The launch as text that a shell takes, or, where the program reads a file, as that file."""
    from ckpt_core.launch import UNKNOWN, command_text, shell_text

    silent, taken = launch.silent, any(argument.taken for argument in launch.arguments)
    if silent and taken:
        say(f"# {launch.framework} does not take these from the checkpoint, and silently keeps its own:")
        for argument in silent:
            text = shell_text(argument.words) or f"{argument.name}: {argument.value}"
            say(f"#   {text}" + ("" if argument.default is UNKNOWN else f"    (its own: {argument.default})"))
    else:
        told = f"is told {'by this file' if launch.document else 'here'} what the model is, and takes nothing of that from the checkpoint"
        say(f"# {launch.framework} {'finds in the checkpoint what the model is' if taken else told}.")
    if not launch.document:
        for argument in silent:
            if not argument.words:
                say(f"# {argument.name}: {argument.value}")
    for note in launch.notes:
        say(f"# {note}")
    if launch.document:
        say(f"# {shell_text(launch.program)}")
        for line in launch.document.splitlines():
            say(line)
    else:
        for line in command_text(launch).splitlines():
            say(line)
