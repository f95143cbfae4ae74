"""Nanotron itself, where it is installed, on a step folder: its `load_weights`, its model, on as many ranks as wrote it.

It runs in a process of its own for every rank (`ckpt_core.plugins.judging`). Written for nanotron 0.4 (PyPI), whose model files
import flash-attn, which needs a GPU and computes no float32: so as released it can only say why it does not judge. With
plain torch in the place of flash-attn (`tests/real/nanotron_stubs.py`) it does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_core.sdk import Checkpoint, judgement
from ckpt_nanotron.files import CONFIG, find_step

PACKAGE = "nanotron"
CLASSES: frozenset[tuple[str, str]] = frozenset()  # weights are safetensors; nothing is unpickled


def judged(checkpoint: Checkpoint, inputs: Mapping[str, np.ndarray]) -> judgement.Judgement | None:
    """The hook `ckpt_logits`. In another topology release 0.4 refuses what it wrote itself under numpy 2."""
    ranks = {name: checkpoint.parallel.get(name, 1) for name in ("tp", "pp")}
    return judgement.judged_apart("ckpt_nanotron.own", PACKAGE, checkpoint, inputs, ranks)


def framework() -> str:
    return judgement.named("nanotron")


def logits(case: judgement.Case) -> np.ndarray | None:
    """Logits [batch, position, vocabulary] on the first tensor parallel rank of the last stage."""
    import torch

    tokens = torch.from_numpy(case.tokens())
    case.joined()  # nanotron itself starts NCCL alone, but takes a group that is there
    from nanotron.parallel import ParallelContext

    step = find_step(case.path)
    with open(os.path.join(step, CONFIG), encoding="utf-8") as file:
        config = json.load(file)
    context = ParallelContext(
        tensor_parallel_size=case.ranks["tp"], pipeline_parallel_size=case.ranks["pp"], data_parallel_size=1
    )
    model = model_of(config, context)
    load(model, context, step)
    output = forward(model, context, tokens)
    first = output is not None and torch.distributed.get_rank(context.tp_pg) == 0
    return output.float().numpy() if first else None


def model_of(config: Mapping[str, Any], context: Any) -> Any:
    """The model in float32 as nanotron's trainer builds it, tied parameters included."""
    import torch
    from nanotron.config import LlamaConfig, ParallelismArgs, Starcoder2Config
    from nanotron.models import build_model
    from nanotron.random import RandomStates, get_current_random_state
    from nanotron.trainer import CONFIG_TO_MODEL_CLASS, mark_tied_parameters

    # nanotron writes a marker into the file; a key that its class does not know is a TypeError, as in nanotron
    kind = Starcoder2Config if "is_starcoder2_config" in config else LlamaConfig
    try:
        said = kind(**config)
    except TypeError as problem:
        raise judgement.CannotRun(f"{CONFIG} is of another version: {problem}") from problem
    sizes = {"pp": context.pipeline_parallel_size, "tp": context.tensor_parallel_size}
    parallel = ParallelismArgs(dp=1, **sizes, tp_mode="ALL_REDUCE")
    model = build_model(
        lambda: CONFIG_TO_MODEL_CLASS[kind.__name__](
            config=said,
            parallel_context=context,
            parallel_config=parallel,
            # Starcoder2 wants the state of its dropout layers; in evaluation they draw nothing
            random_states=RandomStates({"tp_synced": get_current_random_state()}),
        ),
        parallel_context=context,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    mark_tied_parameters(model, parallel_context=context, parallel_config=parallel)
    return model.eval()


def load(model: Any, context: Any, step: str) -> None:
    """Fill the model by nanotron's `load_weights`; what that leaves unfilled refuses the files.

    In another topology nanotron merges the shards it finds into uninitialised memory, and does not check that they cover
    the tensor. Parameters and that memory are NaN beforehand, so a hole cannot pass by luck.
    """
    import torch
    from nanotron.serialize import load_weights

    with torch.no_grad(), judgement.loading():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
        torch.use_deterministic_algorithms(True)  # then torch.empty() gives NaN
        load_weights(model=model, parallel_context=context, root_folder=Path(step))
        torch.use_deterministic_algorithms(False)
    holes = [name for name, parameter in model.named_parameters() if parameter.isnan().any()]
    if holes:
        raise judgement.FilesRefused(f"these parameters are unfilled, or hold NaN: {', '.join(holes)}")


def forward(model: Any, context: Any, tokens: Any) -> Any:
    """Logits [batch, position, vocabulary] on the ranks of the stage that computes them, None elsewhere."""
    import torch
    from nanotron.parallel.pipeline_parallel.tensor_pointer import TensorPointer

    inputs = {"input_ids": tokens, "input_mask": torch.ones_like(tokens, dtype=torch.bool)}
    if torch.distributed.get_rank(context.pp_pg) != model.input_pp_rank:
        # only the first stage holds the batch; the others are told where it is
        inputs = {name: TensorPointer(group_rank=model.input_pp_rank) for name in inputs}
    with torch.inference_mode():
        sharded = model.model(**inputs)
        if isinstance(sharded, TensorPointer):
            return None
        # nanotron leaves the logits as [position, batch, vocabulary / tp] on every rank
        shards = [torch.empty_like(sharded) for _ in range(context.tensor_parallel_size)]
        torch.distributed.all_gather(shards, sharded.contiguous(), group=context.tp_pg)
        return torch.cat(shards, dim=-1).transpose(0, 1).contiguous()
