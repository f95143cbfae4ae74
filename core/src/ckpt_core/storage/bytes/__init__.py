"""Files as bytes: opened safely, read by ranges, written and synced."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.sizes import parse_size
    from ckpt_core.storage.bytes.files import FileState
    from ckpt_core.storage.bytes.home import absolute
    from ckpt_core.storage.bytes.output import Excerpt, OutputFile
    from ckpt_core.storage.bytes.stored import read_range, read_small
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            "ckpt_core.sizes": "parse_size",
            ".files": "FileState",
            ".home": "absolute",
            ".output": "Excerpt OutputFile",
            ".stored": "read_range read_small",
        },
    )

__all__ = ["Excerpt", "FileState", "OutputFile", "absolute", "parse_size", "read_range", "read_small"]
