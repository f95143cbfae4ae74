"""Nanotron's files read the way nanotron reads them, independently of the code under test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import torch
from safetensors import safe_open


def step_of(run: Path) -> Path:
    """The step folder that latest.txt names."""
    return run / (run / "latest.txt").read_text()


def usual_name(path: str) -> str:
    """The file name that all releases but 0.5 give a parameter: that one doubled `model_` and `.safetensors`."""
    return re.sub(r"model_model_(\w+?)\.safetensors_pp", r"model_\1_pp", path)


def parameter_files(run: Path) -> dict[str, Path]:
    """Every parameter file below STEP/model under its usual name."""
    model = step_of(run) / "model"
    return {usual_name(str(path.relative_to(model))): path for path in sorted(model.rglob("*.safetensors"))}


def data_of(path: Path) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor("data")


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """The tensor of every file."""
    return {name: data_of(path) for name, path in parameter_files(run).items()}


def shape_in(metadata: dict[str, str]) -> tuple[int, ...]:
    """`unsharded_shape`, with or without NumPy's spelling of an integer."""
    return ast.literal_eval(re.sub(r"np\.int64\((\d+)\)", r"\1", metadata["unsharded_shape"]))


def _slices(text: str) -> tuple[slice, ...]:
    return tuple(slice(*ast.literal_eval(part)) for part in text.split("|"))


def parameter_of(name: str) -> str:
    """The parameter's full name, from the path of its file below model/."""
    *folders, file = name.split("/")
    return ".".join([*folders, re.match(r"model_(.+?)(?:_pp-rank|\.safetensors)", file)[1]])


def merged(run: Path, shards: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Every parameter whole: full[GLOBAL] = data[LOCAL] for every pair, as nanotron's loader does.

    `shards` gives other values for the files (the optimizer's masters, sliced alike).
    """
    found: dict[str, torch.Tensor] = {}
    for name, path in parameter_files(run).items():
        data = (shards or {}).get(name, None)
        data = data_of(path) if data is None else data
        metadata, parameter = metadata_of(path), parameter_of(name)
        if "unsharded_shape" not in metadata:
            found[parameter] = data
            continue
        whole = found.setdefault(parameter, torch.full(shape_in(metadata), torch.nan, dtype=data.dtype))
        for pair in metadata["local_global_slices_pairs"].split(";"):
            local, there = pair.split("#")
            whole[_slices(there)] = data[_slices(local)]
    return found


def masters(run: Path) -> dict[str, torch.Tensor]:
    """Every parameter whole, from the fp32 copies in the optimizer's files, read with torch."""
    held: dict[tuple[str, int, int], torch.Tensor] = {}
    anywhere: dict[str, torch.Tensor] = {}
    for path in sorted((step_of(run) / "optimizer").glob("*.pt")):
        pp, tp = map(int, re.match(r"optimizer_pp-(\d+)-of-\d+_tp-(\d+)-of-\d+", path.name).groups())
        for parameter, master in torch.load(path, weights_only=True)["gradient_accumulator"].items():
            held[parameter, pp, tp] = master
            anywhere.setdefault(parameter, master)
    shards = {}
    for name in parameter_files(run):
        parameter, rank = parameter_of(name), re.search(r"pp-rank-(\d+)-of-\d+_tp-rank-(\d+)", name)
        shards[name] = held[parameter, int(rank[1]), int(rank[2])] if rank else anywhere[parameter]
    return merged(run, shards)
