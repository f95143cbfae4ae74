"""Files as bytes: opened safely, read by ranges, written and synced."""

from ckpt_core.sizes import parse_size
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.bytes.output import Excerpt, OutputFile
from ckpt_core.storage.bytes.stored import read_range, read_small

__all__ = ["Excerpt", "FileState", "OutputFile", "parse_size", "read_range", "read_small"]
