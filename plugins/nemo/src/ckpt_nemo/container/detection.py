"""Whether a path is a NeMo 1 checkpoint. No reader is imported before names say that there may be one."""

from __future__ import annotations

import os

from ckpt_core.sdk import CkptError
from ckpt_nemo.container.places import archive_at, find_step
from ckpt_nemo.nemo2.files import is_graph

# NeMo 2 keeps weights of the same kind, beside a context that describes them.
_NEMO2 = (("context", "io.json"), ("io.json",), ("..", "context", "io.json"))


def looks_like(path: str) -> str | None:
    """The fact by which a path is a NeMo 1 checkpoint, or None."""
    if any(is_graph(os.path.join(path, *name)) for name in _NEMO2):
        return None
    try:
        archive = archive_at(path)
        if archive is not None:
            from ckpt_nemo.container.opening import fact_of_archive

            return fact_of_archive(path, archive)
        step = find_step(path)
        if step is None:
            return None
        from ckpt_nemo.container.opened import looks_like_lightning

        if looks_like_lightning(step):
            kind = (
                "distributed checkpoint"
                if step.folder
                else f"files of {len(step.ranks)} ranks"
                if len(step.ranks) > 1
                else "file"
            )
            return f"Lightning {kind} {step.name}"
    except (CkptError, OSError):
        return None
    return None
