"""Reading Megatron checkpoints by torch alone, to judge what ckpt read and wrote."""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch

from ckpt_tests.goldens import Golden
from ckpt_tests.inert import pickle_module

SAFE = {"torch", "collections", "_codecs", "numpy", "argparse", "signal", "pathlib"}
_inert = pickle_module(SAFE)


def load(path: Path) -> dict:
    """What `torch.save` wrote, with inert stand-ins for Megatron's classes."""
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_inert)


def iteration_of(root: Path) -> Path:
    """The folder that the tracker names."""
    word = (root / "latest_checkpointed_iteration.txt").read_text().strip()
    return root / (word if word == "release" else f"iter_{int(word):07d}")


def tensors(root: Path) -> dict[str, torch.Tensor]:
    """Every model tensor: by rank folder and name in torch files, by key in torch_dist."""
    folder = iteration_of(root)
    return dist_tensors(folder) if (folder / ".metadata").exists() else rank_tensors(folder)


def rank_tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name}.{key}")
        elif isinstance(value, torch.Tensor):
            found[name] = value

    for path in sorted(folder.glob("mp_rank_*/*.pt")):
        content = load(path)
        for key in content:
            if key.startswith("model"):
                walk(content[key], f"{path.parent.name}/{key}")
    return found


def dist_tensors(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of `.metadata` whose keys begin with `prefix` (without one, those of the model), chunk by chunk."""
    metadata = _inert.Unpickler((folder / ".metadata").open("rb")).load()
    blobs = {
        (index.fqn, tuple(index.offset) if index.offset is not None else None): info
        for index, info in metadata.storage_data.items()
    }
    found = {}
    for name, entry in metadata.state_dict_metadata.items():
        if not hasattr(entry, "chunks") or not (
            name.startswith(prefix) if prefix else not name.startswith("optimizer.")
        ):
            continue
        whole = torch.empty(entry.size, dtype=entry.properties.dtype)
        for chunk in entry.chunks:
            info = blobs[name, tuple(chunk.offsets)]
            data = (folder / info.relative_path).read_bytes()[info.offset : info.offset + info.length]
            box = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
            whole[box] = torch.load(io.BytesIO(data), weights_only=True)
        found[name.removeprefix(prefix)] = whole
    return found


def args_of(golden: Golden) -> dict:
    """The args that the case was made with, as ckpt reads them."""
    from ckpt_megatron.files import container_of
    from ckpt_megatron.read_dist import read_dist
    from ckpt_megatron.read_torch import read_torch

    folder = str(iteration_of(golden.checkpoint))
    return (read_dist if container_of(folder) == "torch_dist" else read_torch)(folder, "auto").args


def own_layout(golden: Golden) -> dict[str, object]:
    """The arguments of `convert` that ask for the layout of the case."""
    options = {"vpp": str(vpp)} if (vpp := args_of(golden).get("virtual_pipeline_model_parallel_size")) else {}
    return {"tp": golden.case["tp"], "pp": golden.case["pp"], "ep": golden.case["ep"], "options": options}


def layouts(golden: Golden) -> list[dict[str, object]]:
    """One rank, as many tensor ranks as there can be, and as many stages (virtual ones too), in different containers."""
    args = args_of(golden)
    heads, layers, experts = args["num_attention_heads"], args["num_layers"], args.get("num_experts")
    groups = args.get("num_query_groups") if args.get("group_query_attention") else heads
    widths = [
        args.get("ffn_hidden_size") or 4 * args["hidden_size"],
        args.get("moe_ffn_hidden_size"),
        args.get("moe_shared_expert_intermediate_size"),
    ]
    tp = math.gcd(heads, groups, *(width for width in widths if width))
    pp = max(n for n in range(1, layers + 1) if layers % n == 0 and (n < layers or layers < 4))
    virtual = {"vpp": "2"} if pp > 1 and layers % (2 * pp) == 0 else {}
    one, other = ({"experts": kind} if experts else {} for kind in ("sequential", "grouped"))
    return [
        {"options": {"container": "torch", "names": "local", **other}},
        {"tp": tp, "ep": 2 if experts else 1, "options": {"container": "torch", "names": "te", **one}},
        {"tp": 2, "pp": pp, "options": {"container": "torch", "names": "te", **other, **virtual}},
        {"options": {"container": "torch_dist", "names": "local"}},
    ]
