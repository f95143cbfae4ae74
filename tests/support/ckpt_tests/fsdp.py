"""Rank files as verl saves them, by torch itself: DTensors of any mesh and rank, made in one process without a process group that works.

Where each part lies is computed here once more, by `torch.chunk`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

Placements = Sequence[Any]
"""One for each dimension of a mesh."""


@contextlib.contextmanager
def rank_of(rank: int, world: int) -> Iterator[None]:
    """This process as one rank of a world whose other ranks do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    hook = sys.excepthook  # torch puts its own in its place, and leaves it there
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


def part(tensor: torch.Tensor, sizes: Sequence[int], placements: Placements, coordinate: Sequence[int]) -> torch.Tensor:
    """What the rank at a coordinate holds; a `_StridedShard` cuts what later dimensions have cut."""
    late = [type(how).__name__ == "_StridedShard" for how in placements]
    for number in sorted(range(len(sizes)), key=lambda number: (late[number], number)):
        how = placements[number]
        if not isinstance(how, Replicate):
            chunks = tensor.chunk(sizes[number], how.dim)
            place = coordinate[number]
            tensor = chunks[place] if place < len(chunks) else chunks[0].narrow(how.dim, 0, 0)
    return tensor.clone()


def dtensor(tensor: torch.Tensor, mesh: Any, placements: Placements) -> DTensor:
    """A part of a tensor, on the rank that this process is."""
    held = part(tensor, mesh.shape, placements, mesh.get_coordinate())
    return DTensor.from_local(
        held, mesh, placements, run_check=False, shape=tensor.shape, stride=torch.empty(tensor.shape).stride()
    )


Change = Callable[[int, dict[str, Any]], None]
"""What is changed in the state dict of a rank before it is saved."""


def write_ranks(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    sizes: Sequence[int] = (2,),
    placed: Callable[[str], Placements] = lambda name: [Shard(0)],
    *,
    names: Sequence[str] | None = None,
    change: Change = lambda rank, state: None,
    step: int = 7,
) -> Path:
    """The files of all ranks, with verl's files beside them. What `placed` gives no placement stays a plain tensor."""
    world = torch.Size(sizes).numel()
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(world):
        with rank_of(rank, world):
            mesh = init_device_mesh("cpu", tuple(sizes), mesh_dim_names=tuple(names) if names else None)
            state: dict[str, Any] = {
                name: dtensor(tensor, mesh, how) if (how := placed(name)) else tensor.clone()
                for name, tensor in tensors.items()
            }
            change(rank, state)
            torch.save(state, folder / f"model_world_size_{world}_rank_{rank}.pt")
            extra = {"lr_scheduler": {"last_epoch": step}, "rng": {"cpu": torch.zeros(8, dtype=torch.uint8)}}
            torch.save(extra, folder / f"extra_state_world_size_{world}_rank_{rank}.pt")
    (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": world}))
    return folder


def with_config(folder: Path, config: Mapping[str, Any]) -> Path:
    """verl's folder of what the model comes with."""
    place = folder / "huggingface"
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))
    (place / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    (place / "generation_config.json").write_text("{}")
    return folder
