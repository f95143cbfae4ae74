"""What the kit needs to know about a format: what it holds, how it is laid out, where its files are."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path

from ckpt_core.architecture import Architecture
from ckpt_core.lean import dataclass
from ckpt_core.testing.entries import Entries, SafetensorsEntries
from ckpt_core.testing.examples import Values, any_bits, example

HEAVY = ("torch", "transformers", "tensorflow", "jax", "safetensors", "accelerate")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Ranks of a parallel layout."""

    tp: int = 1
    pp: int = 1
    ep: int = 1

    def asked(self) -> dict[str, int]:
        """As arguments of `convert`; sizes of one are left out."""
        return {name: size for name, size in (("tp", self.tp), ("pp", self.pp), ("ep", self.ep)) if size != 1}

    def __str__(self) -> str:
        return "-".join(f"{name}{size}" for name, size in self.asked().items()) or "whole"


@dataclass(frozen=True, kw_only=True)
class Quirks:
    """A format under test. Everything has a default; most formats give `models`, `tp` and `configs`.

    `models`: architectures that the format holds exactly, by name; the first is the one that is varied and damaged.
    `tp`, `pp`, `ep`: the sizes to try, in every combination. `dtypes`: those the format can store.
    `expresses`: the facts that must be expressed, by the names of `variations`; any other may be refused by name.
    `varied`: how the names of those to try begin; all, unless another class of the format tries the others.
    `configs`: config files of the output (JSON, or YAML by their name), each of whose keys is checked to be accounted for.
    `write_options`, `read_options`: `-o` options of every conversion. `choices`: more of them, in each of which the base model
    is held against the declared sentences. `entries`: how to damage the weight files.
    `values`: the values of the test tensors; `small_numbers` where a row has a value map. `sidecars`: whether files
    that travel with a model are carried. `frameworks`: modules that must not be imported, besides the usual.
    `keeps_padding`: whether rows of padding that ranks asked for stay when the ranks are gone, since the framework takes them.
    `goldens`: a folder of cases written by the framework itself; see `Golden`. `shown`: names in the last column of the
    sentences that are not cases there, each with where the checkpoint is. `unfelt`: what no logits of any golden can feel
    (`axis 0 of *.k.bias`, `attention.rotary.theta`), each with the reason. `unreached`: rows, keys and parameters that no
    model and no golden of the kit reaches, each with the reason. `misnamed`: keys and tensors whose names speak against what the
    tables say of them, and are right all the same, each with the reason. These are patterns, with `*` for any text.
    """

    models: Mapping[str, Architecture] = field(default_factory=lambda: {"llama": example("llama")})
    tp: tuple[int, ...] = (1,)
    pp: tuple[int, ...] = (1,)
    ep: tuple[int, ...] = (1,)
    dtypes: tuple[str, ...] = ("fp32", "bf16", "fp16")
    expresses: tuple[str, ...] = ()
    varied: tuple[str, ...] = ("",)
    configs: tuple[str, ...] = ()
    write_options: Mapping[str, str] = field(default_factory=dict)
    read_options: Mapping[str, str] = field(default_factory=dict)
    entries: Entries | None = field(default_factory=SafetensorsEntries)
    values: Values = any_bits
    sidecars: bool = True
    frameworks: tuple[str, ...] = ()
    goldens: str | os.PathLike | None = None
    keeps_padding: bool = False
    choices: tuple[Mapping[str, str], ...] = ()
    shown: Mapping[str, str] = field(default_factory=dict)
    unfelt: Mapping[str, str] = field(default_factory=dict)
    unreached: Mapping[str, str] = field(default_factory=dict)
    misnamed: Mapping[str, str] = field(default_factory=dict)

    def layouts(self) -> list[Ranks]:
        """Every combination of ranks, the whole model first."""
        return [Ranks(tp, pp, ep) for ep, pp, tp in itertools.product(self.ep, self.pp, self.tp)]

    def layouts_of(self, number: int) -> list[Ranks]:
        """Those in which the model of this number is tried: the first in all, each other one whole, in the last, and in one
        of those between, another for each."""
        layouts = self.layouts()
        if number == 0 or len(layouts) < 4:
            return layouts
        between = layouts[1:-1]
        return [layouts[0], between[number % len(between)], layouts[-1]]

    def golden_cases(self) -> list[Golden]:
        return [] if self.goldens is None else list(Golden.below(Path(self.goldens)))


@dataclass(frozen=True)
class Golden:
    """A checkpoint that the framework itself wrote.

    NAME/checkpoint/             the files
    NAME/expected.safetensors    input_ids [batch, position] and the framework's own logits in float32
    NAME/case.json               "tp", "pp": its layout; "refused": words of the error where it must be refused
    """

    folder: Path
    case: Mapping[str, object]

    @classmethod
    def below(cls, folder: Path) -> Iterator[Golden]:
        """Every case in a folder, by name."""
        for file in sorted(folder.glob("*/case.json")):
            if (file.parent / "checkpoint").is_dir():
                yield cls(file.parent, json.loads(file.read_text()))

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def checkpoint(self) -> str:
        return str(self.folder / "checkpoint")

    @property
    def layout(self) -> Ranks:
        """The layout it was saved in, as `case.json` says."""
        return Ranks(*(int(str(self.case.get(name) or 1)) for name in ("tp", "pp", "ep")))
