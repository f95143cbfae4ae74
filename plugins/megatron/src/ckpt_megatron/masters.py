"""fp32 master weights from the optimizer.

In torch files an optimizer knows its parameters by position alone. `fp32_from_fp16_params` has one list of masters
per parameter group, and a group lists its parameters in the order in which the model registered them, which is the
order of the model's tensors in the same file. A group holds the dense or the expert parameters, with or without weight
decay (vectors and biases have none). So each group is matched to one of those four lists by all its shapes; where
that does not give exactly one answer, masters are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_core.sdk import FormatError, StoredTensor, errors

__all__ = ["BUFFERS", "KEY", "present", "replaced"]

BUFFERS = re.compile(r"\.expert_bias$|\.local_tokens_per_expert$|\.inv_freq$")
"""Names of tensors that no optimizer steps."""
KEY = "fp32_from_fp16_params"
"""Where an optimizer keeps masters, a list for each group."""
# optimizer.state.param (DistributedOptimizer), optimizer.state.fp32_param (Float16Optimizer); chained ones may have a prefix
DIST_MASTER = re.compile(r"(?:chained_\d+\.)?optimizer\.state\.(?:fp32_)?param\.(.+)")
# buckets of gradients, each rank's parameters one after the other
DIST_BUFFER = re.compile(r"(?:chained_\d+\.)?optimizer\.distributed\.")


def optimizers(content: Mapping[object, Any]) -> Iterator[Mapping[object, Any]]:
    """The optimizers of a rank file that keep masters; several where experts have one of their own."""
    optimizer = content.get("optimizer")
    for one in optimizer if isinstance(optimizer, list) else [optimizer]:
        if isinstance(one, dict) and isinstance(one.get(KEY), list):
            yield one


def present(content: Mapping[object, Any]) -> bool:
    """Whether a rank file holds masters."""
    return any(True for _ in optimizers(content))


def replaced(
    chunks: Sequence[Mapping[str, StoredTensor]], content: Mapping[object, Any], path: str, elsewhere: str | None
) -> list[dict[str, StoredTensor]]:
    """The tensors of a rank's virtual stages with each half-precision parameter replaced by its master."""
    groups = [group for optimizer in optimizers(content) for group in optimizer[KEY] if group]
    if not groups and elsewhere:
        raise errors.NotCarried(
            f"the fp32 masters lie in {elsewhere}, flattened by the distributed optimizer",
            file=path,
            expected=f"{KEY}, or a torch_dist checkpoint",
            fix="use --weights model, or save with --ckpt-format torch_dist --dist-ckpt-optim-fully-reshardable",
        )
    if not groups:
        raise errors.NotCarried(f"there are no fp32 masters (optimizer.{KEY})", file=path, fix="use --weights model")
    kinds: dict[tuple[bool, bool], list[tuple[int, str]]] = {}
    for chunk, tensors in enumerate(chunks):
        for name, tensor in tensors.items():
            if tensor.dtype.name in ("bf16", "fp16") and not BUFFERS.search(name):
                undecayed = name.endswith(".bias") or len(tensor.shape) == 1
                kinds.setdefault((".experts." in name, undecayed), []).append((chunk, name))
    found = [dict(tensors) for tensors in chunks]
    for number, group in enumerate(groups):
        if not all(isinstance(master, StoredTensor) for master in group):
            raise FormatError(f"optimizer.{KEY}[{number}] does not hold tensors alone", file=path)
        shapes = [master.shape for master in group]
        fitting = [
            kind for kind, places in kinds.items() if [chunks[chunk][name].shape for chunk, name in places] == shapes
        ]
        if len(fitting) != 1:
            raise FormatError(
                "the order of the fp32 masters can't be established",
                file=path,
                found=f"group {number} of {len(group)} parameters fits {len(fitting)} lists of the model's",
                expected="one: dense or expert parameters, with or without weight decay, in the order of the model",
                fix="use --weights model",
            )
        for (chunk, name), master in zip(kinds.pop(fitting[0]), group, strict=True):
            found[chunk][name] = master
    if kinds:
        names = [name for places in kinds.values() for _, name in places]
        raise FormatError(
            "some parameters have no fp32 master", file=path, found=", ".join(names[:4]), fix="use --weights model"
        )
    return found
