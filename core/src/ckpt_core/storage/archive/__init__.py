"""Files by name in a folder or an archive: tar, tar in gzip, and the directory of a zip."""

from ckpt_core.storage.archive.tar import plan_tar
from ckpt_core.storage.archive.tree import Extent, Tree, is_archive, open_tree

__all__ = ["Extent", "Tree", "is_archive", "open_tree", "plan_tar"]
