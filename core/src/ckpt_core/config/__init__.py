"""Config files as tables: each line maps keys of a framework to facts of the architecture, both ways."""

from ckpt_core.config.table import (
    Codec,
    Config,
    Custom,
    Entry,
    Field,
    Note,
    const,
    custom,
    field,
    fixed,
    ignore,
    implied,
    note,
    one_of,
    same_as,
    uniform,
)

__all__ = [
    "Codec",
    "Config",
    "Custom",
    "Entry",
    "Field",
    "Note",
    "const",
    "custom",
    "field",
    "fixed",
    "ignore",
    "implied",
    "note",
    "one_of",
    "same_as",
    "uniform",
]
