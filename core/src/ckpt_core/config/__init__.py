"""Config files as tables: each line maps keys of a framework to facts of the architecture, both ways."""

from ckpt_core.config.table import (
    Codec,
    Config,
    Custom,
    Entry,
    Key,
    Note,
    custom,
    fact_is,
    ignore,
    implied,
    key,
    key_is,
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
    "Key",
    "Note",
    "custom",
    "fact_is",
    "ignore",
    "implied",
    "key",
    "key_is",
    "note",
    "one_of",
    "same_as",
    "uniform",
]
