"""Finding a NeMo 1 checkpoint at a path, and opening it."""

from __future__ import annotations

import os

from ckpt_core.sdk import FormatError, disk, trees
from ckpt_nemo.container import lightning
from ckpt_nemo.container.archive import WEIGHTS, has_weights, open_archive, read_config
from ckpt_nemo.container.places import ARCHIVE, CONFIG, archive_at, find_step
from ckpt_nemo.container.saved import SavedCheckpoint


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
    archive = archive_at(path)
    if archive is not None:
        tree = trees.open_tree(archive)
        if CONFIG not in tree:
            raise FormatError(f"the archive has no {CONFIG}", file=archive, fix="it is no .nemo file")
        return open_archive(path, tree, "folder" if os.path.isdir(archive) else "nemo")
    step = find_step(path)
    if step is None:
        raise FormatError(
            "there is no NeMo checkpoint here",
            file=path,
            expected=f"a {ARCHIVE} file or its folder, or a .ckpt of a run",
        )
    return lightning.open_lightning(path, step)


def fact_of_archive(path: str, archive: str) -> str | None:
    """The fact by which an archive, or a folder of the same names, is a NeMo 1 checkpoint, or None."""
    if not archive.endswith(ARCHIVE) or os.path.isdir(
        archive
    ):  # a .nemo may be compressed, so that its names cost time
        tree = trees.open_tree(archive)
        if CONFIG not in tree or not has_weights(tree):
            return None
        if os.path.isdir(archive):
            return f"{CONFIG} beside {WEIGHTS}"
    return "a tar archive" if archive == path else f"the archive {os.path.basename(archive)}"
