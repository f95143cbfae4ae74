"""Finding a NeMo 1 checkpoint at a path, and opening it."""

from __future__ import annotations

import os

from ckpt_core.sdk import CkptError, FormatError, disk, trees
from ckpt_nemo.container import lightning
from ckpt_nemo.container.archive import CONFIG, WEIGHTS, has_weights, open_archive, read_config
from ckpt_nemo.container.saved import SavedCheckpoint
from ckpt_nemo.nemo2.files import is_graph

SUFFIX = ".nemo"
# NeMo 2 keeps weights of the same kind, beside a context that describes them.
_NEMO2 = (("context", "io.json"), ("io.json",), ("..", "context", "io.json"))


def open_saved(path: str, hparams: str | None = None) -> SavedCheckpoint:
    """The checkpoint at `path`: an archive, a folder that holds one (or is one unpacked), or a training run.

    `hparams` is the config file of a checkpoint that holds none.
    """
    saved = _opened(path)
    if hparams is None:
        return saved
    if saved.config:
        raise FormatError(
            "the checkpoint holds a config of its own", file=saved.config_file, fix="leave -o hparams out"
        )
    (saved.config, saved.section), saved.config_file = read_config(disk.read_small(hparams), hparams), hparams
    saved.states.append(disk.FileState.of(hparams))
    return saved


def _opened(path: str) -> SavedCheckpoint:
    archive = _archive_at(path)
    if archive is not None:
        tree = trees.open_tree(archive)
        if CONFIG not in tree:
            raise FormatError(f"the archive has no {CONFIG}", file=archive, fix="it is no .nemo file")
        return open_archive(path, tree, "folder" if os.path.isdir(archive) else "nemo")
    step = lightning.find_step(path)
    if step is None:
        raise FormatError(
            "there is no NeMo checkpoint here",
            file=path,
            expected=f"a {SUFFIX} file or its folder, or a .ckpt of a run",
        )
    return lightning.open_lightning(path, step)


def looks_like(path: str) -> str | None:
    """The fact by which a path is a NeMo 1 checkpoint, or None."""
    if any(is_graph(os.path.join(path, *name)) for name in _NEMO2):
        return None
    try:
        archive = _archive_at(path)
        if archive is not None:
            return _fact(path, archive)
        step = lightning.find_step(path)
        if step is not None and lightning.looks_like_lightning(step):
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


def _fact(path: str, archive: str) -> str | None:
    if not archive.endswith(SUFFIX) or os.path.isdir(archive):  # a .nemo may be compressed, so that its names cost time
        tree = trees.open_tree(archive)
        if CONFIG not in tree or not has_weights(tree):
            return None
        if os.path.isdir(archive):
            return f"{CONFIG} beside {WEIGHTS}"
    return "a tar archive" if archive == path else f"the archive {os.path.basename(archive)}"


def _archive_at(path: str) -> str | None:
    """The archive at a path: the file itself, an unpacked folder, or the only `.nemo` in a folder."""
    if os.path.isfile(path):
        return path if trees.is_archive(path) else None
    if not os.path.isdir(path):
        return None
    if os.path.isfile(os.path.join(path, CONFIG)):
        return path
    found = sorted(
        name for name in os.listdir(path) if name.endswith(SUFFIX) and os.path.isfile(os.path.join(path, name))
    )
    if len(found) > 1:
        raise FormatError("several archives lie here", file=path, found=", ".join(found[:5]), fix="give one of them")
    return os.path.join(path, found[0]) if found else None
