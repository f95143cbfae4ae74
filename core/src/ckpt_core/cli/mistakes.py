"""Errors in the words of a command line, as a `UsageError`: what is wrong, which values there are, and which one was probably meant."""

from __future__ import annotations

from collections.abc import Iterable

import click

from ckpt_core.errors import UsageError, did_you_mean


def named(parameter: click.Parameter | None) -> str:
    """A parameter as the user writes it: `--to`, or `DST`."""
    if parameter is None:
        return "an argument"
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return parameter.metavar or (parameter.name or "").upper()


def no_such_value(parameter: click.Parameter | None, value: str, known: Iterable[str]) -> UsageError:
    """The error for a value that a parameter does not have."""
    known = list(known)
    meant = did_you_mean(value.lower(), known)
    return UsageError(f"{named(parameter)} has no value {value!r}", expected=" | ".join(known), fix=meant)


class OneOf(click.Choice):
    """One of a few words. The error for another word names the nearest one."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices:
            raise no_such_value(param, str(value), self.choices)
        return str(value)


def as_ours(error: click.ClickException) -> UsageError:
    """An error of click, as a `UsageError` with the parts that all errors have."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return UsageError(_sentence(error.format_message()))
    shown = " ".join(context.get_usage().split()).removeprefix("Usage: ")
    help = f"{context.command_path} --help lists what it takes"
    if isinstance(error, click.NoSuchOption):
        return UsageError(f"{context.command_path} has no option {error.option_name}", fix=_meant(error, context))
    if isinstance(error, click.MissingParameter):
        parameter = error.param
        known: tuple[str, ...] = () if parameter is None else getattr(parameter.type, "known", tuple)()
        return UsageError(f"{named(parameter)} is missing", expected=", ".join(known) or shown, fix=help)
    if isinstance(error, click.BadParameter):
        return UsageError(f"{named(error.param)}: {_sentence(error.message)}", fix=help)
    return UsageError(_sentence(error.format_message()), expected=shown, fix=help)


def _meant(error: click.NoSuchOption, context: click.Context) -> str | None:
    if isinstance(context.command, click.Group):
        return f"options stand after the command: {context.command_path} COMMAND {error.option_name}"
    known = [word for parameter in context.command.params for word in (*parameter.opts, *parameter.secondary_opts)]
    options = [word for word in [*known, "--help"] if word.startswith("-")]
    return did_you_mean(error.option_name, options, f"{context.command_path} --help lists them")


def _sentence(text: str) -> str:
    return (text[:1].lower() + text[1:]).rstrip(".")
