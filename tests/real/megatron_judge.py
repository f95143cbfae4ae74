"""The real Megatron-Core as a judge: it loads a checkpoint folder in any TP/PP/EP topology and computes logits.

    python megatron_judge.py ROOT IDS OUT --tp 2 --pp 2

IDS holds `input_ids`, OUT gets the `logits`. A key or shape that the model does not have, or misses, is an error, in
torch files as in torch_dist (at the strictness that is Megatron's default). CPU, gloo, local layer spec:
TransformerEngine needs a GPU. `ckpt_megatron.own`, by which `ckpt verify --logits` asks Megatron-Core, builds and loads here too.
"""

from __future__ import annotations

import argparse
import os
import socket

import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file, save_file

from ckpt_megatron import own
from ckpt_megatron.files import find_folder


def judge(rank: int, asked: argparse.Namespace) -> None:
    """One rank."""
    sizes = {name: getattr(asked, name) for name in ("tp", "pp", "ep")}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=asked.tp * asked.pp * asked.ep)
    own.on_cpu()
    place = own.start(sizes)
    model = own.loaded(find_folder(asked.root), sizes, place)
    with torch.no_grad():
        logits = own.forward(model, load_file(asked.ids)["input_ids"], sizes, rank)
    if place == {"tp": 0, "pp": asked.pp - 1, "ep": 0}:
        save_file({"logits": logits.float().contiguous()}, asked.out)
    torch.distributed.barrier()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("root", "ids", "out"):
        parser.add_argument(name)
    for name in ("tp", "pp", "ep"):
        parser.add_argument(f"--{name}", type=int, default=1)
    arguments = parser.parse_args()
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    world = arguments.tp * arguments.pp * arguments.ep
    torch.multiprocessing.spawn(judge, (arguments,), nprocs=world)
