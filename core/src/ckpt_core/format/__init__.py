"""A whole format from a description of its folder: for checkpoints of the usual shapes, a plugin has no code of its own."""

from ckpt_core.format.folder import Folder
from ckpt_core.format.format import Format

__all__ = ["Folder", "Format"]
