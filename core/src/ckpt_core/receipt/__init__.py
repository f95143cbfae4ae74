"""What a conversion writes down about itself, and what later readers believe of it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.receipt.origin import original_of, receipt_of
    from ckpt_core.receipt.receipt import Receipt, find_receipt, read_receipt
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            ".origin": "original_of receipt_of",
            ".receipt": "Receipt find_receipt read_receipt",
        },
    )

__all__ = [
    "Receipt",
    "find_receipt",
    "original_of",
    "read_receipt",
    "receipt_of",
]
