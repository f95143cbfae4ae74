"""Where the conformance kit works: a folder, and checkpoints of the example models, each made once."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt_core.api import convert, plan_conversion
from ckpt_core.architecture import Architecture
from ckpt_core.engine.plan import Plan
from ckpt_core.engine.staging import receipt_path
from ckpt_core.testing.examples import Values, calm_numbers, write_ir
from ckpt_core.testing.quirks import Quirks, Ranks

SIDECARS = {"tokenizer.json": b'{"model": {"vocab": {}}}', "chat_template.jinja": b"{{ messages }}"}


@dataclass
class Workshop:
    """A folder to work in, and the `ir` sources of a format's example models, each made once. `unasked`: why the framework can't be asked."""

    format: str
    quirks: Quirks
    folder: Path
    tried: set[str] = field(default_factory=set)
    unasked: str = ""
    _sources: dict[tuple, str] = field(default_factory=dict)
    _converted: dict[tuple, str] = field(default_factory=dict)
    _count: int = 0

    def new(self, name: str = "out") -> str:
        """A path that does not exist yet; its parent does."""
        self._count += 1
        parent = self.folder / str(self._count)
        parent.mkdir()
        return str(parent / name)

    def source(
        self,
        architecture: Architecture,
        dtype: str = "fp32",
        *,
        sidecars: bool = False,
        sparse: bool = False,
        values: Values | None = None,
    ) -> str:
        """The `ir` checkpoint of an architecture; `values` are those of the quirks, or given."""
        key = (architecture, dtype, sidecars, sparse, values)
        if key not in self._sources:
            notes = {"bos": 3, "eos": 5, "max_positions": 64}
            files = SIDECARS if sidecars else None
            self._sources[key] = write_ir(
                self.new("ir"),
                architecture,
                dtype=dtype,
                values=values or self.quirks.values,
                notes=notes,
                sidecars=files,
                sparse=sparse,
            )
        return self._sources[key]

    def write(self, src: str, layout: Ranks | None = None, /, to: str | None = None, **options: str) -> str:
        """`src` converted to the format under test (or `to`), at a new place."""
        dst = self.new()
        convert(src, dst, **self.arguments(layout, to, **options))
        return dst

    def converted(self, src: str, layout: Ranks | None = None) -> str:
        """As `write`, but made once, for laws that only read it."""
        key = (src, layout)
        if key not in self._converted:
            self._converted[key] = self.write(src, layout)
        return self._converted[key]

    def copy(self, src: str, layout: Ranks | None = None) -> str:
        """As `converted`, but a copy without a receipt, which a law may change."""
        place = self.new()
        shutil.copytree(self.converted(src, layout), place)
        return bare(place)

    def arguments(self, layout: Ranks | None = None, /, to: str | None = None, **options: str) -> dict[str, Any]:
        """What `convert` is called with."""
        to = to or self.format
        given = {**(self.quirks.write_options if to == self.format else {}), **options}
        return {
            "to": to,
            "options": {f"dst.{name}": value for name, value in given.items()},
            **(layout or Ranks()).asked(),
        }

    @functools.cached_property
    def plan_of_base(self) -> Plan:
        """How the model that is varied would be written."""
        source = self.source(self.base(), values=calm_numbers)
        return plan_conversion(source, self.new(), **self.arguments())

    def base(self) -> Architecture:
        """The model that is varied and damaged."""
        return next(iter(self.quirks.models.values()))


def rewrites_in(output: str) -> list[str]:
    """The rewrites that a receipt tells of."""
    decisions = json.loads(Path(receipt_path(output)).read_text())["target"]["decisions"]
    return decisions.get("rewrites", [])


def told_by(plan: Plan) -> set[str]:
    """How a plan says that what it writes is another model: rewrites, but for rows of padding, and losses."""
    rewrites = [str(text) for text in plan.target.decisions.get("rewrites", [])]
    return {text for text in rewrites if not text.startswith("vocabulary")} | {str(loss) for loss in plan.target.losses}


def bare(folder: str) -> str:
    """An output without its receipt: what the format itself says, and no more."""
    Path(receipt_path(folder)).unlink()
    return folder
