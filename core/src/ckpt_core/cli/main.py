"""The program `ckpt`: finds the command, and turns every way to end into words and an exit code.

    0 done or equal    1 refused or failed    2 wrong usage    3 compared and different    130, 143 interrupted

`CKPT_DEBUG=1` shows tracebacks.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys

import click

from ckpt_core import __version__
from ckpt_core.cli import COLLECTION
from ckpt_core.cli.mistakes import as_ours
from ckpt_core.cli.output import Unprintable, emit_json, open_standard_streams, paint, say
from ckpt_core.errors import CkptError, UsageError, nearest

_COMMANDS = (
    "convert",
    "launch",
    "inspect",
    "diff",
    "fingerprint",
    "verify",
    "selftest",
    "explain",
    "formats",
    "follow",
    "doctor",
    "plugin",
    "schema",
    "completion",
)
# What people call a command elsewhere.
_CALLED = {
    "compare": "diff",
    "check": "doctor",
    "info": "inspect",
    "show": "inspect",
    "list": "formats",
    "hash": "fingerprint",
    "sha": "fingerprint",
    "export": "convert",
    "import": "convert",
    "merge": "convert",
    "reshard": "convert",
    "watch": "follow",
    "test": "selftest",
    "version": "--version",
}
# Click 8.2 and newer: a group of commands without any is an error whose text is the help.
_NO_ARGUMENTS: tuple[type[click.ClickException], ...] = (
    (click.exceptions.NoArgsIsHelpError,) if hasattr(click.exceptions, "NoArgsIsHelpError") else ()
)


class LazyGroup(click.Group):
    """Commands that are imported when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        return importlib.import_module(f"ckpt_core.cli.{cmd_name}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args[0].startswith("-"):
                raise
            meant = _CALLED.get(args[0].lower()) or nearest(args[0], [*_COMMANDS, *_CALLED])
            raise UsageError(
                f"there is no command {args[0]!r}",
                expected=", ".join(_COMMANDS),
                fix=f"did you mean 'ckpt {_CALLED.get(meant, meant)}'?" if meant else None,
            ) from error


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done or equal, 1 refused or failed, 2 wrong usage, 3 compared and different.",
)
@click.version_option(__version__, "-V", "--version", prog_name="ckpt")
def cli() -> None:
    """Convert model checkpoints between training frameworks: exactly, in bounded memory, for any parallel layout."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, or SIGHUP of a terminal that is closed, raised where Ctrl-C would be."""


def _terminate(*_: object) -> None:
    raise Terminated


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; `arguments` default to those of the process."""
    open_standard_streams()
    if "_CKPT_COMPLETE" in os.environ:  # a shell asks
        importlib.import_module("ckpt_core.cli.completion")
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["help"]:  # `ckpt help convert`, as of other programs
        arguments = [*arguments[1:], "--help"]
    as_json = "--json" in arguments
    caught = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # `nohup` has it ignored
        caught.append(signal.SIGHUP)
    before = {one: signal.signal(one, _terminate) for one in caught}
    collection = gc.get_threshold()
    gc.set_threshold(COLLECTION)
    try:
        return cli.main(arguments, prog_name="ckpt", standalone_mode=False) or 0
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, _NO_ARGUMENTS):
            for line in error.format_message().split("\n"):
                say(line, err=True)
            return 2
        if isinstance(error, click.ClickException):
            error = as_ours(error)
        elif os.environ.get("CKPT_DEBUG"):
            raise
        return _report(error, as_json)
    finally:
        gc.set_threshold(*collection)
        for one, handler in before.items():
            signal.signal(one, handler)


def _report(error: BaseException, as_json: bool) -> int:
    """Say what went wrong, once, on the right stream; returns the exit code."""
    code, text, body = _explained(error)
    if as_json and not isinstance(error, Unprintable):
        emit_json({"error": body}, "error")
    else:
        first, *others = [*text.split("\n"), f"  see: docs/troubleshooting.md#{body['anchor']}"]
        say(f"{paint('error', 'red', sys.stderr)}: {first}", err=True)
        for line in others:
            say(line, err=True)
    return code


def _explained(error: BaseException) -> tuple[int, str, dict[str, object]]:
    """Exit code, text and JSON form of whatever ended a command."""
    if isinstance(error, click.Abort) and error.__cause__ is not None:
        error = error.__cause__
    code, about = 1, ""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        code = 143 if isinstance(error, Terminated) else 130
        problem = CkptError("terminated" if code == 143 else "interrupted", fix=_advice(error))
        about = "interrupted"
    elif isinstance(error, CkptError):
        code, problem = error.exit_code, error
    elif isinstance(error, FileNotFoundError) and error.filename is None and not _is_somewhere():
        problem = CkptError("the current folder has been removed", fix="go to one that exists (cd), and try again")
    elif isinstance(error, OSError):
        problem = CkptError(error.strerror or str(error), file=error.filename, fix=_advice(error))
        about = "errors-of-the-system"
    elif isinstance(error, MemoryError):
        problem = CkptError("out of memory", fix="use --max-memory with less, or fewer --workers")
        about = "out-of-memory"
    else:
        fix = "this is a bug in ckpt or in a plugin: please report it with the output of CKPT_DEBUG=1"
        problem = CkptError(f"{type(error).__name__}: {error}", fix=fix)
        about = "a-bug"
    return code, str(problem), problem.to_json() | {"anchor": about or problem.anchor}


def _is_somewhere() -> bool:
    """Whether the current folder is still there."""
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _advice(error: BaseException) -> str | None:
    return " ".join(getattr(error, "__notes__", ())) or None
