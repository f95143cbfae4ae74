"""Let the real, released nanotron 0.4 load a checkpoint on CPU and write the logits it computes.

    python nanotron_judge.py CHECKPOINT_STEP_DIR INPUT_IDS.safetensors OUT.safetensors [--tp N --pp M] [--save]

``INPUT_IDS.safetensors`` holds ``input_ids`` [batch, sequence] (int64); ``OUT.safetensors`` receives ``logits``
[batch, sequence, vocabulary] (fp32). The model is nanotron's own class, built from ``model_config.json`` in the
requested tensor/pipeline-parallel topology (one process per rank, gloo over loopback), filled by nanotron's own
``load_weights`` and run through nanotron's own forward. With ``--save`` its values are random, and nanotron's own
``save_weights`` puts them beside ``model_config.json``, the only file that has to be there. ``nanotron_stubs`` lists what had to be
replaced to do that without a GPU. ``ckpt_nanotron.own``, by which ``ckpt verify --logits`` asks nanotron, builds and loads here too.
"""

import argparse
import json
import os
import sys
import zlib
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nanotron_stubs
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from ckpt_nanotron import own

# Far above what a small model needs: it only ends a run whose ranks wait for each other.
TIMEOUT = timedelta(minutes=5)
LOOPBACK = "127.0.0.1"


def main() -> None:
    """Check the arguments, start one process per rank and wait for all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT_STEP_DIR")
    parser.add_argument("inputs", type=Path, metavar="INPUT_IDS.safetensors")
    parser.add_argument("output", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel size to load into (default: 1)")
    parser.add_argument("--pp", type=int, default=1, help="pipeline-parallel size to load into (default: 1)")
    parser.add_argument("--save", action="store_true", help="save a random model there, instead of loading one")
    arguments = parser.parse_args()

    installed = version("nanotron")
    if installed != nanotron_stubs.NANOTRON_VERSION:
        parser.error(f"the stand-ins are written for nanotron {nanotron_stubs.NANOTRON_VERSION}, found {installed}")
    if not (arguments.checkpoint / "model_config.json").is_file():
        parser.error(f"{arguments.checkpoint} has no model_config.json: give the folder of one step")

    # A stale result must not pass for this run's.
    arguments.output.unlink(missing_ok=True)
    # The parent keeps the rendezvous on a port the system picked, so no rank can lose a race for a free one.
    world_size = arguments.tp * arguments.pp
    store = dist.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(
        judge,
        args=(
            store.port,
            arguments.checkpoint,
            arguments.inputs,
            arguments.output,
            arguments.tp,
            arguments.pp,
            arguments.save,
        ),
        nprocs=world_size,
    )
    if not arguments.output.is_file():
        sys.exit("no rank produced logits")


def judge(rank: int, port: int, checkpoint: Path, inputs: Path, output: Path, tp: int, pp: int, save: bool) -> None:
    """Run one rank: build, load or save, forward; the first tensor-parallel rank of the last stage writes the result."""
    world_size = tp * pp
    # nanotron's ParallelContext reads its place in the world from the environment.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    # gloo would otherwise look up the machine's host name, which need not resolve.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    # nanotron only ever initialises NCCL itself, but uses a default group that already exists.
    store = dist.TCPStore(LOOPBACK, port, is_master=False, timeout=TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    nanotron_stubs.install()

    from nanotron.parallel import ParallelContext

    context = ParallelContext(tensor_parallel_size=tp, pipeline_parallel_size=pp, data_parallel_size=1)
    model = own.model_of(json.loads((checkpoint / "model_config.json").read_text(encoding="utf-8")), context)
    if save:
        save_random(model, context, checkpoint)
    else:
        own.load(model, context, str(checkpoint))
    logits = own.forward(model, context, load_file(inputs)["input_ids"])
    if logits is not None and dist.get_rank(context.tp_pg) == 0:
        save_file({"logits": logits}, output)
    context.destroy()


def save_random(model: Any, context: Any, checkpoint: Path) -> None:
    """Give the model random values, the same for every copy of a parameter, and save it with nanotron's ``save_weights``."""
    from nanotron.serialize import save_weights

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Only what is sharded differs between ranks.
            seed = zlib.crc32(name.encode()) + (dist.get_rank() if parameter.is_sharded else 0)
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
    save_weights(model=model, parallel_context=context, root_folder=checkpoint)


if __name__ == "__main__":
    main()
