"""The optimizer in chunks (torch_dist): a moment has the key of its weight, and is cut into layers and experts as that is.

optimizer.state.exp_avg.KEY, .exp_avg_sq.KEY    fully_reshardable, and without a distributed optimizer: of the weight's shape
optimizer.state.param.KEY, .fp32_param.KEY      the master: of a distributed optimizer, and of a Float16Optimizer
the same keys, of [grid of shards, elements]    fully_sharded_model_space, see `flattened`
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ckpt_core.sdk import FormatError, chunked, dtypes, errors, reading, schema
from ckpt_megatron.flattened import unflattened
from ckpt_megatron.names import unwrapped
from ckpt_megatron.optimizer.found import KINDS, check_precision
from ckpt_megatron.optimizer.groups import DROP

STATE = "optimizer.state."
"""What the keys begin with."""


@schema.dataclass(frozen=True)
class DistStates:
    """What an optimizer keeps of each parameter, by its names for it. `of_half`: masters are kept of parameters in half precision alone.

    `flattened`: as fully_sharded_model_space has them, the number of shards along each axis and the elements of one. A parameter of a layer is one shard:
    a loader cuts its own out of it (core 0.13, dist_checkpointing/strategies/resharding.py).
    """

    kinds: Mapping[str, reading.Kind]
    of_half: bool = False
    flattened: bool = False

    def keeps(self, kind: reading.Kind, dtype: dtypes.DType) -> bool:
        """Whether there is a tensor of a kind for a parameter that is stored in `dtype`."""
        return not (self.of_half and kind == reading.MASTER and dtype == dtypes.FP32)


_OF_STATE = re.compile(r"(?:chained_\d+\.)?optimizer\.state\.([^.]+)\.(.+)")


def dist_tensors(checkpoint: chunked.DistributedCheckpoint) -> dict[reading.Kind, dict[str, chunked.ChunkedTensor]]:
    """The tensors of an optimizer in model space by kind, and by the key of the model's tensor."""
    found: dict[reading.Kind, dict[str, chunked.ChunkedTensor]] = {}
    for key, tensor in checkpoint.tensors.items():
        if match := _OF_STATE.fullmatch(key):
            if match[1] not in KINDS:
                raise errors.NotCarried(
                    f"the optimizer keeps {match[1]} of {match[2]!r}, and is not Adam",
                    file=checkpoint.folder,
                    expected=", ".join(KINDS),
                    fix=DROP,
                )
            check_precision(match[1], match[2], tensor, checkpoint.folder)
            found.setdefault(KINDS[match[1]], {})[unwrapped(match[2])] = tensor
    return found


def as_weights(
    held: Mapping[str, chunked.ChunkedTensor],
    kind: reading.Kind,
    model: Mapping[str, chunked.ChunkedTensor],
    moments: Collection[str],
    folder: str,
) -> Iterator[tuple[str, Any]]:
    """The tensors of a kind by the keys of the model, each of the shape of its weight; `moments` are the keys of those that are trained."""
    for name, tensor in held.items():
        weight = model.get(name)
        if weight is None:
            raise FormatError(f"{kind} of {name!r} is of no weight of the model", file=folder)
        whole = tensor if tensor.shape == weight.shape else unflattened(tensor, weight.shape)
        if whole is None:
            raise errors.NotCarried(
                f"{kind} of {name!r} is arranged in a way that is not known",
                file=folder,
                found=tensor.shape,
                expected=f"{weight.shape}, or the number of shards along each axis and the elements of one",
                fix=DROP,
            )
        yield name, whole
    if kind == reading.MASTER:
        # A parameter that is fp32 in a model of bf16 has no master of its own (optimizer/optimizer.py).
        trained = (name for name in moments if name not in held and name in model and model[name].dtype.name == "fp32")
        yield from ((name, model[name]) for name in trained)


def dist_groups(common: Mapping[str, Any], file: str) -> tuple[list[Mapping[str, Any]], dict[str, object]]:
    """The groups in the common state, of one optimizer or of a chain of them, and the steps that it has."""
    saved = common.get("optimizer")
    if isinstance(saved, dict) and saved and all(type(key) is int for key in saved):
        saved = [saved[number] for number in sorted(saved)]
    bodies: list[Mapping[str, Any]] = []
    steps: dict[str, object] = {}
    for one in saved if isinstance(saved, list) else [saved]:
        inner = one.get("optimizer", one) if isinstance(one, dict) else None
        own = inner.get("param_groups") if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or not isinstance(own, list) or not all(isinstance(b, dict) for b in own):
            raise errors.NotCarried("the common state has no groups of an optimizer", file=file, fix=DROP)
        steps |= {f"group {len(bodies) + n}": body["step"] for n, body in enumerate(own) if "step" in body}
        states = inner.get("state")
        if isinstance(states, dict) and "common_step" in states:
            steps[f"all parameters of optimizer {len(bodies)}"] = states["common_step"]
        bodies += own
    return bodies, steps
