"""Writing a page to where a user wants it: whole or not at all, and never over a checkpoint."""

from __future__ import annotations

import contextlib
import os

from ckpt_core.checkpoint import Checkpoint
from ckpt_core.engine.staging import sync_file
from ckpt_core.errors import CkptError, UsageError

_BEGINNING = b"<!doctype html"


def check_page_file(path: str, src: str, checkpoint: Checkpoint) -> None:
    """Raise `UsageError` unless a page may be written to `path`: outside of the source, and replacing only a page."""
    final = os.path.realpath(path)
    sources = [os.path.realpath(source) for source in (src, checkpoint.path)]
    sources += [os.path.realpath(state.path) for state in checkpoint.files]
    if any(final == source or final.startswith(source.rstrip(os.sep) + os.sep) for source in sources):
        raise UsageError("the page would lie in the checkpoint itself", file=path, fix="choose a place outside of it")
    if os.path.isdir(final):
        raise UsageError("the page needs the name of a file, and this is a folder", file=path)
    if not os.path.isdir(os.path.dirname(final)):
        raise UsageError("the folder of the page does not exist", file=path, fix=f"mkdir {os.path.dirname(path)}")
    if os.path.exists(final) and not _is_page(final):
        raise UsageError(
            "the page would replace a file that is not an HTML page", file=path, fix="remove it, or choose another name"
        )


def _is_page(path: str) -> bool:
    """Whether a file is an HTML page, or empty."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        beginning = file.read(len(_BEGINNING))
    return beginning.lower() in (_BEGINNING, b"")


def write_page_file(path: str, text: str) -> None:
    """Write a page beside `path` and give it its name when it is whole; of an unfinished one nothing is left."""
    final = os.path.realpath(path)
    partial = f"{final}.{os.getpid()}.ckpt-partial"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(partial, final)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        if isinstance(error, OSError):
            raise CkptError(f"the page can't be written: {error.strerror}", file=path) from error
        raise
    sync_file(os.path.dirname(final))
