"""What a conversion writes down about itself, and what later readers believe of it."""

from ckpt_core.receipt.origin import original_of, receipt_of
from ckpt_core.receipt.receipt import Receipt, find_receipt, read_receipt

__all__ = [
    "Receipt",
    "find_receipt",
    "original_of",
    "read_receipt",
    "receipt_of",
]
