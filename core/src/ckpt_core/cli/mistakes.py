"""Errors in the words of a command line, as a `UsageError`: what is wrong, which values there are, and which one was probably meant."""

from __future__ import annotations

from collections.abc import Iterable

import click

from ckpt_core.errors import UsageError, did_you_mean, nearest

# What frameworks call the options that we have (Megatron-LM's arguments, vLLM's, transformers').
_CALLED = {
    "--tensor-model-parallel-size": "--tp",
    "--tensor-parallel-size": "--tp",
    "--pipeline-model-parallel-size": "--pp",
    "--pipeline-parallel-size": "--pp",
    "--expert-model-parallel-size": "--ep",
    "--expert-parallel-size": "--ep",
    "--torch-dtype": "--dtype",
    "--format": "--to",
    "--num-workers": "--workers",
    "--force": "--overwrite",
}
# What other programs have an option for, and we a place on the command line.
_PLACES = {
    "SRC": ("--src", "--source", "--input", "--model", "--checkpoint", "--path", "--load", "--i"),
    "DST": ("--dst", "--destination", "--output", "--out", "--target", "--save", "--outfile", "--output-dir"),
}


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
    if isinstance(error, click.BadOptionUsage):
        takes_one = error.message.endswith("requires an argument.")
        return UsageError(
            f"{error.option_name} {'wants a value behind it' if takes_one else 'is a switch, and takes no value'}",
            fix="--help lists what each option takes" if takes_one else f"say {error.option_name} alone",
        )
    if context is None:
        return UsageError(_sentence(error.format_message()))
    shown = " ".join(context.get_usage().split()).removeprefix("Usage: ")
    help = f"{context.command_path} --help lists what it takes"
    if isinstance(error, click.NoSuchOption):
        name = _written(error, context)
        return UsageError(f"{context.command_path} has no option {name}", fix=_meant(name, context))
    if isinstance(error, click.MissingParameter):
        parameter = error.param
        known: tuple[str, ...] = () if parameter is None else getattr(parameter.type, "known", tuple)()
        return UsageError(f"{named(parameter)} is missing", expected=", ".join(known) or shown, fix=help)
    if isinstance(error, click.BadParameter):
        return UsageError(f"{named(error.param)}: {_sentence(error.message)}", fix=help)
    return UsageError(_sentence(error.format_message()), expected=shown, fix=help)


def _written(error: click.NoSuchOption, context: click.Context) -> str:
    """The option as the user wrote it: of `-to`, which one hyphen begins, click names the first letter that is no option."""
    said: Iterable[str] = context.meta.get("ckpt.arguments", ())
    name = error.option_name
    if name.startswith("--"):
        return name
    words = (word.partition("=")[0] for word in said if len(word) > 2 and word[0] == "-" != word[1])
    return next((word for word in words if name[1:] in word), name)


def _meant(name: str, context: click.Context) -> str | None:
    parameters = context.command.params
    known = [word for parameter in parameters for word in (*parameter.opts, *parameter.secondary_opts)]
    options = [word for word in [*known, "--help"] if word.startswith("-")]
    if isinstance(context.command, click.Group):
        alike = [word for word in options if abs(len(word) - len(name)) <= 1]  # `--json` is not like `--version`
        return did_you_mean(name, alike, f"options stand after the command: {context.command_path} COMMAND {name}")
    long = name if name.startswith("--") else "-" + name
    if long in options:
        return f"did you mean {long!r}?"
    positional = next(
        (one for one in parameters if isinstance(one, click.Argument) and long in _PLACES.get(named(one), ())), None
    )
    if positional is not None:
        usage = " ".join(named(one) for one in parameters if isinstance(one, click.Argument))
        return f"{named(positional)} has no option: {context.command_path} {usage}"
    called = {ours: ours for ours in options} | {one: ours for one, ours in _CALLED.items() if ours in options}
    exact = called.get(long.replace("_", "-"))
    if exact is None and "-o" in options and (owners := _owners(long)):
        return f"-o {long[2:].replace('-', '_')}=... is an option of {owners}"
    meant = exact or nearest(name, called)
    return f"did you mean {called[meant]!r}?" if meant else f"{context.command_path} --help lists them"


def _owners(long: str) -> str:
    """The formats that have an option which is given as one of the command line."""
    from ckpt_core.plugins.values import owners_of

    return ", ".join(owners_of(long[2:].replace("-", "_"), "read", "write"))


def _sentence(text: str) -> str:
    return (text[:1].lower() + text[1:]).rstrip(".")
