"""What a user asks of a format, typed: options, layouts, weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

from ckpt_core.architecture import Architecture
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.errors import UsageError, did_you_mean
from ckpt_core.lean import dataclass
from ckpt_core.storage.dtypes import DType


@dataclass(frozen=True, slots=True)
class Option:
    """An `-o name=value` of a format. `kind` is bool, int, float, str or a tuple of choices; `side` is read, write or both.

    The value of a read option of kind `Checkpoint` is the path of another checkpoint, of any format: a reader is given what
    was read there. `otherwise` tells who asks for a value that the choices lack what to do.
    """

    name: str
    help: str
    kind: type | tuple[str, ...] = str
    default: object = None
    side: str = "both"
    otherwise: str = ""

    def parse(self, text: str) -> object:
        """The typed value of `text`; `UsageError` says what would be one."""
        if isinstance(self.kind, tuple):
            if text in self.kind:
                return text
            same = next((value for value in self.kind if value.lower() == text.lower()), text)
            raise UsageError(
                f"option {self.name} has no value {text!r}",
                expected=" | ".join(self.kind),
                fix=did_you_mean(same, self.kind) if same in self.kind or not self.otherwise else self.otherwise,
            )
        parser: Callable[[str], object] = self.kind
        if self.kind is bool:
            parser = _parse_bool
        elif self.kind is Checkpoint:
            parser = str
        try:
            return parser(text)
        except ValueError:
            raise UsageError(f"option {self.name} has no value {text!r}", expected=self.kind.__name__) from None


def _parse_bool(text: str) -> bool:
    if text.lower() in ("true", "yes", "1", "on"):
        return True
    if text.lower() in ("false", "no", "0", "off"):
        return False
    raise ValueError(text)


@dataclass(frozen=True, slots=True)
class FormatInfo:
    """What `ckpt formats` shows. `families` may be a sequence that finds its names when it is looked at. `parallel` names the layout flags the writer honours ("tp", "pp", "ep").

    `before` names formats that recognise folders of this one too: where both do, this one is read. `keeps` names formats whose
    tensors this one keeps under their own names, so that what they declare of those holds here. `adapters`: it is a format of adapters,
    which it writes, and no models. `trains`: its writer takes the state of a training along. `called` are other names that
    people have for it, for "did you mean". `ending` is that of the one file that a checkpoint of it is (".nemo"). `bare` are the write
    options by which it holds a model that comes with no files, as the kit's examples do.
    """

    name: str
    summary: str
    families: Sequence[str] = ()
    options: tuple[Option, ...] = ()
    parallel: tuple[str, ...] = ()
    reads: bool = True
    writes: bool = True
    before: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    adapters: bool = False
    trains: bool = False
    called: tuple[str, ...] = ()
    ending: str = ""
    bare: Mapping[str, str] = field(default_factory=dict, hash=False)
    sdk: int = 1


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """How a source is to be read. `architecture` is what `--config` supplied, `config` the path of that file; `weights`
    is auto, model or master. `alone`: an adapter is wanted by itself, and not the model that it makes of its base. `training_state`: the
    state of the training is wanted too (`keep`), if it can be carried (`auto`), or not (`drop`)."""

    options: Mapping[str, Any] = field(default_factory=dict)
    architecture: Architecture | None = None
    weights: str = "auto"
    config: str | None = None
    alone: bool = False
    training_state: str = "drop"


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """How a target is to be written. `dtype` None keeps each tensor's; sizes left None mean one (or the source's).

    `destination` is the final place of the output, for configs that must name it. `training_state` is `keep` where the user wants the state of
    a training kept, whatever that makes of the model: see `TargetBuilder.stepped`.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: DType | None = None
    tp: int | None = None
    pp: int | None = None
    ep: int | None = None
    destination: str = ""
    training_state: str = "auto"


def option_table(options: Iterable[Option]) -> list[tuple[str, str, str, str]]:
    """(name, values, default, help) of each option, for help texts."""
    rows = []
    for option in options:
        values = " | ".join(option.kind) if isinstance(option.kind, tuple) else option.kind.__name__
        rows.append((option.name, values, "" if option.default is None else str(option.default), option.help))
    return rows
