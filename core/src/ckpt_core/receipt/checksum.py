"""The checksum of a receipt: a hash of all that it says, so that a flipped bit in it is found.

It guards against accidents, not against forgers: anyone can compute it. In the file its key is `seal`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ckpt_core.errors import FormatError
from ckpt_core.storage.documents import read_json_object

_KEY = "seal"


def with_checksum(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a receipt with its checksum."""
    return {**body, _KEY: _checksum_of(body)}


def read_checked(path: str | os.PathLike) -> dict[str, Any]:
    """The body of a receipt, checksum included; `FormatError` if it is not as it was written."""
    body = read_json_object(path)
    found, expected = body.get(_KEY), _checksum_of(body)
    if found != expected:
        raise FormatError(
            "the receipt is not as it was written",
            file=path,
            found=f"seal {found}",
            expected=f"seal {expected}",
            fix="if the checkpoint is to be believed without it, remove it",
        )
    return body


def _checksum_of(body: Mapping[str, Any]) -> str:
    from blake3 import blake3

    said = {key: value for key, value in body.items() if key != _KEY}
    return blake3(json.dumps(said).encode()).hexdigest()
