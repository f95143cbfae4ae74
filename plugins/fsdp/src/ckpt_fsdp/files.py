"""The folders of FSDP checkpoints, told apart by their names.

    global_step_500/actor/model_world_size_8_rank_0.pt ...         verl: a torch file per rank
                          optim_world_size_8_rank_0.pt ... extra_state_world_size_8_rank_0.pt ... fsdp_config.json
                          huggingface/config.json, tokenizer.json, generation_config.json, ...
    checkpoint-500/pytorch_model_fsdp_0/.metadata, __0_0.distcp    accelerate and transformers' Trainer
                   optimizer_0/ scheduler.pt rng_state_0.pth trainer_state.json
    ANY/.metadata, __0_0.distcp                                    torch.distributed.checkpoint of any script
    ANY/shard-00001-model-00001-of-00001.safetensors ...           the same, with HuggingFaceStorageWriter(save_distributed=True)

verl writes its files in verl/utils/checkpoint/fsdp_checkpoint_manager.py, accelerate in utils/fsdp_utils.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from ckpt_core.sdk import CkptError, FormatError, chunked, disk, errors, schema, torch_files
from ckpt_fsdp.steps import is_step

HUGGINGFACE = "huggingface"
"""verl's folder of the config, the tokenizer and all else that the model comes with."""
SETTINGS = "fsdp_config.json"
TRACKER = "latest_checkpointed_iteration.txt"
MODEL = re.compile(r"model_world_size_(\d{1,7})_rank_(\d{1,7})\.pt")
EXTRA = re.compile(r"extra_state_world_size_(\d{1,7})_rank_(\d{1,7})\.pt")
_OF_ACCELERATE = re.compile(r"pytorch_model_fsdp_\d+")
# Megatron-Core's own formats lie in .metadata, too, and say so beside it.
_OF_MEGATRON = ("metadata.json", "common.pt")


@schema.dataclass(frozen=True)
class Place:
    """Where a checkpoint lies. `weights` is the folder of its tensors, `home` the one around what lies beside them.

    `listed`: a `.metadata` says what is in the files.
    """

    weights: str
    home: str
    by_rank: bool
    fact: str
    listed: bool = True


def places(path: str) -> list[Place]:
    """What at `path` may be a checkpoint; several where a folder holds more than one. Never raises for what is in a file."""
    if not os.path.isdir(path):
        return []
    names = _names_in(path)
    if _has_rank_files(path, names):
        return [Place(path, path, True, "model_world_size_*_rank_* files")]
    if _is_distributed(path, names):
        above = os.path.dirname(os.path.abspath(path))
        home = above if _OF_ACCELERATE.fullmatch(os.path.basename(os.path.abspath(path))) else path
        return [Place(path, home, False, f"a {chunked.METADATA} of torch.distributed.checkpoint")]
    if chunked.are_shards(names):
        return [Place(path, path, False, "shard-*-model-*.safetensors of torch.distributed.checkpoint", listed=False)]
    found = []
    for name in names:
        inner = os.path.join(path, name)
        if not os.path.isdir(inner) or os.path.islink(inner):
            continue
        inside = _names_in(inner)
        if _OF_ACCELERATE.fullmatch(name) and _is_distributed(inner, inside):
            found.append(Place(inner, path, False, f"{name}/{chunked.METADATA}"))
        elif _has_rank_files(inner, inside):
            found.append(Place(inner, inner, True, f"model_world_size_*_rank_* files in {name}"))
    return found or _tracked(path, names)


def _names_in(folder: str) -> list[str]:
    """What is in a folder; nothing in one that may not be looked into."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _has_rank_files(path: str, names: Iterable[str]) -> bool:
    return any(MODEL.fullmatch(name) and torch_files.may_be_torch_file(os.path.join(path, name)) for name in names)


def _is_distributed(path: str, names: Sequence[str]) -> bool:
    """Whether a folder is of torch.distributed.checkpoint, and not one of Megatron-Core's own, or of torchtitan."""
    if any(name in names for name in _OF_MEGATRON) or not any(name.endswith(".distcp") for name in names):
        return False
    # A copy made with `cp folder/*` lacks the file, whose name begins with a dot: the reader says so.
    # A pickle has the first byte of a legacy torch file; one that never came is empty, or a pointer.
    held = torch_files.may_be_torch_file(os.path.join(path, chunked.METADATA))
    return chunked.METADATA not in names or (held and not is_step(path))


def _tracked(path: str, names: list[str]) -> list[Place]:
    """What verl's own tracker in the folder of a run points to."""
    if TRACKER not in names or not os.path.isfile(file := os.path.join(path, TRACKER)):
        return []
    try:
        step = disk.read_small(file, 64).decode("ascii", "replace").strip()
    except FormatError:  # it is not a number, or a link to elsewhere
        return []
    folder = os.path.join(path, f"global_step_{step}")
    return places(folder) if step.isdigit() and os.path.isdir(folder) else []


def place(path: str) -> Place:
    """The one checkpoint at `path`; `CkptError` where there are several."""
    found = places(path)
    if not found:
        raise FormatError(
            "there is no FSDP checkpoint here",
            file=path,
            expected=f"model_world_size_N_rank_R.pt, pytorch_model_fsdp_0, or {chunked.METADATA}",
        )
    if len(found) > 1:
        folders = [one.weights for one in found]
        raise CkptError(
            "the folder holds several models",
            file=path,
            found=", ".join(os.path.basename(folder) for folder in folders),
            fix=f"give the folder of the one you want, such as {folders[0]}",
        )
    return found[0]


def rank_files(folder: str) -> list[str]:
    """The file of every rank, in the order of the ranks. Raises every one that is missing, and files of two worlds."""
    found: dict[int, dict[int, str]] = {}
    for name in sorted(os.listdir(folder)):
        if match := MODEL.fullmatch(name):
            found.setdefault(int(match[1]), {})[int(match[2])] = os.path.join(folder, name)
    if len(found) > 1:
        raise FormatError(
            "files of two world sizes lie side by side: the folder was saved into twice",
            file=folder,
            found="; ".join(f"{len(files)} files of world size {world}" for world, files in sorted(found.items())),
            fix="remove the stale ones",
        )
    ((world, files),) = found.items()
    problems = errors.Problems(f"reading {folder}")
    for rank in files:
        if rank >= world:
            problems.add(
                FormatError(
                    "a file is of a rank beyond the world size",
                    file=files[rank],
                    found=f"rank {rank}",
                    expected=f"ranks 0 to {world - 1}",
                    fix="remove it: it is not of this run",
                )
            )
    missing = [rank for rank in range(min(world, len(files) + 100)) if rank not in files]
    for rank in missing[:100]:
        name = f"model_world_size_{world}_rank_{rank}.pt"
        problems.add(
            FormatError(
                "the file of a rank is missing",
                file=os.path.join(folder, name),
                found=f"{len(files)} files",
                expected=f"{world}",
                fix="copy the files of all ranks: every node of a run saves its own",
            )
        )
    problems.raise_any()
    return [files[rank] for rank in range(world)]
