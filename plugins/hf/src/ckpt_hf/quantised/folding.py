"""Codes and scales, folded into the weights that they make: what is read of a quantised folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_core.sdk import FormatError, StoredTensor, dtypes, errors, ledgers
from ckpt_hf.quantised.methods import KEY, Method, Said, method_of
from ckpt_hf.quantised.spelling import FP8, WEIGHT

SECTION = "text_config"


@dataclass(frozen=True)
class Folded:
    """The tensors of a model without what only belongs to others: a quantised weight is there under its own name.

    `losses` say what was dequantised, and what was left; `evidence` says by what.
    """

    tensors: dict[str, StoredTensor]
    losses: tuple[ledgers.Loss, ...] = ()
    evidence: tuple[str, ...] = ()


def said_in(config: dict[str, Any], file: str) -> tuple[dict[str, Any], Said | None]:
    """The config of a model without what it says of its quantisation, and that."""
    places = [("", config)]
    if isinstance(config.get(SECTION), dict):
        places.append((f"{SECTION}.", config[SECTION]))
    found = {f"{place}{KEY}": held[KEY] for place, held in places if held.get(KEY) is not None}
    if not found:
        return config, None
    key, settings = next(iter(found.items()))
    if not all(isinstance(one, dict) and one == settings for one in found.values()):
        raise FormatError(f"{' and '.join(found)} is not one object", file=file, found=repr(settings)[:80])
    plain = {name: value for name, value in config.items() if name != KEY}
    if isinstance(plain.get(SECTION), dict):
        plain[SECTION] = {name: value for name, value in plain[SECTION].items() if name != KEY}
    return plain, Said(settings, file, key, _dtype_said(config))


def _dtype_said(config: Mapping[str, Any]) -> dtypes.DType:
    """The dtype of the weights that the tools make: that of the model by its config, bf16 where it says none."""
    for place in (config, config.get(SECTION)):
        for key in ("dtype", "torch_dtype"):
            name = place.get(key) if isinstance(place, dict) else None
            if isinstance(name, str) and name in ("bfloat16", "float16", "float32"):
                return dtypes.BY_TORCH[name]
    return dtypes.BF16


def folded(tensors: Mapping[str, StoredTensor], said: Said | None, ledger: ledgers.Ledger, folder: str) -> Folded:
    """The weights of a folder whose config says how it is quantised. Raises every problem at once: codes without scales, scales without
    codes, shapes that contradict each other or the config."""
    if said is None:
        _check_plain(tensors, folder)
        return Folded(dict(tensors))
    method = method_of(said)
    ledger.used("how the weights are quantised", said.file, said.key)
    ledger.config(said.file, method.fates, said.key)
    problems = errors.Problems(f"reading {folder}")
    made: dict[str, StoredTensor] = {}
    taken: set[str] = set()
    for name, tensor in tensors.items():
        spelling = next((one for one in method.spellings if one.fits(name, tensor)), None)
        if spelling is None:
            continue
        try:
            parts = spelling.parts(name, tensors)
            taken |= {name, *(one.name for one in parts.beside.values())}
            if parts.name in made or (parts.name in tensors and parts.name != name):
                problems.add(FormatError(f"weight {parts.name!r} is there twice", file=tensor.file, found=name))
            made[parts.name] = spelling.made(parts)
        except FormatError as problem:
            problems.add(problem)
            taken.add(name)
    left: Counter[str] = Counter()
    plain = {}
    for name, tensor in tensors.items():
        if name in taken:
            continue
        if ending := next((one for one in method.beside if name.endswith(one)), None):
            left[ending] += 1
            continue
        for error in _of_no_weight(name, tensor, method):
            problems.add(error)
        plain[name] = tensor
    problems.raise_any()
    return Folded(plain | made, tuple(_losses(method, len(made), left)), (f"quantised: {method.what}, by {said.key}",))


def _losses(method: Method, count: int, left: Mapping[str, int]) -> Iterator[ledgers.Loss]:
    if count:
        yield ledgers.Loss(
            "dropped",
            f"quantisation of {count} tensors",
            f"{method.what}: their values are written, and not their codes",
        )
    for ending, number in left.items():
        yield ledgers.Loss("dropped", f"*{ending}: {number} tensors", method.beside[ending])


def _of_no_weight(name: str, tensor: StoredTensor, method: Method) -> Iterator[FormatError]:
    """That a tensor is a part of a quantised weight whose other parts are not there."""
    endings = {
        ending for one in method.spellings for role in one.beside.values() for ending in role if ending != WEIGHT
    }
    if tensor.dtype.name in FP8:
        yield FormatError(
            f"tensor {name!r} has codes, and is no weight of {method.what}", file=tensor.file, found=str(tensor.dtype)
        )
    elif any(name.endswith(ending) for ending in endings):
        yield FormatError(
            f"tensor {name!r} is a scale of no weight", file=tensor.file, expected="the codes that it scales"
        )


def _check_plain(tensors: Mapping[str, StoredTensor], folder: str) -> None:
    """A folder without a config of its quantisation has no codes."""
    found = [name for name, tensor in tensors.items() if tensor.dtype.name in FP8]
    if found:
        raise FormatError(
            "weights are stored in FP8, and no config says by which scheme",
            file=tensors[found[0]].file,
            found=f"{len(found)} tensors, {found[0]!r} among them",
            expected=f"{KEY} in config.json, or hf_quant_config.json beside it, in {os.path.basename(folder) or folder}",
            fix="get the config that was published with these weights: the numbers alone are not the weights",
        )
