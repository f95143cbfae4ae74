"""The names that ckpt gives to what it makes beside the files of a format."""

RECEIPT = "ckpt-receipt.json"
UNFINISHED = ".ckpt-partial"
"""What is behind the name of an output that is not finished: of a folder on this machine, of an object in a store."""
JOURNAL = "journal.jsonl"
"""The file in that folder which lists the pieces that are done."""
