"""`ckpt plugin new`: the project of a format plugin, which passes its own tests at once."""

from __future__ import annotations

import os

import click

from ckpt_core.cli.mistakes import OneOf
from ckpt_core.cli.names import PATH
from ckpt_core.cli.output import say
from ckpt_core.errors import UsageError


@click.group(short_help="Begin a plugin for a format of your own.")
def command() -> None:
    """What the author of a format plugin needs."""


@command.command("new", short_help="Write the project of a new plugin.")
@click.argument("name")
@click.argument("folder", type=PATH, metavar="[DIR]", required=False)
@click.option(
    "--container",
    type=OneOf(["safetensors", "torch"]),
    default="safetensors",
    show_default=True,
    help="How the framework keeps its weights.",
)
@click.option(
    "--config", type=OneOf(["json", "yaml"]), default="json", show_default=True, help="How it keeps its config."
)
def new(name: str, folder: str | None, *, container: str, config: str) -> None:
    """Write the project of a plugin for the format NAME to DIR (ckpt-NAME, if it is not given).

    It is a whole plugin, for a framework that does not exist: rewrite it line by line for yours, with its tests beside you.
    """
    from ckpt_core.plugins.installed import format_names
    from ckpt_core.template import project

    if name in format_names():
        raise UsageError(f"a format {name} is installed", expected="a name of its own", fix=f"see: ckpt formats {name}")
    files, folder = project(name, container, config), folder or f"ckpt-{name}"
    if os.path.lexists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        raise UsageError("the folder of the new plugin exists", file=folder, fix="name another one")
    for path, text in files.items():
        place = os.path.join(folder, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "x", encoding="utf-8") as file:
            file.write(text)
    say(f"{folder}: {len(files)} files of a plugin for the format {name}")
    say(f"next: cd {folder}; pip install -e '.[test]'; pytest")
