"""Where a checkpoint of the intermediate representation lies."""

from __future__ import annotations

import os

from ckpt_core.errors import CkptError
from ckpt_core.storage.documents import read_json

ARCHITECTURE, NOTES, INDEX = "architecture.json", "notes.json", "tensors.index.json"


def looks_like(path: str) -> str | None:
    """The fact by which a folder is one of ours, or None. An `architecture.json` that is damaged may be ours."""
    if not all(os.path.isfile(os.path.join(path, name)) for name in (ARCHITECTURE, INDEX)):
        return None
    try:
        architecture = read_json(os.path.join(path, ARCHITECTURE))
    except (CkptError, OSError):
        architecture = {"schema": None}
    ours = isinstance(architecture, dict) and "schema" in architecture
    return f"{ARCHITECTURE} beside {INDEX}" if ours else None
