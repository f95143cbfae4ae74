"""A whole format from a description of its folder: for checkpoints of the usual shapes, a plugin has no code of its own."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.format.folder import Folder
    from ckpt_core.format.format import Format
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            ".folder": "Folder",
            ".format": "Format",
        },
    )

__all__ = ["Folder", "Format"]
