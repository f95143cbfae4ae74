"""The options that several commands share, and the types of their values."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.mistakes import OneOf, named
from ckpt_core.cli.names import PATH, FormatName, OptionOfFormat, those_that_begin
from ckpt_core.errors import CkptError, ProblemsFound, UsageError, did_you_mean
from ckpt_core.sizes import parse_size

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Size(click.ParamType):
    """A number of bytes with a unit."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except UsageError as problem:
            raise UsageError(
                f"{named(param)} is no size", found=value, expected="256MiB, 2GB or a number of bytes"
            ) from problem


class DtypeName(click.ParamType):
    """`keep`, or the name of a dtype that weights are written in: ours, or that of torch or safetensors."""

    name = "dtype"

    def known(self) -> tuple[str, ...]:
        from ckpt_core.storage.dtypes import WRITTEN

        return ("keep", *WRITTEN)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "keep":
            return "keep"
        from ckpt_core.storage.dtypes import written_dtype

        return written_dtype(str(value)).name

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return those_that_begin(incomplete, self.known())


def pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise UsageError(f"-o takes KEY=VALUE, and not {value!r}", expected="-o KEY=VALUE")
        if name in found:
            raise UsageError(f"the option {name!r} is given twice", fix=f"say -o {name}=... once")
        found[name] = text
    return found


def _keeping(command: Callable) -> Callable:
    """Have a command keep what it reads of remote files in the folder `cache`; `UsageError` if all that it reads is on this machine."""

    @functools.wraps(command)
    def keeping(*, cache: str | None, **asked: Any) -> Any:
        if cache is None:
            return command(**asked)
        from ckpt_core.storage.bytes.home import absolute
        from ckpt_core.storage.bytes.remote import cache as folder
        from ckpt_core.storage.bytes.remote.schemes import scheme_of

        arguments = [one.name for one in click.get_current_context().command.params if isinstance(one, click.Argument)]
        writes = (
            "to" in asked
        )  # a command that is told the format of DST writes it; the others read all that they are given
        read = [str(asked[name]) for name in arguments if name and not (writes and name == "dst")]
        if all(scheme_of(one) is None for one in read):
            raise UsageError(
                "--cache is for a source in a store, and this one is on this machine",
                file=read[0],
                fix="leave --cache out: nothing is fetched",
            )
        token = folder.set(absolute(cache))
        try:
            return command(**asked)
        finally:
            folder.reset(token)

    return keeping


def reading(command: Callable) -> Callable:
    """The options of every command that reads a checkpoint: `format`, `config`, `options`, `weights`, `as_json`."""
    for option in (
        click.option(
            "--cache",
            type=PATH,
            metavar="DIR",
            help="Keep what is read of hf://, s3:// and the like in this folder, and read it there the next time.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
        click.option(
            "--weights",
            type=OneOf(["auto", "model", "master"]),
            default="auto",
            show_default=True,
            help="Which weights: the model's own, or the optimizer's fp32 masters.",
        ),
        click.option(
            "-o",
            "options",
            type=OptionOfFormat(),
            metavar="KEY=VALUE",
            multiple=True,
            callback=pairs,
            help="An option of a format; with --from or --to, this help lists those.",
        ),
        click.option(
            "--config",
            type=PATH,
            metavar="FILE",
            help="The architecture (an HF config.json or our architecture.json, or a folder with one) of a source that does not say.",
        ),
        click.option(
            "--from",
            "format",
            type=FormatName(),
            metavar="FORMAT",
            help="The format of the source, where it is not recognised.",
        ),
    ):
        command = option(command)
    return _keeping(command)


def reading_words(*, format: str | None, config: str | None, options: dict[str, str], weights: str) -> list[str]:
    """The options of `reading` as they are typed, so that a command that is proposed reads what this one did."""
    words = [] if format is None else ["--from", format]
    words += [] if config is None else ["--config", config]
    words += [] if weights == "auto" else ["--weights", weights]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    return words


def training_state(command: Callable) -> Callable:
    """The option of every command that reads the values of a checkpoint.

    It is a flag, `training`, where `convert` has a choice. The advice of readers is for `convert`, so that an error gets that for the flag.
    """

    @functools.wraps(command)
    def advising(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except CkptError as error:
            for problem in error.problems if isinstance(error, ProblemsFound) else [error]:
                problem.fix = problem.fix and _ADVICE_OF_CONVERT.sub(r"\1leave --training-state out", problem.fix)
            raise

    return click.option(
        "--training-state",
        "training",
        is_flag=True,
        help="Of the state of the training too: the moments of the optimizer, and its masters.",
    )(advising)


_ADVICE_OF_CONVERT = re.compile(r"(^|, or |; )[^,;]*(?:, )?(?:with )?--training-state (?:drop|keep).*$")
"""The last piece of advice where it is for `convert`: `convert the weights alone, with --training-state drop`, with or without others before it."""


def for_each_side(
    options: dict[str, str], names: tuple[str, str], known: tuple[set[str], set[str]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Give each option to every side that declares it; `names[i].key` names one. `UsageError` if neither has it."""
    sides: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for key, value in options.items():
        side, dot, rest = key.partition(".")
        if dot and side in names:
            sides[names.index(side)][rest] = value
            continue
        takers = [number for number in (0, 1) if key in known[number]]
        if not takers:
            every = sorted(known[0] | known[1])
            raise UsageError(
                f"neither format has a read option {key!r}",
                expected=", ".join(every) or "no options",
                fix=did_you_mean(key, every),
            )
        for number in takers:
            sides[number][key] = value
    return sides


def written(command: Callable) -> Callable:
    """The options of every command that writes checkpoints: `to`, `max_shard_size`, `training_state`."""
    for option in (
        click.option(
            "--training-state",
            type=OneOf(["keep", "drop"]),
            help="Whether the optimizer's moments and all that a run needs to go on are taken along.  [default: where both formats can]",
        ),
        click.option(
            "--max-shard-size",
            type=Size(),
            metavar="SIZE",
            help="The largest size of one output file, e.g. 5GB, where the format has several.",
        ),
        click.option(
            "--to", type=FormatName(), required=True, metavar="FORMAT", help="The format to write; see `ckpt formats`."
        ),
    ):
        command = option(command)
    return command


def layout(command: Callable) -> Callable:
    """The options that say how a checkpoint is written: `tp`, `pp`, `ep`, `dtype`."""
    for option in (
        click.option(
            "--dtype",
            type=DtypeName(),
            metavar="DTYPE",
            default="keep",
            show_default=True,
            help="The dtype to store weights in: bf16, fp16, fp32 or fp64 (or as torch calls it, bfloat16); keep leaves each tensor in its own.",
        ),
        click.option("--ep", type=int, metavar="N", help="Expert-parallel ranks of the target, of MoE models."),
        click.option("--pp", type=int, metavar="N", help="Pipeline-parallel ranks of the target."),
        click.option(
            "--tp",
            type=int,
            metavar="N",
            help="Tensor-parallel ranks of the target, where its format has any.  [default of each: 1]",
        ),
    ):
        command = option(command)
    return command
