"""How a training framework is started with a checkpoint: what it must be told, and what it finds there by itself.

A checkpoint does not restore everything. What a framework does not take from it, it silently keeps at its own default:
another model, of the same shapes.
"""

from __future__ import annotations

import enum
import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

from ckpt_core.errors import Problems, Refusal
from ckpt_core.lean import dataclass

__all__ = [
    "UNKNOWN",
    "Argument",
    "Launch",
    "command_text",
    "nested",
    "override",
]


class _Unknown(enum.Enum):
    """What is no value, and stays itself when it is copied or pickled."""

    UNKNOWN = enum.auto()

    def __repr__(self) -> str:
        return self.name


UNKNOWN: Final[Literal[_Unknown.UNKNOWN]] = _Unknown.UNKNOWN
"""The default of an argument that its framework demands, or takes from a file of the user's own."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One thing that the framework is told: `name` as it calls it (an attribute, or a path of its config), and `value`.

    `words` say it on a command line; there are none where it need not or can't be said there, or where a document says
    it. `default` is what the framework has unless it is told. `taken`: it finds the value in the checkpoint by itself.
    `model`: it is part of what the model computes; others say where it lies, on which ranks and with what it runs.
    """

    name: str
    value: Any
    words: tuple[str, ...] = ()
    default: Any = UNKNOWN
    taken: bool = False
    model: bool = True

    @property
    def silent(self) -> bool:
        """Whether the framework, unless it is told, computes another model without a word."""
        return self.model and not self.taken and (self.default is UNKNOWN or self.default != self.value)

    def to_json(self) -> dict[str, object]:
        body: dict[str, object] = {"name": self.name, "value": self.value, "words": list(self.words)}
        body |= {} if self.default is UNKNOWN else {"default": self.default}
        return {**body, "taken": self.taken, "silent": self.silent}


@dataclass(frozen=True, slots=True)
class Launch:
    """How `framework` (with its version) is started with one checkpoint.

    `program` and the words of all `arguments` are the command. Where the program reads a file instead, `document` is
    its text. `unsaid` are arguments at values that the framework can't be told, and `fix` says what to do then. `notes` are
    sentences for its user.
    """

    framework: str
    program: tuple[str, ...]
    arguments: tuple[Argument, ...]
    document: str = ""
    unsaid: tuple[Argument, ...] = ()
    fix: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def silent(self) -> tuple[Argument, ...]:
        """The arguments without which the framework computes another model without a word."""
        return tuple(argument for argument in self.arguments if argument.silent)

    def check(self) -> None:
        """Raise a `Refusal` for each argument at a value that the framework can't be told."""
        problems = Problems(f"{self.framework} can't be started with this model")
        for argument in self.unsaid:
            problems.add(
                Refusal(
                    f"no argument of {self.framework} says {argument.name}",
                    found=f"{argument.name} = {argument.value}",
                    expected=None if argument.default is UNKNOWN else str(argument.default),
                    fix=self.fix,
                )
            )
        problems.raise_any()

    @property
    def words(self) -> list[str]:
        """The whole command."""
        return [*self.program, *(word for argument in self.arguments for word in argument.words)]

    def to_json(self) -> dict[str, object]:
        """What `ckpt launch --json` prints and a receipt keeps."""
        return {
            "framework": self.framework,
            "program": list(self.program),
            "command": self.words,
            "arguments": [argument.to_json() for argument in self.arguments],
            **({"document": self.document} if self.document else {}),
            "unsaid": [argument.to_json() for argument in self.unsaid],
            "notes": list(self.notes),
        }


def command_text(launch: Launch) -> str:
    """The command as a shell takes it, one argument a line."""
    lines = [shell_text(launch.program), *(shell_text(one.words) for one in launch.arguments if one.words)]
    return " \\\n  ".join(lines)


def shell_text(words: Iterable[str]) -> str:
    """Words as a shell takes them. A text of Python's is easier to read between double quotes, where nothing in it is the shell's own.

    >>> print(shell_text(["nemo", "model.config.normalization='RMSNorm'", "a b", "it's $5"]))
    nemo "model.config.normalization='RMSNorm'" 'a b' 'it'"'"'s $5'
    """
    return " ".join(
        f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word) for word in words
    )


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted path as nested mappings.

    >>> nested({"model.num_layers": 4, "model.encoder.act": "gelu"})
    {'model': {'num_layers': 4, 'encoder': {'act': 'gelu'}}}
    """
    whole: dict[str, Any] = {}
    for path, value in values.items():
        *outer, last = path.split(".")
        inside = whole
        for step in outer:
            inside = inside.setdefault(step, {})
        inside[last] = value
    return whole


def override(path: str, value: Any) -> str:
    """`path=value` as Hydra reads it.

    >>> override("model.qk_layernorm", True), override("model.window_size", [63, 0]), override("model.act", None)
    ('model.qk_layernorm=true', 'model.window_size=[63,0]', 'model.act=null')
    """
    if isinstance(value, str):
        bare = value and all(char.isalnum() or char in "_-./" for char in value) and not _like_another(value)
        text = value if bare else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    elif isinstance(value, Mapping):
        text = "{" + ",".join(override(str(key), item).replace("=", ":", 1) for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ",".join(override("", item)[1:] for item in value) + "]"
    else:
        text = json.dumps(value)
    return f"{path}={text}"


def _like_another(text: str) -> bool:
    """Whether a text without quotes would be read as a number, a truth value or nothing."""
    if text.lower() in ("true", "false", "null", "none", "nan", "inf", "-inf"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True
