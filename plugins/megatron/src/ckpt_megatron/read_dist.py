"""Reading torch_dist: one tensor for all layers, and for all experts, in chunks.

    decoder.layers.self_attention.linear_qkv.weight           [layers, (heads + 2 groups) * head_dim, hidden]
    decoder.layers.mlp.experts.experts.linear_fc1.weight      [layers, experts, 2 * ffn, hidden]
    decoder.layers.3.mlp.linear_fc1.weight                    [2 * ffn, hidden] where layers differ (moe_layer_freq)

Every chunk is cut into its layers and experts, which are then the tensors that the tables know. No rank has its
own arrangement here: a gated linear_fc1 is [gate; up] of all ranks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import FormatError, chunked, disk, documents, errors, lazy, ledgers, reading, torch_files
from ckpt_megatron.contents import DIST, LIGHTNING, STATE, enter_names, enter_state
from ckpt_megatron.files import COMMON, DIST_METADATA, FSDP_DTENSOR
from ckpt_megatron.flattened import FlattenedTensor, unflattened
from ckpt_megatron.found import DescribedModel, FolderContents, Gathered, RankShare, stored_args
from ckpt_megatron.masters import DIST_BUFFER, DIST_MASTER
from ckpt_megatron.megatron_fsdp import VALUES
from ckpt_megatron.names import DIST_EXPERTS, layer_of, plain, unwrapped
from ckpt_megatron.optimizer.dp_reshardable import bucket_shares, in_buckets
from ckpt_megatron.optimizer.found import FoundOptimizer
from ckpt_megatron.optimizer.groups import members_of
from ckpt_megatron.optimizer.model_space import as_weights, dist_groups, dist_tensors
from ckpt_megatron.optimizer.progress import saved_training

# of a model, and of the tower of a model that sees
_STACKED = re.compile(r"^((?:vision_model\.)?decoder\.layers\.)(?!\d)")
_COMMON_STATE = "common_state/shard_0_1"  # since core 0.19, instead of common.pt
_Stored = chunked.ChunkedTensor | FlattenedTensor
# singleton_local_shards and Megatron-FSDP store the two halves of linear_fc1 by themselves; grouped experts are numbered
_HALF = re.compile(r"(?P<name>.*linear_fc1\.(?P<kind>weight|bias)\d*)_(?P<half>[wv])")
_GATE_UP = {"w": 0, "v": 1}


def read_dist(
    folder: str,
    weights: str,
    read: Callable[[str], chunked.DistributedCheckpoint] = chunked.read_distributed,
    ledger: ledgers.Ledger | None = None,
    container: str = "torch_dist",
) -> FolderContents:
    """A torch_dist folder, or one of another `container` with the same modules, from headers alone. `weights` is auto, model or master.

    `read`: how the tensors are kept, under the same keys. `ledger` is what became of files and keys so far.
    """
    checkpoint = read(folder)
    common, common_file = _common(folder, checkpoint)
    args = stored_args(common.get("args"), common_file)
    share = RankShare({}, False)
    extra = [
        path for path in (os.path.join(folder, DIST_METADATA), os.path.join(folder, COMMON)) if os.path.isfile(path)
    ]
    found = FolderContents(
        folder,
        container,
        args,
        common_file,
        [share],
        [*checkpoint.files, *extra],
        _parallel(args),
        iteration=common.get("iteration"),
        ledger=ledger or ledgers.Ledger(),
    )
    model = {unwrapped(name): tensor for name, tensor in checkpoint.tensors.items() if not _belongs_to_optimizer(name)}
    masters = {
        unwrapped(match[1]): tensor
        for name, tensor in checkpoint.tensors.items()
        if (match := DIST_MASTER.fullmatch(name))
    }
    # Megatron-FSDP keeps the main weights as the model itself
    own = container == FSDP_DTENSOR and all(tensor.dtype.name == "fp32" for tensor in model.values())
    found.masters = bool(masters) or own
    if weights == "master" and not found.masters:
        _refuse_masters(checkpoint)
    held: Mapping[str, _Stored] = _with_masters(model, masters, folder) if weights == "master" and masters else model
    problems = errors.Problems(f"reading {folder}")
    stacks: dict[str, int] = {}
    for stored_as, tensor in held.items():
        try:
            for name, shards in split(stored_as, tensor, stacks):
                if name in share.tensors:
                    share.tensors[name][0] += shards
                else:
                    share.add(name, shards, stored_as)
        except FormatError as problem:
            problems.add(problem)
    sizes = set(stacks.values())
    if len(sizes) > 1:
        problems.add(
            FormatError(
                "tensors of all layers disagree on how many there are",
                file=folder,
                found=", ".join(f"{n}: {s}" for n, s in stacks.items()),
            )
        )
    problems.raise_any()
    numbers = [index for name in share.tensors if (index := layer_of(name)) is not None]
    found.layers = max(numbers, default=-1) + 1
    model_names = {name for name in checkpoint.tensors if not _belongs_to_optimizer(name)}
    enter_names(found.ledger, checkpoint, model_names | (common.keys() if container == FSDP_DTENSOR else set()))
    if os.path.isfile(metadata := os.path.join(folder, DIST_METADATA)):
        found.ledger.used("how tensors are kept", metadata)
        found.ledger.contents(metadata, documents.read_json_object(metadata), DIST)
    enter_state(found.ledger, common_file, common, LIGHTNING if "pytorch-lightning_version" in common else STATE)
    found.fused_names = (args or {}).get("transformer_impl", "transformer_engine") != "local"
    if container == "torch_dist":
        found.training = lambda gathered, model_as_read: _training(
            checkpoint, model, (common, common_file), found, gathered, model_as_read
        )
    return found


def _training(
    checkpoint: chunked.DistributedCheckpoint,
    model: Mapping[str, chunked.ChunkedTensor],
    said: tuple[Mapping[str, Any], str],
    found: FolderContents,
    gathered: Gathered,
    described: DescribedModel,
) -> reading.SavedTraining | None:
    """The state of the training: a moment has the key of its weight, and is cut into layers and experts as that is; or it lies in buckets."""
    common, common_file = said
    held = dist_tensors(checkpoint)
    if held:
        trained = held.get(reading.EXP_AVG, {}).keys()
        shares = {kind: [_share(kind, by_key, model, trained, checkpoint.folder)] for kind, by_key in held.items()}
        bodies, steps = dist_groups(common, common_file)
    elif in_buckets(checkpoint):
        shares, bodies, steps = bucket_shares(checkpoint, described)
    else:
        return None
    files = [disk.FileState.of(common_file)]
    members = members_of(bodies, shares[reading.EXP_AVG], common_file, described.args)
    stepped = {f"group {n}": body for n, (body, names) in enumerate(zip(bodies, members, strict=True)) if names}
    steps |= reading.adam.steps_of_groups(stepped, common_file)
    step = reading.adam.one_step(steps, common_file, files)
    optimizer = FoundOptimizer(shares, bodies, members, step, found.folder, files)
    (metadata,) = checkpoint.described_in
    keys = [key for key in (*checkpoint.tensors, *checkpoint.objects) if _belongs_to_optimizer(key)]
    of_run = [key for key in ("optimizer", "opt_param_scheduler", "iteration") if key in common]
    optimizer.carried += [(metadata, tuple(keys)), (common_file, tuple(of_run))]
    made = {kind: gathered(of_kind) for kind, of_kind in shares.items()}
    return saved_training(optimizer, common, described.args, made)


def _share(
    kind: reading.Kind,
    by_key: Mapping[str, chunked.ChunkedTensor],
    model: Mapping[str, chunked.ChunkedTensor],
    trained: Collection[str],
    folder: str,
) -> RankShare:
    """The tensors of a kind, cut into layers and experts as the weights with their keys are."""
    share = RankShare({}, False)
    for name, tensor in as_weights(by_key, kind, model, trained, folder):
        for part, shards in split(name, tensor, {}):
            if part in share.tensors:
                share.tensors[part][0] += shards
            else:
                share.add(part, shards, name)
    return share


def _belongs_to_optimizer(name: str) -> bool:
    return name.startswith("optimizer.") or re.match(r"chained_\d+\.optimizer\.", name) is not None


def _common(folder: str, checkpoint: chunked.DistributedCheckpoint) -> tuple[dict, str]:
    """The part without tensors. Where both forms exist, Megatron reads common.pt."""
    path = os.path.join(folder, COMMON)
    if os.path.isfile(path):
        value = torch_files.read_torch_file(path)
    elif _COMMON_STATE in checkpoint.objects:
        path = checkpoint.objects[_COMMON_STATE].file
        value = checkpoint.objects[_COMMON_STATE].read()
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
    elif any(key in checkpoint.objects for key in VALUES):  # of Megatron-FSDP; Bridge's has no args
        (path,) = checkpoint.described_in
        value = {key: checkpoint.objects[key].read() for key in VALUES if key in checkpoint.objects}
    else:
        return {}, folder
    if not isinstance(value, dict):
        raise FormatError("the common state is not a dict", file=path, found=torch_files.brief(value))
    return value, path


def _parallel(args: dict[str, object] | None) -> dict[str, int]:
    keys = {
        "tp": "tensor_model_parallel_size",
        "pp": "pipeline_model_parallel_size",
        "ep": "expert_model_parallel_size",
        "vpp": "virtual_pipeline_model_parallel_size",
    }
    return {name: size for name, key in keys.items() if isinstance(size := (args or {}).get(key), int)}


def _refuse_masters(checkpoint: chunked.DistributedCheckpoint) -> None:
    if any(DIST_BUFFER.match(name) for name in [*checkpoint.tensors, *checkpoint.objects]):
        raise errors.NotCarried(
            "the fp32 masters lie in flat buffers of one parallel layout (dp_reshardable, dp_zero_gather_scatter)",
            file=checkpoint.folder,
            fix="use --weights model, or save with --dist-ckpt-optim-fully-reshardable",
        )
    raise errors.NotCarried(
        "there are no fp32 masters (optimizer.state.param)", file=checkpoint.folder, fix="use --weights model"
    )


def _with_masters(
    model: Mapping[str, chunked.ChunkedTensor], masters: Mapping[str, chunked.ChunkedTensor], folder: str
) -> dict[str, _Stored]:
    problems = errors.Problems("reading fp32 masters")
    found: dict[str, _Stored] = {}
    for name, tensor in model.items():
        flat = masters.get(name)
        if flat is None and tensor.dtype.name in ("bf16", "fp16"):
            problems.add(FormatError(f"there is no fp32 master of {name}", file=folder, fix="use --weights model"))
        master = flat if flat is None or flat.shape == tensor.shape else unflattened(flat, tensor.shape)
        if flat is not None and master is None:
            problems.add(
                FormatError(
                    f"the fp32 master of {name} is flattened in a way that is not known",
                    file=folder,
                    found=flat.shape,
                    expected=f"{tensor.shape}, or the number of shards along each axis and the elements of one",
                    fix="use --weights model, or save with --dist-ckpt-optim-fully-reshardable",
                )
            )
        found[name] = master or tensor
    problems.raise_any()
    return found


def split(
    stored_as: str, tensor: chunked.ChunkedTensor | FlattenedTensor, stacks: dict[str, int]
) -> Iterator[tuple[str, list[lazy.Shard]]]:
    """The tensors of the tables that a stored one holds, and the shards of each."""
    shards = [lazy.Shard(origin, stored) for origin, stored in tensor.stored()]
    parts = [(stored_as, shards)]
    if stacked := _STACKED.match(stored_as):
        if stored_as.startswith("decoder."):
            stacks[stored_as] = tensor.shape[0] if tensor.shape else 0
        parts = [(_STACKED.sub(f"{stacked[1]}{layer}.", stored_as), inner) for layer, inner in _along_first(shards)]
    for name, inner in parts:
        if DIST_EXPERTS not in name:
            yield from _halves(name, inner, tensor)
        elif re.search(r"\.experts\.experts\.\d+\.", name):  # singleton_local_shards
            yield from _halves(name.replace(DIST_EXPERTS, ".mlp.experts.local_experts."), inner, tensor)
        else:
            for expert, shard in _along_first(inner):
                yield name.replace(DIST_EXPERTS, f".mlp.experts.local_experts.{expert}."), shard


def _halves(name: str, shards: list[lazy.Shard], tensor: _Stored) -> Iterator[tuple[str, list[lazy.Shard]]]:
    match = _HALF.fullmatch(name)
    if match is None:
        yield plain(name), shards
        return
    half, rows = _GATE_UP[match["half"]], tensor.shape[-1 if match["kind"] == "bias" else -2]
    yield (
        plain(match["name"]),
        [replace(shard, origin=(shard.origin[0] + half * rows, *shard.origin[1:])) for shard in shards],
    )


def _along_first(shards: Sequence[lazy.Shard]) -> Iterator[tuple[int, list[lazy.Shard]]]:
    """The shards of each index of the first dimension, which they lose."""
    by_index: dict[int, list[lazy.Shard]] = {}
    for shard in shards:
        stored = shard.stored
        if not stored.shape:
            raise FormatError("a tensor of all layers has no dimension", file=stored.file)
        for number in range(stored.shape[0]):
            offset = stored.offset + number * stored.strides[0] * stored.dtype.size
            inner = replace(stored, shape=stored.shape[1:], offset=offset, strides=stored.strides[1:])
            by_index.setdefault(shard.origin[0] + number, []).append(lazy.Shard(shard.origin[1:], inner))
    yield from sorted(by_index.items(), key=lambda item: item[0])
