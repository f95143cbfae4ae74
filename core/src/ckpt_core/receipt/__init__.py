"""What a conversion writes down about itself, and what later readers believe of it."""

from ckpt_core.receipt.origin import Recorded, check_agreement, original_of, receipt_of
from ckpt_core.receipt.seal import read_receipt

__all__ = ["Recorded", "check_agreement", "original_of", "read_receipt", "receipt_of"]
