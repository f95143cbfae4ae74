"""`architecture.json`: the schema as it is, with the notes beside it."""

from __future__ import annotations

from ckpt_core.architecture import Architecture, from_json
from ckpt_core.storage.documents import read_json_object


def architecture_in(path: str) -> Architecture | None:
    """The architecture in a file of ours, for `--config`; None if it is not one."""
    if not path.endswith(".json"):
        return None
    body = read_json_object(path)
    return from_json(body, path) if "schema" in body else None
