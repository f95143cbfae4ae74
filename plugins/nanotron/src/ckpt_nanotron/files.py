"""The files of a nanotron checkpoint: one safetensors file per parameter and rank.

    RUN/latest.txt                       the newest STEP
    RUN/STEP/config.yaml  model_config.json  checkpoint_metadata.json
    RUN/STEP/model/model/decoder/0/pp_block/attn/qkv_proj/model_weight_pp-rank-0-of-2_tp-rank-0-of-2.safetensors
    RUN/STEP/model/model/decoder/0/pp_block/input_layernorm/model_weight.safetensors          not sharded: once
    RUN/STEP/optimizer/optimizer_pp-0-of-2_tp-0-of-2_exp-0-of-1.pt

A sharded file says itself where its parts belong: `local_global_slices_pairs` holds `full[GLOBAL] = data[LOCAL]`
for every contiguous chunk. Reading follows these, and never the names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace

from ckpt_core.sdk import (
    CkptError,
    FormatError,
    StoredTensor,
    containers,
    disk,
    errors,
    layouts,
    lazy,
    schema,
    torch_files,
)
from ckpt_nanotron.places import is_step

CONFIG = "model_config.json"
TRAINING_CONFIG = "config.yaml"
METADATA = "checkpoint_metadata.json"
LATEST = "latest.txt"

# Code of March and April 2024 (tag v0.5) wrote `model_model_weight.safetensors_pp-rank-...`; both forms are read.
_FILE = re.compile(
    r"model_(?:model_)?(?P<leaf>.+?)(?:\.safetensors)?"
    r"(?:_pp-rank-(?P<pp>\d+)-of-(?P<pps>\d+)_tp-rank-(?P<tp>\d+)-of-(?P<tps>\d+)(?:_exp-rank-(?P<ep>\d+)-of-(?P<eps>\d+))?)?\.safetensors"
)
_OPTIMIZER = re.compile(
    r"optimizer_pp-(\d+)-of-(\d+)(?:_dp-(\d+)-of-(\d+))?_tp-(\d+)-of-(\d+)(?:_exp-(\d+)-of-(\d+))?\.pt"
)
# A file has a slice for each part of a fused matrix: two for gate and up, three for q, k and v.
_MOST_SLICES = 10_000
_NUMBER = r"(?:\d{1,15}|np\.int64\(\d{1,15}\))"


@schema.dataclass
class StoredParameter:
    """One parameter as it lies on disk: the whole shape, and the shards that hold it by (tp, pp) rank."""

    shape: tuple[int, ...]
    shards: list[lazy.Shard] = field(default_factory=list)
    ranks: list[tuple[int, int]] = field(default_factory=list)
    sharded: bool = False


@schema.dataclass
class Files:
    """Everything found below STEP/model: parameters by name, file states, the layout and the checkpoint version."""

    parameters: dict[str, StoredParameter]
    states: list[disk.FileState]
    tp: int
    pp: int
    version: str


def find_step(path: str) -> str:
    """The STEP folder at `path`: itself, or the one that latest.txt names."""
    if is_step(path):
        return path
    latest = os.path.join(path, LATEST)
    if os.path.isfile(latest):
        step = disk.read_small(latest, 64).decode("ascii", "replace").strip()
        if not step.isdigit():
            raise FormatError("latest.txt does not hold a step number", file=latest, found=repr(step))
        return os.path.join(path, step)
    steps = sorted((name for name in os.listdir(path) if name.isdigit()), key=int)
    if len(steps) != 1:
        raise FormatError(
            "no latest.txt says which step to read",
            file=path,
            found=", ".join(steps) or "no step folders",
            fix="give the step folder",
        )
    return os.path.join(path, steps[0])


def read_files(step: str) -> Files:
    """All parameters below STEP/model, from headers alone; every disagreement between shards is reported."""
    root = os.path.join(step, "model")
    problems = errors.Problems(f"reading {root}")
    found: dict[str, list[tuple[str, re.Match[str]]]] = {}
    for name, path, match in _walk(root, problems):
        found.setdefault(name, []).append((path, match))
    parameters, states, sizes, versions = {}, [], set(), set()
    for name, files in found.items():
        try:
            stored, version = _read_parameter(name, files)
        except CkptError as problem:
            problems.add(problem)
            continue
        parameters[name] = stored
        states += [disk.FileState.of(path) for path, _ in files]
        if stored.sharded:
            sizes.add((int(files[0][1]["tps"]), int(files[0][1]["pps"])))
            versions.add(version)
    if len(sizes) > 1:
        sizes_found = ", ".join(f"tp={tp} pp={pp}" for tp, pp in sorted(sizes))
        problems.add(
            FormatError(
                "files of several parallel layouts lie in one folder",
                file=root,
                found=sizes_found,
                fix="remove the stale files",
            )
        )
    if not found:
        problems.add(FormatError("there are no parameters here", file=root))
    problems.raise_any()
    tp, pp = sizes.pop() if sizes else (1, 1)
    return Files(parameters, states, tp, pp, versions.pop() if versions else "?")


def _walk(root: str, problems: errors.Problems) -> Iterator[tuple[str, str, re.Match[str]]]:
    """(parameter name, path, parsed file name) of every file below a folder; links that leave it are not followed."""
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        prefix = os.path.relpath(folder, root).replace(os.sep, ".")
        for name in sorted(names):
            match = _FILE.fullmatch(name)
            path = os.path.join(folder, name)
            if match is None:
                problems.add(
                    FormatError(
                        "a file that no nanotron release writes", file=path, expected="model_PARAMETER....safetensors"
                    )
                )
            elif match["eps"] not in (None, "1"):
                problems.add(
                    FormatError(
                        "experts sharded over expert parallel ranks are not supported",
                        file=path,
                        found=f"ep={match['eps']}",
                    )
                )
            else:
                yield f"{prefix}.{match['leaf']}", path, match


def _read_parameter(name: str, files: Sequence[tuple[str, re.Match[str]]]) -> tuple[StoredParameter, str]:
    headers = [(path, match, containers.read_header(path)) for path, match in files]
    for path, _, header in headers:
        # 0.4's Mamba code adds a scalar mark beside the data
        if set(header.tensors) - {"_no_weight_decay"} != {"data"}:
            raise FormatError(
                "a nanotron file holds one tensor called data", file=path, found=", ".join(sorted(header.tensors))
            )
    path, match, header = headers[0]
    whole = [p for p, m, _ in headers if m["tp"] is None]
    if whole:
        if len(headers) > 1:
            raise FormatError(f"{name} is stored whole and in shards", file=whole[0], fix="remove the stale files")
        data = header.tensors["data"]
        return StoredParameter(data.shape, [lazy.Shard((0,) * len(data.shape), data)], [(0, 0)]), ""
    numbers = {(int(m["tps"]), int(m["pps"]), int(m["pp"])) for _, m, _ in headers}
    if len(numbers) > 1 or {int(m["tp"]) for _, m, _ in headers} != set(range(int(match["tps"]))):
        raise FormatError(
            f"the shards of {name} are not one per tensor parallel rank",
            file=os.path.dirname(path),
            found=", ".join(os.path.basename(p) for p, _, _ in headers),
            expected=f"tp ranks 0 to {int(match['tps']) - 1} of one layout",
        )
    shapes = {parse_shape(h.metadata.get("unsharded_shape", ""), p) for p, _, h in headers}
    versions = {h.metadata.get("version", "") for _, _, h in headers}
    if len(shapes) > 1:
        raise FormatError(
            f"the shards of {name} disagree about its shape", file=os.path.dirname(path), found=str(sorted(shapes))
        )
    stored = StoredParameter(shapes.pop(), sharded=True)
    for shard_path, shard_match, shard_header in headers:
        pairs = shard_header.metadata.get("local_global_slices_pairs", "")
        data = shard_header.tensors["data"]
        for shard in parse_slices(pairs, data, stored.shape, shard_path):
            stored.shards.append(shard)
            stored.ranks.append((int(shard_match["tp"]), int(shard_match["pp"])))
    return stored, versions.pop()


def parse_shape(text: str, path: str) -> tuple[int, ...]:
    """`(56, 40)`, or with numpy 2 installed `(np.int64(56), 40)`.

    >>> parse_shape("(np.int64(56), 40)", "")
    (56, 40)
    """
    match = re.fullmatch(rf"\((?:{_NUMBER},\s*)*{_NUMBER},?\)", text.strip())
    if match is None:
        raise FormatError("unsharded_shape is not a shape", file=path, found=repr(text)[:80])
    return tuple(int(number) for number in re.findall(r"\d+(?=[\s,)])", text))


def parse_slices(text: str, data: StoredTensor, shape: tuple[int, ...], path: str) -> list[lazy.Shard]:
    """The parts of a stored shard and where they begin in the whole, from `local_global_slices_pairs`."""
    shards = []
    if not text:
        raise FormatError(
            "a shard without local_global_slices_pairs",
            file=path,
            expected="where its parts lie in the whole parameter",
        )
    if (count := text.count(";") + 1) > _MOST_SLICES:
        raise FormatError(
            "local_global_slices_pairs has too many slices", file=path, found=count, expected=f"at most {_MOST_SLICES}"
        )
    for pair in text.split(";"):
        local_text, mark, global_text = pair.partition("#")
        local = [_slice(part, path) for part in local_text.split("|")]
        whole = [_slice(part, path) for part in global_text.split("|")]
        if not mark or len(local) != len(data.shape) or len(whole) != len(shape) or len(local) != len(whole):
            raise FormatError("local_global_slices_pairs does not fit the tensor", file=path, found=repr(text)[:120])
        here = [_range(part, size, path) for part, size in zip(local, data.shape, strict=True)]
        there = [_range(part, size, path) for part, size in zip(whole, shape, strict=True)]
        if [stop - start for start, stop in here] != [stop - start for start, stop in there]:
            raise FormatError("a local and a global slice differ in size", file=path, found=pair)
        start = sum(low * stride for (low, _), stride in zip(here, data.strides, strict=True))
        part = StoredTensor(
            data.file,
            data.dtype,
            tuple(stop - low for low, stop in here),
            data.offset + start * data.dtype.size,
            data.strides,
        )
        shards.append(lazy.Shard(tuple(low for low, _ in there), part))
    if sum(shard.stored.elements for shard in shards) != data.elements:
        raise FormatError(
            "local_global_slices_pairs leaves out a part of the tensor", file=path, found=repr(text)[:120]
        )
    return shards


def _slice(text: str, path: str) -> tuple[int | None, int | None]:
    parts = text.split(",")
    if (
        len(parts) != 3
        or parts[2] not in ("None", "1")
        or any(not re.fullmatch(r"None|\d{1,15}", part) for part in parts[:2])
    ):
        raise FormatError("a slice is not start,stop,step", file=path, found=repr(text)[:60])
    start, stop = (None if part == "None" else int(part) for part in parts[:2])
    return start, stop


def _range(part: tuple[int | None, int | None], size: int, path: str) -> tuple[int, int]:
    start = 0 if part[0] is None else part[0]
    stop = size if part[1] is None else part[1]
    if not 0 <= start <= stop <= size:
        raise FormatError("a slice leaves its tensor", file=path, found=f"{start}..{stop} of {size}")
    return start, stop


def optimizer_files(step: str) -> dict[tuple[int, int], str]:
    """Optimizer files by (tp, pp) rank that may hold fp32 masters; none for ZeRO-1, which shards over dp."""
    folder = os.path.join(step, "optimizer")
    found = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        match = _OPTIMIZER.fullmatch(name)
        if match and match[3] is None and match[7] in (None, "0"):
            found[int(match[5]), int(match[1])] = os.path.join(folder, name)
    return found


def rank_optimizers(step: str) -> dict[tuple[int, int], dict[int, str]]:
    """The optimizer files by (tp, pp) rank, each by data parallel rank: one of rank 0 without ZeRO, which divides them."""
    folder = os.path.join(step, "optimizer")
    found: dict[tuple[int, int], dict[int, str]] = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        match = _OPTIMIZER.fullmatch(name)
        if match and match[7] in (None, "0"):
            ranks = found.setdefault((int(match[5]), int(match[1])), {})
            ranks[int(match[3] or 0)] = os.path.join(folder, name)
    return found


def masters(step: str, files: Files) -> tuple[dict[str, StoredParameter], list[disk.FileState]]:
    """The fp32 masters (`gradient_accumulator`) in place of the weights, sliced like the model's own shards."""
    by_rank: dict[tuple[int, int], Mapping[str, StoredTensor]] = {}
    states = []
    for rank, path in optimizer_files(step).items():
        state = torch_files.read_torch_file(path)
        held = state.get("gradient_accumulator") if isinstance(state, dict) else None
        if not isinstance(held, dict):
            raise errors.NotCarried(
                "the optimizer holds no fp32 masters (gradient_accumulator)", file=path, fix="use --weights model"
            )
        by_rank[rank] = held
        states.append(disk.FileState.of(path))
    if not by_rank:
        raise errors.NotCarried(
            "there are no fp32 masters", file=os.path.join(step, "optimizer"), fix="use --weights model"
        )
    found: dict[str, StoredParameter] = {}
    problems = errors.Problems("reading fp32 masters")
    for name, stored in files.parameters.items():
        try:
            found[name] = _master_of(name, stored, by_rank, step)
        except CkptError as problem:
            problems.add(problem)
    problems.raise_any()
    return found, states


def _master_of(
    name: str, stored: StoredParameter, by_rank: Mapping[tuple[int, int], Mapping[str, StoredTensor]], step: str
) -> StoredParameter:
    if not stored.sharded:
        holders = [held[name] for _, held in sorted(by_rank.items()) if name in held]
        if not holders:
            raise FormatError(f"no optimizer file holds the master of {name}", file=step)
        return StoredParameter(stored.shape, [lazy.Shard((0,) * len(stored.shape), holders[0])], [(0, 0)])
    shards = []
    for shard, rank in zip(stored.shards, stored.ranks, strict=True):
        master = by_rank.get(rank, {}).get(name)
        if master is None:
            raise FormatError(f"no optimizer file holds the master of {name} for tp={rank[0]} pp={rank[1]}", file=step)
        # The master has the shape of the rank's whole shard; the part begins where the weight's part does.
        weight = next(s for s, r in zip(stored.shards, stored.ranks, strict=True) if r == rank)
        start = (shard.stored.offset - weight.stored.offset) // shard.stored.dtype.size
        offset = master.offset + start * master.dtype.size
        part = replace(master, shape=shard.stored.shape, offset=offset, strides=shard.stored.strides)
        if master.strides != shard.stored.strides:
            raise FormatError(
                f"the master of {name} has another shape than its weight", file=master.file, found=master.shape
            )
        shards.append(lazy.Shard(shard.origin, part))
    return StoredParameter(stored.shape, shards, stored.ranks, sharded=True)


def file_name(native: layouts.Native, tp: tuple[int, int], pp: tuple[int, int], sharded: bool) -> str:
    """The path below STEP of a parameter's file on one rank."""
    *folders, leaf = native.name.split(".")
    suffix = f"_pp-rank-{pp[0]}-of-{pp[1]}_tp-rank-{tp[0]}-of-{tp[1]}" if sharded else ""
    return "/".join(["model", *folders, f"model_{leaf}{suffix}.safetensors"])


def slices_metadata(local: layouts.Native, whole: layouts.Native, rank: int, version: str) -> dict[str, str]:
    """The metadata of one shard: where its contiguous chunks lie in the whole parameter.

    A dimension whose sentence is a sum is chunked, one chunk per term; others are one range.
    """
    dim = split_dim(whole)
    chunks = _chunks(whole, dim)
    pairs = []
    if chunks is None:
        size = local.shape[dim]
        everything = "|".join(["None,None,None"] * len(local.shape))
        pairs.append(f"{everything}#{_along(dim, rank * size, (rank + 1) * size, len(local.shape))}")
    else:
        ranks = whole.shape[dim] // local.shape[dim]
        here = 0
        for start, size in chunks:
            part = size // ranks
            there = start + rank * part
            local_part = _along(dim, here, here + part, len(local.shape))
            pairs.append(f"{local_part}#{_along(dim, there, there + part, len(local.shape))}")
            here += part
    return {
        "version": version,
        "unsharded_shape": str(tuple(whole.shape)),
        "local_global_slices_pairs": ";".join(pairs),
    }


def _along(dim: int, start: int, stop: int, dims: int) -> str:
    return "|".join(f"{start},{stop},None" if n == dim else "None,None,None" for n in range(dims))


def split_dim(native: layouts.Native) -> int:
    """The native dimension that tensor parallel ranks divide: the one that holds the split axis."""
    axes = set(dict(native.row.splits)["tp"].split())
    for dim, names in enumerate(layouts.parse(native.row.sentence).names_by_dim()):
        if axes & names:
            return dim
    raise CkptError(f"no dimension of {native.name} holds its split axis", found=native.row.sentence)


def _chunks(native: layouts.Native, dim: int) -> list[tuple[int, int]] | None:
    """(start, size) of each term along a dimension whose parts lie one after the other; None if it is not a sum.

    A sum inside of the axis that ranks divide is none: each rank's groups of q, k and v are one range.
    """
    node = layouts.parse(native.row.sentence).dims[dim]
    outermost = node.factors[0] if isinstance(node, layouts.Product) else node
    if not isinstance(outermost, layouts.Sum):
        return None
    extents: dict[str, list[int]] = {}
    for piece in native.pieces:
        low = piece.tile.native_base[dim]
        high = low + 1 + sum((link.size - 1) * link.stride for link in piece.tile.links if link.dim == dim)
        span = extents.setdefault(piece.parameter, [low, high])
        span[0], span[1] = min(span[0], low), max(span[1], high)
    return sorted((low, high - low) for low, high in extents.values())
