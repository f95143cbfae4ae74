"""The table of the fields that Megatron's config classes have: which exist since when, and which change no output.

`config_fields.txt` is the table, and says at its head what its columns are; `tools/config_fields.py` makes it from the sources.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from importlib import resources

from ckpt_core.sdk import configs, ignore, key_is, schema

_FILE = "config_fields.txt"


@schema.dataclass(frozen=True)
class ConfigField:
    """One line of the table."""

    name: str
    default: str  # as the source writes it; "none" where it has to be given
    core: str  # versions of Megatron-Core, such as "0.13-0.17" or "0.13-"; "" if it is none of its fields
    bridge: str  # versions of Megatron-Bridge
    effect: str


@functools.cache
def listed() -> tuple[list[ConfigField], dict[str, str]]:
    """The lines, and what each effect means."""
    lines = resources.files(__package__).joinpath(_FILE).read_text("utf-8").splitlines()
    legend = (line.removeprefix("#   ").partition(" ") for line in lines if line.startswith("#   "))
    rows = [ConfigField(*(cell.strip() for cell in line.split("|"))) for line in lines if not line.startswith("#")]
    return rows, {effect: meaning.strip() for effect, _, meaning in legend}


def inert(key: str, *values: object, since: str = "") -> configs.Entry:
    """A field under which the model computes something else unless it has one of `values`, the default among them."""
    fix = f"if this model's outputs do not depend on it, -o ignore_keys={key}"
    return key_is(key, *dict.fromkeys((*values, None)), or_absent=True, written=False, why=since, fix=fix)


def _of_versions(field: ConfigField) -> str:
    held = [f"{name} {span}" for name, span in (("Megatron-Core", field.core), ("Bridge", field.bridge)) if span]
    return f"a field of {', '.join(held)}" if held else ""


def _harmless() -> list[configs.Entry]:
    rows, legend = listed()
    return [
        line
        for field in rows
        if field.effect not in ("read", "default")
        for line in ignore(field.name, why=legend[field.effect])
    ]


def _at_default() -> Iterator[configs.Entry]:
    for field in listed()[0]:
        if field.effect == "default":
            values = [] if field.default in ("None", "none") else [ast.literal_eval(field.default)]
            yield inert(field.name, *values, since=_of_versions(field))


HARMLESS = _harmless()
"""Lines of the fields that change no output of a model, and why."""

AT_DEFAULT = [*_at_default()]
"""Lines of the fields that must be at their defaults, as no architecture says what the model would compute otherwise."""
