"""Where the receipt of an output lies: in its folder, or beside it where the output is a single file."""

from __future__ import annotations

import os

from ckpt_core.storage.bytes.names import RECEIPT

__all__ = ["RECEIPT", "receipt_beside", "receipt_path"]


def receipt_path(output: str) -> str:
    """Where the receipt of an output is: in a folder, or beside a file (`model.nemo.ckpt-receipt.json`)."""
    return os.path.join(output, RECEIPT) if os.path.isdir(output) else receipt_beside(output)


def receipt_beside(output: str) -> str:
    """Where the receipt of a single file is, or will be."""
    return f"{output.rstrip(os.sep)}.{RECEIPT}"
