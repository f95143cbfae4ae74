"""What of a format's tables is met while it reads and writes: rows, and lines of its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from ckpt_core.architecture import Facts
from ckpt_core.config import Config
from ckpt_core.layout import BoundTables, Native, Row
from ckpt_core.tensors import ParameterBuilder


@dataclass
class Met:
    """Rows and keys, by name: those of all tables in use, and those that a tensor or a config reached.

    `read` are the native tensors that a reader entered. A key counts where its line says a fact: of others no model depends.
    """

    rows: dict[str, None] = field(default_factory=dict)
    keys: dict[str, None] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)
    read: list[Native] = field(default_factory=list)

    @property
    def unreached(self) -> list[str]:
        """Rows (`native (parameter)`) and keys that nothing reached."""
        return [name for name in (*self.rows, *self.keys) if name not in self.reached]


def _named(row: Row) -> str:
    return f"{row.native} ({row.canonical})"


@contextmanager
def meeting() -> Iterator[Met]:
    """Notes what is met inside the block, by whatever plugin."""
    met = Met()
    natives, read, write, add = BoundTables.natives, Config.read, Config.write, ParameterBuilder.add

    def noted_natives(self: BoundTables, *arguments: Any, **named: Any) -> dict[str, Native]:
        met.rows |= {_named(row): None for table in self.tables for row in table.rows}
        found = natives(self, *arguments, **named)
        met.reached |= {_named(native.row) for native in found.values()}
        return found

    def noted_config(table: Config, config: Mapping[str, Any]) -> None:
        met.keys |= {f"key {key}": None for entry in table.entries if entry.claims for key in entry.keys}
        met.reached |= {f"key {key}" for key in config}

    def noted_read(
        self: Config, config: Mapping[str, Any], *arguments: Any, **named: Any
    ) -> tuple[Facts, dict[str, Any]]:
        noted_config(self, config)
        return read(self, config, *arguments, **named)

    def noted_write(self: Config, *arguments: Any, **named: Any) -> dict[str, Any]:
        config = write(self, *arguments, **named)
        noted_config(self, config)
        return config

    def noted_add(self: ParameterBuilder, native: Native, *arguments: Any, **named: Any) -> None:
        met.read.append(native)
        add(self, native, *arguments, **named)

    with (
        mock.patch.object(BoundTables, "natives", noted_natives),
        mock.patch.object(Config, "read", noted_read),
        mock.patch.object(Config, "write", noted_write),
        mock.patch.object(ParameterBuilder, "add", noted_add),
    ):
        yield met
