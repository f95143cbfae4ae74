"""Small texts that version control leaves where a large file should be, when it was cloned without the large files.

Such a text has the name of the file, so every reader meets it. It is told by its first bytes, wherever a file is opened.
"""

from __future__ import annotations

from ckpt_core.lean import dataclass

LONGEST = 1024
"""Bytes of the longest pointer: Git LFS allows no more (git-lfs/docs/spec.md, "The Pointer")."""

STAND_IN = b"a stand-in of ckpt for "
"""What the stand-in for a remote file begins with."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """A kind of pointer: its name, its first bytes, and what fetches the file itself."""

    name: str
    beginning: bytes
    fix: str


_LFS = "fetch the files themselves: git lfs install; git lfs pull"
POINTERS = (
    Pointer("a Git LFS pointer", b"version https://git-lfs", _LFS),
    Pointer("a Git LFS pointer", b"version https://hawser", _LFS),  # before Git LFS 1.0
    Pointer("a Xet pointer", b"# xet version", "fetch the files themselves: git xet pull, or hf download"),
    # An unlocked file of git-annex (git-annex.branchable.com/internals/pointer_file)
    Pointer("a git-annex pointer", b"/annex/objects/", "fetch the files themselves: git annex get ."),
    # One of ours (storage/bytes/remote/view.py), met by a process that does not know what it stands for.
    Pointer("a stand-in for a remote file", STAND_IN, "give the address itself, not the folder that stands for it"),
)


def pointer_in(head: bytes) -> Pointer | None:
    """The kind of pointer that a file of at most `LONGEST` bytes with these first bytes is."""
    return next((pointer for pointer in POINTERS if head.startswith(pointer.beginning)), None)
