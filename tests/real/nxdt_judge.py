"""NxD Training's own model classes as a judge, on a CPU: `nxd.load_checkpoint` of folders that we wrote, and their logits.

    PYTHONPATH=NXD/src:NXDT/src python nxdt_judge.py CASES.json OUT --tp 2 [--ep 2] [--hw trn1|trn2]

CASES maps a name to `{"hf", "folder"}`; OUT/NAME.safetensors gets the `logits`, or OUT/NAME.error what was wrong. The model
classes, the parallel layers and the loader are the real ones (`ckpt_nxdt.own` builds and loads, told by config.json and
nxdt.yaml in the folder); packages of XLA and Neuron are empty, but for what decides a layout or runs in a forward pass.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import traceback
from pathlib import Path

os.environ.update(NXD_CPU_MODE="1", PYTORCH_JIT="0")

import absent
import cpu
import torch
from safetensors.torch import load_file, save_file

NOT_HERE = (
    "torch_xla torch_neuronx libneuronxla neuronxcc nki nkilib neuron_device_mem trl peft torchvision boto3 botocore "
    "lightning apex nemo pytorch_lightning lightning_utilities lightning_fabric hydra datasets torchmetrics"
)


class Reference:
    """torch_xla's TensorReference: what stands in an xser file for a tensor in a file of its own."""

    def __init__(self, tid):
        self.tid = tid


Reference.__module__, Reference.__qualname__ = "torch_xla.utils.serialization", "TensorReference"


class Arena:
    """torch_xla's ToXlaTensorArena: the chosen leaves of nested dicts, converted in one call."""

    def __init__(self, convert, select):
        self.convert, self.select = convert, select

    def transform(self, value):
        found: list = []
        self._walk(value, found.append)
        made = iter(self.convert(found))
        return self._walk(value, lambda _: next(made))

    def _walk(self, value, of):
        if self.select(value):
            return of(value)
        return type(value)((k, self._walk(v, of)) for k, v in value.items()) if isinstance(value, dict) else value


def stand_ins(hardware: str) -> None:
    """What takes the place of XLA and Neuron."""
    importlib.import_module("torch._dynamo")  # before a triton of nothing could be found

    absent.absent(NOT_HERE)
    absent.first("neuronx_distributed.trace neuronx_distributed.kernels")  # compiling, and kernels
    import torch_neuronx.utils
    import torch_xla.core.xla_env_vars
    import torch_xla.core.xla_model as xm
    import torch_xla.runtime
    import torch_xla.utils.checkpoint
    import torch_xla.utils.serialization

    torch_neuronx.utils.get_platform_target = lambda: hardware
    xm.xla_device = lambda *_: torch.device("cpu")
    xm.is_master_ordinal = lambda *_, **__: torch.distributed.get_rank() == 0
    xm.mark_step = lambda *_, **__: None
    xm.rendezvous = lambda *_, **__: torch.distributed.barrier()
    xm.get_ordinal = xm.get_local_ordinal = torch.distributed.get_rank
    xm.ToXlaTensorArena = Arena
    torch_xla.utils.serialization.TensorReference = Reference
    torch_xla.core.xla_env_vars.HOST_WORLD_SIZE = "LOCAL_WORLD_SIZE"
    torch_xla.runtime.world_size = torch.distributed.get_world_size
    torch_xla.runtime.global_ordinal = torch_xla.runtime.local_ordinal = torch.distributed.get_rank
    torch_xla.utils.checkpoint.checkpoint = torch.utils.checkpoint.checkpoint


def judged(rank: int, world: int, asked: argparse.Namespace) -> None:
    """One rank, for all cases."""
    stand_ins(asked.hw)
    from ckpt_nxdt import own

    own.start(asked.tp, asked.ep)
    for name, case in json.loads(Path(asked.cases).read_text()).items():
        try:
            tokens = load_file(f"{case['hf']}.ids.safetensors")["input_ids"]
            logits = own.computed_by(own.Job.beside(case["folder"]), tokens)
            if rank == 0:
                save_file({"logits": logits}, f"{asked.out}/{name}.safetensors")
        except Exception:
            Path(asked.out, f"{name}.error").write_text(f"rank {rank}: {traceback.format_exc()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases")
    parser.add_argument("out")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--ep", type=int, default=1)
    parser.add_argument("--hw", default="trn1")
    arguments = parser.parse_args()
    cpu.ranks(judged, arguments.tp * arguments.ep, arguments)
