"""Names that a shell can complete and `--help` can list: formats, their options, families of models.

Nothing is imported but for the shell's sake, or for that of a `--help` that names a format.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ckpt_core.plugins.request import Option


PATH = click.Path(readable=False)
"""A path or an address, which shells complete. Whether anything is there is said where it is opened."""


class FormatName(click.ParamType):
    """The name of an installed format. Whether there is one is said where it is looked up."""

    name = "format"

    def known(self) -> tuple[str, ...]:
        from ckpt_core.plugins.installed import format_names

        return tuple(format_names())

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value.startswith("-"):  # the next option, as the format was forgotten
            self.fail(f"{value!r} is no format", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from ckpt_core.plugins.installed import format_names

        return those_that_begin(incomplete, format_names())


class FamilyName(click.ParamType):
    """The name of one of the kit's example models."""

    name = "family"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from ckpt_core.architecture.examples import example_architectures

        return those_that_begin(incomplete, example_architectures())


class OptionOfFormat(click.ParamType):
    """KEY=VALUE of an option of the formats that the command line names before it."""

    name = "text"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        known = {option.name: option for _, options in named_formats(ctx) for option in options}
        key, equals, begun = incomplete.partition("=")
        if not equals:
            return [CompletionItem(f"{name}=", help=one.help) for name, one in known.items() if name.startswith(key)]
        values = values_of(known[key]) if key in known else []
        return [CompletionItem(f"{key}={value}") for value in values if value.startswith(begun)]


def those_that_begin(incomplete: str, names: Iterable[str]) -> list[CompletionItem]:
    """What a shell offers of some names."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def values_of(option: Option) -> list[str]:
    """The values of an option, where they can be counted."""
    if isinstance(option.kind, tuple):
        return list(option.kind)
    return ["true", "false"] if option.kind is bool else []


def named_formats(ctx: click.Context) -> list[tuple[str, list[Option]]]:
    """What the command line says so far: each format that it reads or writes, with the options of that side."""
    asked = _asked(ctx)
    if not any(asked.values()):
        return []  # without an import
    from ckpt_core.plugins.discovery import load
    from ckpt_core.plugins.installed import format_names

    found = []
    for side, name in asked.items():
        if name in format_names() and load(name).broken is None:
            options = load(name).info.options
            found.append((name, [one for one in options if side in (one.side, "both") or one.side == "both"]))
    return found


def _asked(ctx: click.Context) -> dict[str, str | None]:
    """The name of a format by what it does, as the command line has it."""
    said = ctx.meta.get("ckpt.arguments", ())
    if ctx.info_name == "selftest":
        return {"both": next((word for word in said if not word.startswith("-")), None)}
    return {"read": _after(said, "--from"), "write": _after(said, "--to")}


def _after(words: Iterable[str], option: str) -> str | None:
    """The value of an option among words: `--to hf` or `--to=hf`."""
    words = list(words)
    for number, word in enumerate(words):
        if word == option and number + 1 < len(words):
            return words[number + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


class FormatCommand(click.Command):
    """A command whose `--help` lists the options of the formats that the command line names: `ckpt convert --help --to hf`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["ckpt.arguments"] = tuple(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        for asked in filter(None, _asked(ctx).values()):
            from ckpt_core.plugins.discovery import require

            require(asked)  # a name that is misspelled is an error here, too
        for name, options in named_formats(ctx):
            from ckpt_core.plugins.request import option_table

            rows = [
                (f"-o {key}={values}", text + (f"  [default: {default}]" if default else ""))
                for key, values, default, text in option_table(options)
            ]
            with formatter.section(f"Options of {name}"):
                formatter.write_dl(rows or [("none", "")])
