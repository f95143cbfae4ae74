"""Where a Neuron checkpoint lies, told by names: one file per tensor, pipeline and expert parallel rank.

    DIR/TAG/checkpoint  done                     marks of a training job: begun, and complete
    DIR/TAG/model/dp_rank_00[_ep_rank_EE]_tp_rank_TT_pp_rank_PP.pt     plain, or xser (see `ckpt_nxdt.xser`)
    DIR/TAG/optim/dp_rank_DD_tp_rank_TT_pp_rank_PP.pt                  see `masters`
    OUT/model/...                                AWS's converter: the same names without any marks
    DIR/tp_rank_TT_pp_rank_PP  .../checkpoint.pt  .../tp_rank_TT_pp_rankPP.pt      before SDK 2.15

Data parallel ranks hold the same model, so there is only dp_rank_00. What a pipeline rank holds is told by names alone:
cuts may lie anywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from ckpt_core.sdk import FormatError, schema, torch_files

BEGUN, DONE = "checkpoint", "done"
MODEL, OPTIMIZER = "model", "optim"
_RANKS = re.compile(r"(?:dp_rank_(\d{2,})_)?(?:ep_rank_(\d{2,})_)?tp_rank_(\d{2,})_pp_rank_?(\d{2,})(?:\.pt)?")
_OLD_FILE = "checkpoint.pt"


@schema.dataclass(frozen=True, slots=True, order=True)
class Rank:
    """Where a file's process stood."""

    tp: int
    pp: int
    ep: int
    dp: int = 0

    def __str__(self) -> str:
        return f"tp={self.tp} pp={self.pp}" + (f" ep={self.ep}" if self.ep else "")


def looks_like(path: str) -> str | None:
    """The fact by which a folder is a Neuron checkpoint, or None."""
    if not os.path.isdir(path):
        return None
    for folder in (path, *_subfolders(path)):
        weights = weights_folder(folder)
        if weights is not None and any(torch_files.may_be_torch_file(file) for file, _ in rank_files(weights)):
            return f"{os.path.basename(next(rank_files(weights))[0])} in {os.path.relpath(weights, path)}"
    return None


def _subfolders(folder: str) -> list[str]:
    return [
        entry.path for entry in sorted(os.scandir(folder), key=lambda entry: entry.name) if os.path.isdir(entry.path)
    ]


def weights_folder(folder: str) -> str | None:
    """The folder of the rank files: `folder`/model, or `folder` itself."""
    for place in (os.path.join(folder, MODEL), folder):
        if os.path.isdir(place) and any(True for _ in rank_files(place)):
            return place
    return None


def rank_files(folder: str) -> Iterator[tuple[str, Rank]]:
    """Path and rank of every model or optimizer file directly in a folder."""
    for name in sorted(os.listdir(folder)):
        match = _RANKS.fullmatch(name)
        if match is None:
            continue
        path = os.path.join(folder, name)
        old = os.path.join(path, _OLD_FILE)
        if os.path.isfile(old):
            path = old
        if os.path.isfile(path):
            dp, ep, tp, pp = (int(number or 0) for number in match.groups())
            yield path, Rank(tp, pp, ep, dp)


def find_folder(path: str) -> tuple[str, list[str]]:
    """The folder of one checkpoint at `path` and what decided it: itself, or the newest tag that is complete."""
    folder, evidence = (path, list[str]()) if weights_folder(path) is not None else _newest_tag(path)
    root = root_of(folder)
    if os.path.isfile(os.path.join(root, BEGUN)) and not os.path.isfile(os.path.join(root, DONE)):
        raise FormatError(
            f"the checkpoint was not finished: {BEGUN} is there, and {DONE} is not",
            file=root,
            fix="take another tag; if you know that this one is complete, delete the file named checkpoint",
        )
    return folder, evidence


def _newest_tag(path: str) -> tuple[str, list[str]]:
    """The tag that NxD would load: the one whose `done` was modified last. Without any mark, the only one."""
    tags = [tag for tag in _subfolders(path) if weights_folder(tag) is not None]
    if not tags:
        expected = f"{MODEL}/dp_rank_00_tp_rank_00_pp_rank_00.pt"
        raise FormatError("there are no weights here", file=path, expected=expected)
    complete = [tag for tag in tags if os.path.isfile(os.path.join(tag, DONE))]
    when = {tag: os.stat(os.path.join(tag, DONE)).st_mtime_ns for tag in complete}
    newest = [tag for tag in complete if when[tag] == max(when.values())] or tags
    if len(newest) > 1:
        names = ", ".join(os.path.basename(tag) for tag in newest)
        raise FormatError("several tags could be meant", file=path, found=names, fix="give the folder of one")
    said = f", the newest of {len(complete)} that are complete" if len(complete) > 1 else ""
    return newest[0], [f"tag {os.path.basename(newest[0])}{said}"]


def _is_model_folder(folder: str) -> bool:
    return os.path.basename(os.path.abspath(folder)) == MODEL and weights_folder(folder) == folder


def root_of(folder: str) -> str:
    """The folder that holds model/, config.json and the marks."""
    return os.path.dirname(os.path.abspath(folder)) if _is_model_folder(folder) else folder
