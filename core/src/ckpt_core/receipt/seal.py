"""The seal of a receipt: a hash of all that it says, so that a flipped bit in it is found.

It guards against accidents, not against forgers: anyone can seal a receipt.
"""

from __future__ import annotations

import json
import os
from typing import Any

from blake3 import blake3

from ckpt_core.errors import FormatError
from ckpt_core.storage.documents import read_json_object

_SEAL = "seal"


def sealed(body: dict[str, object]) -> dict[str, object]:
    """The body of a receipt with its seal."""
    return body | {_SEAL: _seal_of(body)}


def read_receipt(path: str | os.PathLike) -> dict[str, Any]:
    """The body of a receipt, seal included; `FormatError` if it is not as it was written."""
    body = read_json_object(path)
    found, expected = body.get(_SEAL), _seal_of(body)
    if found != expected:
        raise FormatError(
            "the receipt is not as it was written",
            file=path,
            found=f"seal {found}",
            expected=f"seal {expected}",
            fix="if the checkpoint is to be believed without it, remove it",
        )
    return body


def _seal_of(body: dict[str, object]) -> str:
    said = {key: value for key, value in body.items() if key != _SEAL}
    return blake3(json.dumps(said).encode()).hexdigest()
