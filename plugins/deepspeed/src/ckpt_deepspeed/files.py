"""The files of a DeepSpeed checkpoint, told apart by their names.

    ROOT/latest                                              the name of a step's folder (latest_universal: of a universal one)
    ROOT/global_step100/
        layer_03-model_01-model_states.pt                    a pipeline module: one file per layer and tensor parallel rank
        mp_rank_02_model_states.pt                           args, shapes, and the weights where there is no pipeline module
        zero_pp_rank_0_mp_rank_02_model_states.pt            ZeRO-3: one such file per data parallel rank
        [bf16_]zero_pp_rank_10_mp_rank_02_optim_states.pt    fp32 masters and moments; `pp` stands for partition: the data parallel rank
    ROOT/global_step100_universal/zero/NAME/fp32.pt          universal: one folder per parameter, beside the model states

Ranks are numbers, not text: rank 10 comes after rank 9 and has no leading zeros in the names of optimizer files. The
model parallel rank is pipeline rank * tensor parallel ranks + tensor parallel rank.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from ckpt_core.sdk import FormatError, disk, errors, ledgers, schema, torch_files
from ckpt_deepspeed.contents import enter_unread

LATEST, LATEST_UNIVERSAL = "latest", "latest_universal"
UNIVERSAL = "zero"
FP32 = "fp32.pt"
_LAYER = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_MODEL = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_PARTITIONED_MODEL = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_EXPERT = re.compile(r".*expert_\d+_mp_rank_\d+_model_states\.pt|expp_rank_\d+_mp_rank_\d+_optim_states\.pt")


@schema.dataclass
class Folder:
    """The files of one step, by rank: tensor parallel `tp`, model parallel `mp`, data parallel `dp`."""

    path: str
    layers: dict[tuple[int, int], str] = field(default_factory=dict)  # layer index, tp
    models: dict[int, str] = field(default_factory=dict)  # mp
    partitioned: dict[tuple[int, int], str] = field(default_factory=dict)  # mp, dp
    optimizers: dict[tuple[int, int], str] = field(default_factory=dict)  # mp, dp
    universal: dict[str, str] = field(default_factory=dict)  # parameter
    ledger: ledgers.Ledger = field(default_factory=ledgers.Ledger)

    def enter(self, run: str, masters_read: bool) -> ledgers.Ledger:
        """The ledger, with what no reader looks at; `run` is the folder that the user gave."""
        # Beside what is read, the folders of the parameters hold moments and steps, and one file is the optimizer's own.
        self.ledger.left_whole(ledgers.OPTIMIZER, os.path.join(self.path, UNIVERSAL), self.universal.values())
        if not masters_read:
            enter_unread(self.ledger, list(self.optimizers.values()))
        for name in (LATEST, LATEST_UNIVERSAL):
            if run != self.path and os.path.isfile(tracker := os.path.join(run, name)):
                self.ledger.used("the step to read", tracker)
        return self.ledger

    @property
    def states(self) -> list[disk.FileState]:
        """Every file of the step."""
        found = (self.layers, self.models, self.partitioned, self.optimizers, self.universal)
        return [disk.FileState.of(path) for files in found for path in files.values()]


def find_folder(path: str) -> str:
    """The folder of one step at `path`: itself, or the one that `latest` names."""
    if _is_step(path):
        return path
    for name in (LATEST, LATEST_UNIVERSAL):
        file = os.path.join(path, name)
        if not os.path.isfile(file):
            continue
        tag = disk.read_small(file, 4096).decode("utf-8", "replace").strip()
        if not tag or os.path.basename(tag) != tag or tag in (".", ".."):
            raise FormatError(f"{name} names no folder", file=file, found=repr(tag)[:80])
        folder = os.path.join(path, tag)
        if not _is_step(folder):
            raise FormatError(
                f"the folder that {name} names is not there", file=file, found=tag, fix="give the folder of a step"
            )
        return folder
    found = sorted(name for name in os.listdir(path) if _is_step(os.path.join(path, name)))
    if len(found) != 1:
        raise FormatError(
            f"no {LATEST} says which step to read",
            file=path,
            found=", ".join(found) or "no step",
            fix="give the folder of a step",
        )
    return os.path.join(path, found[0])


def _is_step(path: str) -> bool:
    if not os.path.isdir(path):
        return False
    patterns = (_LAYER, _MODEL, _PARTITIONED_MODEL)
    return any(pattern.fullmatch(name) for name in os.listdir(path) for pattern in patterns)


def scan(path: str, strict: bool = True) -> Folder:
    """The files of the step in a folder; `strict`: raises for files that are not supported, or of the same ranks."""
    folder = Folder(path)
    problems = errors.Problems(f"reading {path}")
    for name in sorted(os.listdir(path)):
        if _EXPERT.fullmatch(name):
            problems.add(FormatError("DeepSpeed's own expert layers are not supported", file=os.path.join(path, name)))
        for pattern, files in (
            (_LAYER, folder.layers),
            (_MODEL, folder.models),
            (_PARTITIONED_MODEL, folder.partitioned),
            (_OPTIMIZER, folder.optimizers),
        ):
            match = pattern.fullmatch(name)
            if match is None:
                continue
            numbers = tuple(map(int, match.groups()))
            key: Any = numbers[0] if pattern is _MODEL else numbers if pattern is _LAYER else numbers[::-1]
            if key in files:
                problems.add(
                    FormatError(
                        "two files are of the same ranks",
                        file=os.path.join(path, name),
                        found=files[key],
                        fix="remove the stale one",
                    )
                )
            files[key] = os.path.join(path, name)
    inside = os.path.join(path, UNIVERSAL)
    for name in sorted(os.listdir(inside)) if os.path.isdir(inside) else ():
        file = os.path.join(inside, name, FP32)
        if os.path.isfile(file):
            folder.universal[name] = file
        elif os.path.isdir(os.path.join(inside, name)):
            problems.add(FormatError(f"a parameter has no {FP32}", file=os.path.join(inside, name)))
    if strict:
        problems.raise_any()
    return folder


def ranks(numbers: set[int], what: str, folder: str) -> int:
    """How many ranks there are; raises if one between is missing."""
    missing = sorted(set(range(max(numbers, default=-1) + 1)) - numbers)
    if missing or not numbers:
        raise FormatError(
            f"there is no file of {what} {missing[0] if missing else 0}",
            file=folder,
            found=", ".join(map(str, sorted(numbers)[:8])),
        )
    return len(numbers)


def read_states(path: str) -> Mapping[str, Any]:
    """The dict that a file of states holds."""
    content = torch_files.read_torch_file(path)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise FormatError("the file holds no dict of states", file=path, found=torch_files.brief(content))
    return content


def section(states: Mapping[str, Any], key: str, path: str, kind: type = dict) -> Any:
    """An entry of a file of states; empty where it is absent or None, an error where it is of another type."""
    value = states.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise FormatError(f"{key} is not a {kind.__name__}", file=path, found=torch_files.brief(value))
    return value
