"""Where NeMo 1 checkpoints lie, as far as names tell."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from ckpt_core.sdk import FormatError, schema, trees

ARCHIVE = ".nemo"
CONFIG = "model_config.yaml"
SUFFIX = ".ckpt"
FOLDER = "checkpoints"
METADATA = "metadata.json"
COMMON = "common.pt"
_LAST = "-last"
_SHARD = re.compile(r"_fsdp_shard_\d+$")
_RANK_FOLDER = re.compile(r"mp_rank_(\d{2,})|tp_rank_(\d{2,})_pp_rank_(\d{3,})")


def archive_at(path: str) -> str | None:
    """The archive at a path: the file itself, an unpacked folder, or the only `.nemo` in a folder."""
    if os.path.isfile(path):
        return path if trees.is_archive(path) else None
    if not os.path.isdir(path):
        return None
    if os.path.isfile(os.path.join(path, CONFIG)):
        return path
    found = sorted(
        name for name in os.listdir(path) if name.endswith(ARCHIVE) and os.path.isfile(os.path.join(path, name))
    )
    if len(found) > 1:
        raise FormatError("several archives lie here", file=path, found=", ".join(found[:5]), fix="give one of them")
    return os.path.join(path, found[0]) if found else None


def rank_of(folder: str) -> tuple[int, int] | None:
    """The tensor and pipeline parallel rank that a folder's name says.

    >>> rank_of("mp_rank_03"), rank_of("tp_rank_01_pp_rank_002"), rank_of("model_weights")
    ((3, 0), (1, 2), None)
    """
    match = _RANK_FOLDER.fullmatch(folder)
    if match is None:
        return None
    return (int(match[1]), 0) if match[1] else (int(match[2]), int(match[3]))


@schema.dataclass(frozen=True)
class Step:
    """One checkpoint of a run: the file of each rank, or the folder of a distributed one. `base` holds all of them."""

    base: str
    name: str
    ranks: Mapping[tuple[int, int], str]
    folder: str | None = None

    @property
    def place(self) -> str:
        return os.path.join(self.base, self.name)


def find_step(path: str) -> Step | None:
    """The checkpoint at a file, a distributed folder, a folder of checkpoints or a run; None if there is none.

    Raises where there are several.
    """
    if os.path.isfile(path):
        return _step_of_file(path) if path.endswith(SUFFIX) else None
    if _is_distributed(path):
        return Step(os.path.dirname(os.path.abspath(path)), os.path.basename(os.path.abspath(path)), {}, path)
    for base in (os.path.join(path, FOLDER), path):
        steps = _steps_in(base)
        if steps:
            return _only(steps, base)
    return None


def _is_distributed(folder: str) -> bool:
    return all(os.path.isfile(os.path.join(folder, name)) for name in (METADATA, COMMON))


def _step_of_file(path: str) -> Step:
    folder, name = os.path.split(os.path.abspath(path))
    if rank_of(os.path.basename(folder)) is None:
        return Step(folder, name, {(0, 0): path})
    base = os.path.dirname(folder)
    return next(step for step in _steps_in(base) if step.name == name)


def _steps_in(base: str) -> list[Step]:
    """Every checkpoint directly in a folder, by name."""
    if not os.path.isdir(base):
        return []
    files: dict[str, dict[tuple[int, int], str]] = {}
    folders: dict[str, str] = {}
    forms: dict[str, set[str]] = {}
    for entry in sorted(os.listdir(base)):
        path, place = os.path.join(base, entry), rank_of(entry)
        if os.path.isfile(path) and entry.endswith(SUFFIX):
            files.setdefault(entry, {})[0, 0] = path
            forms.setdefault(entry, set()).add("file")
        elif place is not None and os.path.isdir(path):
            for name in sorted(os.listdir(path)):
                if name.endswith(SUFFIX):
                    files.setdefault(name, {})[place] = os.path.join(path, name)
                    forms.setdefault(name, set()).add(entry[:2])
        elif os.path.isdir(path) and _SHARD.search(entry):
            raise FormatError(
                "weights sharded by FSDP are not supported", file=path, fix="save with fsdp_sharded_checkpoint: false"
            )
        elif os.path.isdir(path) and _is_distributed(path):
            folders[entry] = path
    for name, found in forms.items():
        if len(found) > 1:
            raise FormatError(
                "ranks of several parallel layouts lie side by side",
                file=os.path.join(base, name),
                fix="remove the stale folders",
            )
    steps = [Step(base, name, ranks) for name, ranks in files.items()]
    return [*steps, *(Step(base, name, {}, folder) for name, folder in folders.items())]


def _only(steps: list[Step], base: str) -> Step:
    """The only step; a copy called -last of the only other one does not count."""
    stems = {step.name.removesuffix(SUFFIX): step for step in steps}
    chosen = [step for stem, step in stems.items() if not (stem.endswith(_LAST) and stem.removesuffix(_LAST) in stems)]
    if len(chosen) > 1:
        names = ", ".join(step.name for step in chosen[:5])
        raise FormatError(
            "several checkpoints lie here", file=base, found=names, fix="give the file (of any rank) or folder of one"
        )
    return chosen[0]
