"""The files of a Megatron checkpoint.

ROOT/latest_checkpointed_iteration.txt            an iteration, or the word release
ROOT/iter_0000100/mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt        torch: one file per rank, see `read_torch`
ROOT/iter_0000100/metadata.json .metadata common.pt __0_0.distcp   torch_dist: see `read_dist`
ROOT/iter_0000100/.metadata __0_0.distcp                           fsdp_dtensor, of Megatron-FSDP: see `megatron_fsdp`
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from ckpt_core.sdk import CkptError, FormatError, chunked, disk, documents, torch_files

TRACKER = "latest_checkpointed_iteration.txt"
DIST_METADATA = "metadata.json"
"""The file of a distributed checkpoint that says how its tensors are kept."""
COMMON = "common.pt"
FSDP_DTENSOR = "fsdp_dtensor"
"""The container of Megatron-FSDP, by its name in Megatron's --ckpt-format."""
SIDECARS = "tokenizer"
RUN_CONFIG = "run_config.yaml"
MODEL_FILE = "model_optim_rng.pt"
# model_rng.pt from mid-2022 to mid-2023, with a distributed optimizer
_MODEL_FILES = (MODEL_FILE, "model_rng.pt")
_OPTIMIZER_FILES = ("distrib_optim.pt", "optim.pt")
_RANK_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
# A decoder of transformers behind wrappers has other names within its layers.
_OF_MEGATRON_FSDP = re.compile(rb"model\.(?:module\.)+decoder\.layers\.\d+\.(?:self_attention|mlp|input_layernorm)\.")
_ITERATION = re.compile(r"iter_\d{7,}|release")


def find_folder(path: str) -> str:
    """The folder of one iteration at `path`: itself, or the one that the tracker names."""
    if _is_iteration(path):
        return path
    tracker = os.path.join(path, TRACKER)
    if os.path.isfile(tracker):
        word = disk.read_small(tracker, 64).decode("ascii", "replace").strip()
        if word != "release" and not (word.isdigit() and word.isascii()):
            raise FormatError(
                f"{TRACKER} names no iteration",
                file=tracker,
                found=repr(word),
                expected="a number, or the word release",
            )
        folder = os.path.join(path, word if word == "release" else f"iter_{int(word):07d}")
        if not os.path.isdir(folder):
            raise FormatError(
                "the iteration that the tracker names is not there", file=tracker, found=os.path.basename(folder)
            )
        return folder
    found = sorted(
        name for name in os.listdir(path) if _ITERATION.fullmatch(name) and _is_iteration(os.path.join(path, name))
    )
    if len(found) != 1:
        raise FormatError(
            f"no {TRACKER} says which iteration to read",
            file=path,
            found=", ".join(found) or "none",
            fix="give the folder of the iteration",
        )
    return os.path.join(path, found[0])


def looks_like(path: str) -> str | None:
    """The fact by which a folder is a Megatron checkpoint, or None."""
    if not os.path.isdir(path):
        return None
    try:
        folder = find_folder(path)
    except (CkptError, OSError):
        return None
    # Megatron-Bridge and NeMo keep the same tensors under configs of their own.
    if is_bridge(folder) or _is_of_nemo(folder):
        return None
    name = os.path.relpath(folder, os.path.dirname(folder))
    kind = _kind(folder)
    if kind == "torch" and not any(torch_files.may_be_torch_file(file) for file, _ in rank_files(folder)):
        return None
    return f"{kind} files in {name}" if kind else None


def is_bridge(folder: str) -> bool:
    """Whether the run config of Megatron-Bridge is in a folder. It names the class that it configures, and other tools that
    have a file of this name do not."""
    file = os.path.join(folder, RUN_CONFIG)
    try:
        return os.path.isfile(file) and b"megatron.bridge" in disk.read_small(file)
    except (CkptError, OSError):
        return True  # its reader says what is wrong with it


def _is_of_nemo(folder: str) -> bool:
    """Whether what stands beside the tensors is NeMo's or Lightning's, and not Megatron's, which always counts iterations."""
    try:
        common = torch_files.read_torch_file(os.path.join(folder, COMMON))
    except (CkptError, OSError):
        return False
    return isinstance(common, dict) and common.keys().isdisjoint(("args", "checkpoint_version", "iteration"))


def _is_iteration(folder: str) -> bool:
    return os.path.isdir(folder) and _kind(folder) is not None


def _kind(folder: str) -> str | None:
    """The container, tested for in the order in which Megatron does (checkpointing.py, _get_checkpoint_format)."""
    metadata = os.path.join(folder, DIST_METADATA)
    if os.path.isfile(metadata):
        try:
            said = documents.parse_json(disk.read_small(metadata, 1 << 20), metadata)
        except CkptError:
            return None
        backend = said.get("sharded_backend") if isinstance(said, dict) else None
        if backend == "zarr" or (backend == "torch_dist" and os.path.isfile(os.path.join(folder, ".metadata"))):
            return str(backend)
    if any(True for _ in rank_files(folder)):
        return "torch"
    return FSDP_DTENSOR if not os.path.isfile(metadata) and _is_of_megatron_fsdp(folder) else None


def _is_of_megatron_fsdp(folder: str) -> bool:
    """Whether the keys of a distributed checkpoint without a metadata.json are those of Megatron-FSDP."""
    file = os.path.join(folder, chunked.METADATA)
    if not os.path.isfile(file):
        return False
    try:
        keys = disk.read_small(file)
    except (CkptError, OSError):
        return False
    return _OF_MEGATRON_FSDP.search(keys) is not None


def container_of(folder: str) -> str:
    """`torch`, `torch_dist`, `zarr` (the same tensors, until core 0.15) or `fsdp_dtensor`; raises where it is none of them."""
    kind = _kind(folder)
    if kind is None:
        raise FormatError(
            "there are no weights here",
            file=folder,
            expected="mp_rank_* folders, metadata.json (torch_dist or zarr) and what it describes, or .metadata of Megatron-FSDP",
        )
    return kind


def rank_files(folder: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Path of the model file and the numbers of every rank folder. Those of an optimizer alone have no model file."""
    for name in sorted(os.listdir(folder)):
        match = _RANK_FOLDER.fullmatch(name)
        if match is None:
            continue
        for file in _MODEL_FILES:
            path = os.path.join(folder, name, file)
            if os.path.isfile(path):
                yield path, tuple(int(number) for number in match.groups() if number is not None)


def optimizer_files(folder: str) -> Iterator[str]:
    """The paths of the files that distributed optimizers wrote, beside model files or in folders of their own."""
    for name in sorted(os.listdir(folder)):
        if _RANK_FOLDER.fullmatch(name):
            paths = (os.path.join(folder, name, file) for file in _OPTIMIZER_FILES)
            yield from filter(os.path.isfile, paths)


def optimizer_file(path: str) -> str | None:
    """The name of the file beside a model file that a distributed optimizer wrote, if there is one."""
    folder = os.path.dirname(path)
    return next((name for name in _OPTIMIZER_FILES if os.path.isfile(os.path.join(folder, name))), None)
