"""Config files that the kit changes: JSON, or YAML where the name says so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ckpt_core.storage.documents import dump_yaml, read_json_object, read_yaml_object

_WRONG: tuple[object, ...] = (None, "x", -1, 0, True, False, [], {}, 1e99, [None], {"rope_type": "x"})


class ConfigFile:
    """A config file of an output, and what it said when it was written."""

    def __init__(self, path: Path) -> None:
        self.path, self._yaml = path, path.suffix in (".yaml", ".yml")
        self.body: dict[str, Any] = (read_yaml_object if self._yaml else read_json_object)(path)

    def put(self, body: Mapping[str, object]) -> None:
        """Write another body in its place."""
        self.path.write_text(dump_yaml(dict(body)) if self._yaml else json.dumps(body))


def wrong_configs(body: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, dict[str, object]]]:
    """A config with each key, at any depth, left out or given a value of another type; and what was done."""
    for key, value in body.items():
        yield f"without {prefix}{key}", {k: v for k, v in body.items() if k != key}
        for wrong in _WRONG:
            if wrong is not value:
                yield f"{prefix}{key} = {wrong!r}", {**body, key: wrong}
        if isinstance(value, dict):
            for said, inner in wrong_configs(value, f"{prefix}{key}."):
                yield said, {**body, key: inner}
