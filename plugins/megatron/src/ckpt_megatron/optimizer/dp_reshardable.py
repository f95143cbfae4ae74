"""The optimizer in the buckets of one parallel layout (torch_dist, dp_reshardable): flat tensors for each pair of tensor and pipeline rank.

    optimizer.distributed.dp_group_idx_N.gbuf_idx_C.dtype_(...).bucket_idx_B.exp_avg    [elements], C being the virtual stage
    optimizer.distributed.dp_group_idx_N.optimizer/shard_0_1                            the groups

N counts the tensor parallel ranks of a pipeline stage before those of the next (core 0.16, parallel_state.py, the rank in the model parallel group). Which
parameter lies where is what `registered` and `buffers` say. That every bucket ends where its parameters do bears it out, and so do the masters,
which must round to the weights when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_core.sdk import FormatError, chunked, errors, layouts, lazy, reading
from ckpt_megatron import weights
from ckpt_megatron.config import decoder_of
from ckpt_megatron.found import DescribedModel, RankShare
from ckpt_megatron.masters import BUFFERS
from ckpt_megatron.names import layer_of
from ckpt_megatron.optimizer.buffers import fitted
from ckpt_megatron.optimizer.found import KINDS, check_precision
from ckpt_megatron.optimizer.groups import united
from ckpt_megatron.optimizer.model_space import dist_groups
from ckpt_megatron.optimizer.registered import registered
from ckpt_megatron.stages import stages

_KEY = re.compile(
    r"optimizer\.distributed\.dp_group_idx_(?P<group>\d+)\.gbuf_idx_(?P<chunk>\d+)\.dtype_\([^)]*\)\.bucket_idx_(?P<bucket>\d+)\.(?P<state>\w+)"
)
_ANY = re.compile(r"(?:chained_\d+\.)?optimizer\.distributed\.")

Buckets = dict[int, dict[str, chunked.ChunkedTensor]]
"""Flat tensors by the number of the bucket, and by what they are of a parameter."""


def in_buckets(checkpoint: chunked.DistributedCheckpoint) -> bool:
    """Whether the moments lie in the buckets of data parallel groups."""
    return any(_ANY.match(key) for key in [*checkpoint.tensors, *checkpoint.objects])


def bucket_shares(
    checkpoint: chunked.DistributedCheckpoint, described: DescribedModel
) -> tuple[dict[reading.Kind, list[RankShare]], list[Mapping[str, Any]], dict[str, object]]:
    """The tensors of each tensor parallel rank by kind, under the names of the tables; the groups, and their steps.

    `NotCarried` where which parameter lies where can't be told.
    """
    args, architecture = described.args, described.architecture
    sizes = {
        name: _size(args, f"{key}_model_parallel_size")
        for name, key in (("tp", "tensor"), ("pp", "pipeline"), ("ep", "expert"))
    }
    if sizes["ep"] > 1 or any(key.startswith("chained_") for key in checkpoint.tensors):
        raise _unknown(checkpoint, "experts of expert parallel ranks lie in buckets of their own")
    if any(args.get(key) for key in _OTHER_LAYOUTS):
        raise _unknown(checkpoint, "the layers are shared out by a layout of its own")
    vpp = _size(args, "virtual_pipeline_model_parallel_size")
    placed, _ = stages(len(decoder_of(architecture).layers), sizes["pp"], vpp, args, {})
    held = _held(checkpoint)
    bound = layouts.BoundTables(weights.TABLES, architecture, described.choices)
    shares: dict[reading.Kind, list[RankShare]] = {kind: [] for kind in (reading.MASTER, *reading.MOMENTS)}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    steps: dict[str, object] = {}
    for t in range(sizes["tp"]):
        ranks = {"tp": (t, sizes["tp"])}
        natives = [native for name, native in bound.natives(ranks).items() if not BUFFERS.search(name)]
        of_rank = {kind: RankShare(ranks, False) for kind in shares}
        for (p, chunk), layers in placed.items():
            number = p * sizes["tp"] + t
            last = (p, chunk) == (sizes["pp"] - 1, vpp - 1)
            here = list(_of_stage(natives, layers, (p, chunk) == (0, 0), last, sizes["pp"]))
            fused, grouped = args.get("transformer_impl") != "local", bool(args.get("moe_grouped_gemm"))
            order = registered((native.name for native in here), fused, grouped)
            shapes = {name: native.shape for name in order for native in here if native.name == name}
            _enter(of_rank, shapes, held.get((number, chunk), {}), f"a bucket of tp={t}, stage {p}", checkpoint.folder)
        for kind, share in of_rank.items():
            shares[kind].append(share)
    for number in range(sizes["tp"] * sizes["pp"]):
        blob = checkpoint.objects.get(f"optimizer.distributed.dp_group_idx_{number}.optimizer/shard_0_1")
        value = blob.read() if blob is not None else None
        said = value[0] if isinstance(value, list) and value else None
        bodies, own = dist_groups({"optimizer": said}, checkpoint.folder)
        groups[f"{checkpoint.folder}, dp_group_idx_{number}"] = bodies
        steps |= {f"{name} of group {number}": step for name, step in own.items()}
    return shares, united(groups), steps


_OTHER_LAYOUTS = (
    "pipeline_model_parallel_layout",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "mtp_num_layers",
)


def _size(args: Mapping[str, Any], key: str) -> int:
    value = args.get(key)
    return value if type(value) is int and value > 0 else 1


def _held(checkpoint: chunked.DistributedCheckpoint) -> dict[tuple[int, int], Buckets]:
    """The buckets of each data parallel group and virtual stage."""
    found: dict[tuple[int, int], Buckets] = {}
    for key, tensor in checkpoint.tensors.items():
        if match := _KEY.fullmatch(key):
            buckets = found.setdefault((int(match["group"]), int(match["chunk"])), {})
            of_bucket = buckets.setdefault(int(match["bucket"]), {})
            if match["state"] in of_bucket:
                raise _unknown(checkpoint, "a stage has buffers of several dtypes")
            of_bucket[match["state"]] = tensor
    return found


def _of_stage(
    natives: Sequence[layouts.Native], layers: range, first: bool, last: bool, stages: int
) -> Iterator[layouts.Native]:
    for native in natives:
        if (layer := layer_of(native.name)) is not None:
            if layer in layers:
                yield native
        elif first if native.name.startswith("embedding.") else last and not (native.row.copy and stages == 1):
            yield native


def _enter(
    shares: Mapping[reading.Kind, RankShare],
    shapes: Mapping[str, tuple[int, ...]],
    buckets: Buckets,
    what: str,
    folder: str,
) -> None:
    for key in ("param", *reading.MOMENTS):
        flat = [of_bucket.get(key) for _, of_bucket in sorted(buckets.items())]
        lengths = [tensor.shape[0] for tensor in flat if tensor is not None and len(tensor.shape) == 1]
        if len(lengths) != len(flat):
            raise FormatError(f"{what} lacks {key}", file=folder, found=", ".join(map(str, buckets)) or "no bucket")
        starts = fitted(shapes, lengths, folder, what)
        pieces = []
        for tensor in flat:
            assert tensor is not None
            check_precision(key, what, tensor, folder)
            pieces.append([lazy.Shard(origin, stored) for origin, stored in tensor.stored()])
        for name, (bucket, start) in starts.items():
            shape = shapes[name]
            shares[KINDS[key]].add(name, lazy.ranges_as_shards(shape, _ranges(pieces[bucket], start, shape)), name)


def _ranges(pieces: Sequence[lazy.Shard], start: int, shape: tuple[int, ...]) -> Iterator[tuple[int, Any]]:
    """The elements of a parameter in the pieces of a flat tensor, each range with its place from the first of them."""
    count = 1
    for size in shape:
        count *= size
    for piece in pieces:
        part = lazy.within_box(piece, (start,), (count,))
        if part is not None:
            yield part.origin[0], part.stored


def _unknown(checkpoint: chunked.DistributedCheckpoint, why: str) -> errors.NotCarried:
    return errors.NotCarried(
        f"the moments lie in flat buffers of one parallel layout (dp_reshardable, dp_zero_gather_scatter), and {why}",
        file=checkpoint.folder,
        fix="save with --dist-ckpt-optim-fully-reshardable, or convert the weights alone with --training-state drop",
    )
