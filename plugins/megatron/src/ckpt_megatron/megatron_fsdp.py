"""Megatron-FSDP's fsdp_dtensor: a distributed checkpoint without metadata.json and common.pt, one tensor for each layer.

    model.module.decoder.layers.3.self_attention.linear_qkv.weight       [(heads + 2 groups) * head_dim, hidden]
    model.module.decoder.layers.3.mlp.linear_fc1.weight_w  ..._v         [ffn, hidden] each: gate and up
    model.module.decoder.layers.3.mlp.experts.local_experts.5.linear_fc1.weight_w    experts by their global number
    args, iteration, checkpoint_version                                  values that common.pt has elsewhere
    optimizer.state.module.module.module.decoder.layers...exp_avg

Megatron core 0.19 (--use-megatron-fsdp --ckpt-format fsdp_dtensor). What it saves are the fp32 main weights. A shard is
a cut of the flat buffer of a whole layer at the boundary of a row, so chunks are as uneven as they like.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ckpt_core.sdk import FormatError, chunked, trees
from ckpt_megatron.names import unwrapped

PREFIX = "model."
GATE, UP = "_w", "_v"
"""How the names of the two halves of a gated linear_fc1 end."""
VALUES = ("args", "iteration", "checkpoint_version")
"""What is read of the values beside the tensors."""


def read_fsdp(source: str | os.PathLike[str] | trees.Tree) -> chunked.DistributedCheckpoint:
    """What lies in a folder, its model under the names of torch_dist's modules."""
    held = chunked.read_distributed(source)
    tensors: dict[str, chunked.ChunkedTensor] = {}
    for key, tensor in held.tensors.items():
        # Scripts of others put further wrappers around the model: any number of `module.` is read.
        name = unwrapped(key.removeprefix(PREFIX)) if key.startswith(PREFIX) else key
        if name in tensors:
            raise FormatError(
                f"two tensors are {name!r} once their wrappers are taken off", file=held.described_in[0], found=key
            )
        tensors[name] = tensor
    return replace(held, tensors=tensors)
