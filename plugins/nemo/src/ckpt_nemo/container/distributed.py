"""Megatron-Core's distributed checkpoints: all ranks' tensors by name, each in chunks.

metadata.json       {"sharded_backend": "zarr" (before NeMo 2.0) or "torch_dist", ...}
common.pt           what is not a tensor of the model; {} in a .nemo
KEY/.zarray KEY/0.0 zarr: a folder per tensor
.metadata *.distcp  torch_dist
"""

from __future__ import annotations

import re

from ckpt_core.sdk import FormatError, chunked, disk, documents, reading, torch_files, trees
from ckpt_megatron.sdk import contents
from ckpt_nemo.container.places import COMMON, METADATA
from ckpt_nemo.container.saved import SavedCheckpoint, unwrapped

_MASTER = re.compile(r"(?:chained_\d+\.)?optimizer\.state\.(?:fp32_)?param\.(.+)")
_MOMENTS: dict[str, reading.Kind] = {kind: kind for kind in reading.MOMENTS}
_MOMENT = re.compile(rf"optimizer\.state\.({'|'.join(_MOMENTS)})\.(.+)")
_OPTIMIZER = re.compile(r"(?:chained_\d+\.)?optimizer\.")
_READERS = {"zarr": chunked.read_zarr, "torch_dist": chunked.read_distributed}


def distributed_weights(tree: trees.Tree, saved: SavedCheckpoint) -> None:
    """Enter the tensors of a distributed checkpoint into `saved`."""
    value = documents.parse_json(tree.read(METADATA, 1 << 20), tree.place(METADATA))
    if not isinstance(value, dict) or (backend := value.get("sharded_backend")) not in _READERS:
        raise FormatError(
            "weights of an unknown kind",
            file=tree.place(METADATA),
            found=torch_files.brief(value.get("sharded_backend") if isinstance(value, dict) else value),
            expected=" or ".join(_READERS),
        )
    checkpoint = _READERS[backend](tree)
    saved.backend = backend
    described = checkpoint.described_in[0] if len(checkpoint.described_in) == 1 else checkpoint.folder
    for stored_as, tensor in checkpoint.tensors.items():
        master = _MASTER.fullmatch(stored_as)
        if moment := _MOMENT.fullmatch(stored_as):
            saved.moments.setdefault(_MOMENTS[moment[1]], {})[unwrapped(moment[2])] = tensor
            saved.optimizer_keys.setdefault(described, []).append(stored_as)
        if master is None and _OPTIMIZER.match(stored_as):
            continue
        name, into = unwrapped(master[1] if master else stored_as), saved.masters if master else saved.tensors
        if name in into:
            raise FormatError(f"the tensor {name!r} is stored twice, under different prefixes", file=tree.path)
        into[name] = tensor
    weights = {name for name in checkpoint.tensors if not _OPTIMIZER.match(name)}
    contents.enter_names(saved.ledger, checkpoint, weights)
    for name in tree.files:
        if tree[name].file != tree.place(name):
            saved.ledger.used("weights", tree.place(name))
    saved.ledger.used("how tensors are kept", tree.place(METADATA))
    saved.ledger.contents(tree.place(METADATA), value, contents.DIST)
    if COMMON in tree and isinstance(common := torch_files.read_torch_member(tree, COMMON), dict):
        saved.ledger.contents(tree.place(COMMON), common, contents.LIGHTNING)
    extra = [tree[name].file for name in (METADATA, COMMON) if name in tree]
    saved.states += [disk.FileState.of(path) for path in sorted({*checkpoint.files, *extra})]
