"""What the judges share: Megatron on a CPU (calls of CUDA made harmless), ranks as processes, forward over stages."""

from __future__ import annotations

import contextlib
import os
import socket
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing


def without_cuda() -> None:
    """Make the calls of CUDA harmless that Megatron makes unasked: current device, moves, random states, streams."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.compile = lambda function=None, *_, **__: function or (lambda inner: inner)
    cuda = torch.cuda
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *words: None  # marks for a profiler
    cuda.current_device = lambda: "cpu"
    cuda.device_count = lambda: 0
    for name in ("set_device", "synchronize", "empty_cache", "manual_seed", "set_rng_state", "reset_peak_memory_stats"):
        setattr(
            cuda, name, _nothing()
        )  # one each: torch._dynamo has a rule per name, and refuses one function with two
    cuda.get_rng_state = lambda *_, **__: torch.zeros(16, dtype=torch.uint8)
    cuda.get_device_capability = lambda *_, **__: (9, 0)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved"):
        setattr(cuda, name, lambda *_, **__: 0)
    properties = types.SimpleNamespace(multi_processor_count=1, major=9, minor=0, name="none")
    cuda.get_device_properties = lambda *_, **__: properties
    cuda.Event, cuda.Stream = _Event, _Stream
    cuda.current_stream = lambda *_, **__: _Stream()
    cuda.stream = lambda *_, **__: contextlib.nullcontext()
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.nn.Module.cuda = lambda self, *_, **__: self
    torch.Tensor.to = _moved_to_cpu(torch.Tensor.to)
    for name in ("empty", "zeros", "ones", "tensor", "arange", "full", "rand", "randn"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _nothing() -> Callable[..., None]:
    return lambda *_, **__: None


class _Event:
    synchronize = wait = record = __init__ = _nothing()


class _Stream:
    synchronize = wait_stream = wait_event = __init__ = _nothing()

    def record_event(self, event: Any = None) -> _Event:
        return _Event()


def _is_device(value: Any) -> bool:
    return isinstance(value, (str, torch.device)) and str(value).startswith(("cuda", "xla"))


def _moved_to_cpu(to: Callable) -> Callable:
    def moved(self, *args, **kwargs):
        args = tuple("cpu" if _is_device(value) else value for value in args)
        return to(self, *args, **{key: "cpu" if _is_device(value) else value for key, value in kwargs.items()})

    return moved


def _on_cpu(function: Callable) -> Callable:
    def made(*args, **kwargs):
        if _is_device(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)

    made.__wrapped__ = function  # type: ignore[attr-defined]
    return made


def ranks(function: Callable[..., None], world: int, *args: Any) -> None:
    """Run function(rank, world, *args) in `world` processes with gloo between them."""
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    if world == 1:
        _one(0, function, world, args)
    else:
        torch.multiprocessing.spawn(_one, (function, world, args), nprocs=world)


def _one(rank: int, function: Callable[..., None], world: int, args: tuple) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
    without_cuda()
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    function(rank, world, *args)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def forward(
    model: torch.nn.Module, tokens: torch.Tensor, hidden_size: int, pp: int, stage: int, ranks_of_stage: int, rank: int
) -> torch.Tensor:
    """Logits [batch, sequence, vocabulary] on the last of `pp` stages; the others hand [sequence, batch, hidden] on."""
    batch, length = tokens.shape
    if stage > 0:
        hidden = torch.empty(length, batch, hidden_size)
        torch.distributed.recv(hidden, rank - ranks_of_stage)
        unwrapped(model).set_input_tensor(hidden)
    mask = torch.ones(1, 1, length, length).triu(1).bool()
    positions = torch.arange(length)[None].expand_as(tokens)
    # GLM-4.5V counts positions by what each token is, of text here
    kinds = {"mm_token_type_ids": torch.zeros_like(tokens)} if type(unwrapped(model)).__name__ == "GLM45VModel" else {}
    output = model(input_ids=tokens, position_ids=positions, attention_mask=mask, **kinds)
    if stage < pp - 1:
        torch.distributed.send(output.contiguous(), rank + ranks_of_stage)
    return output


def unwrapped(model: Any) -> Any:
    """The model inside of what wraps it as `module`: mixed precision, data parallelism, Lightning."""
    while getattr(model, "module", None) is not None:
        model = model.module
    return model


def gathered(logits: torch.Tensor, group: Any, tp: int) -> torch.Tensor:
    """Logits of all of the vocabulary from those of each tensor parallel rank."""
    if tp == 1:
        return logits
    parts = [torch.empty_like(logits) for _ in range(tp)]
    torch.distributed.all_gather(parts, logits.contiguous(), group=group)
    return torch.cat(parts, -1)
