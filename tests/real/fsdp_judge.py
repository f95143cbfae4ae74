"""What we write, loaded by torch.distributed.checkpoint into a transformers model that FSDP2 holds, on several ranks.

    python -m torch.distributed.run --nproc_per_node 3 fsdp_judge.py LAYOUT CHECKPOINT HF [CHECKPOINT HF ...]

Every rank must find every tensor of a checkpoint that `from_pretrained` finds in the folder HF, bit for bit, tied heads and buffers
included.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import transformers
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def sharded(folder: str) -> transformers.PreTrainedModel:
    """The model of a folder's config with numbers of its own, each of its layers and the rest in a group of FSDP2."""
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(1)
    model = getattr(transformers, config.architectures[0])(config).float()
    lists = [name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    for name in outer:
        for layer in model.get_submodule(name):
            fully_shard(layer)
    return fully_shard(model)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def judge(layout: str, checkpoint: str, hf: str) -> None:
    model = sharded(hf)
    state = model.state_dict()
    dcp.load(state if layout == "flat" else {"model": state}, checkpoint_id=checkpoint)
    wanted = type(model).from_pretrained(hf, dtype=torch.float32).state_dict()
    found = model.state_dict()
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    assert any(isinstance(tensor, DTensor) for tensor in found.values()), "nothing is sharded"
    for name, tensor in found.items():
        assert torch.equal(whole(tensor), wanted[name]), (hf, name)


def main(layout: str, *folders: str) -> None:
    dist.init_process_group("gloo")
    for checkpoint, hf in zip(folders[::2], folders[1::2], strict=True):
        judge(layout, checkpoint, hf)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
