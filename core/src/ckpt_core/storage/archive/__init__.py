"""Files by name in a folder or an archive: tar, tar in gzip, and the directory of a zip."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.storage.archive.extent import Extent
    from ckpt_core.storage.archive.tar import plan_tar
    from ckpt_core.storage.archive.tree import Tree, is_archive, open_tree
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            ".extent": "Extent",
            ".tar": "plan_tar",
            ".tree": "Tree is_archive open_tree",
        },
    )

__all__ = ["Extent", "Tree", "is_archive", "open_tree", "plan_tar"]
