"""Codes and scales, folded into the weights that they make: what is read of a quantised folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ckpt_core.sdk import CkptError, FormatError, StoredTensor, disk, documents, dtypes, errors, lazy, ledgers, schema
from ckpt_hf.files import CONFIG, SECTION, SIDE_FILE
from ckpt_hf.quantised.said import FP8, KEY, WEIGHT, Said

if TYPE_CHECKING:
    from ckpt_hf.quantised.methods import Method
    from ckpt_hf.quantised.spelling import Quantity


@schema.dataclass(frozen=True)
class Folded:
    """The tensors of a model without what only belongs to others: a quantised weight is there under its own name.

    `losses` say what lies beside no weight, and is left; `evidence` says by what they were dequantised. `hint` is what a writer needs that keeps the codes.
    """

    tensors: dict[str, StoredTensor]
    losses: tuple[ledgers.Loss, ...] = ()
    evidence: tuple[str, ...] = ()
    hint: Mapping[str, Any] | None = None


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


def with_side_file(said: Said | None, folder: str, config: Mapping[str, Any], ledger: ledgers.Ledger) -> Said | None:
    """What config.json says of the quantisation, or else ModelOpt's file beside it. `FormatError` where both do, and not the same."""
    path = os.path.join(folder, SIDE_FILE)
    if not os.path.isfile(path):
        return said
    beside = documents.read_json_object(path)
    inner = beside.get("quantization")
    if not isinstance(inner, dict):
        raise FormatError("the file says nothing of how the weights are quantised", file=path, expected="quantization")
    ledger.used("how the weights are quantised", path)
    if said is None:
        return Said({"quant_method": "modelopt", **inner}, path, "quantization", _dtype_said(config))
    for key in ("quant_algo", "quantized_layers"):
        if said.settings.get(key) != inner.get(key):
            raise FormatError(
                f"{os.path.basename(said.file)} and {SIDE_FILE} disagree on {key}",
                file=path,
                found=repr(inner.get(key))[:80],
                expected=f"{said.settings.get(key)!r:.80}, as {said.key} says",
                fix="remove the one that is not of these weights",
            )
    return said


def folded(tensors: Mapping[str, StoredTensor], said: Said | None, ledger: ledgers.Ledger, folder: str) -> Folded:
    """The weights of a folder whose config says how it is quantised. Raises every problem at once: codes without scales, scales without
    codes, shapes that contradict each other or the config."""
    if said is None:
        _check_plain(tensors, folder)
        return Folded(dict(tensors))
    from ckpt_hf.quantised.known import method_of  # the methods are many, and most models are not quantised
    from ckpt_hf.quantised.spelling import Quantity

    method = method_of(said)
    ledger.used("how the weights are quantised", said.file, said.key)
    ledger.config(said.file, method.fates, said.key)
    problems = errors.Problems(f"reading {folder}")
    made, taken = _made(tensors, method, said, problems)
    plain: dict[str, StoredTensor] = {}
    left: dict[str, list[Quantity]] = {}
    for name, tensor in tensors.items():
        if name in taken:
            continue
        if ending := next((one for one in method.beside if name.endswith(one)), None):
            left.setdefault(ending, []).append(Quantity(name, tensor))
            continue
        for error in _of_no_weight(name, tensor, method):
            problems.add(error)
        plain[name] = tensor
    problems.raise_any()
    if method.spellings and not made:
        raise FormatError(
            f"{said.key} says {method.what}, and no tensor has codes",
            file=said.file,
            found=f"{errors.plural(len(tensors), 'tensor')} in {dtypes.commonest(tensor.dtype for tensor in tensors.values()) if tensors else 'nothing'}",
            fix=f"if these weights were dequantised before, leave it out with -o ignore_keys={KEY}",
        )
    hint = {
        "config": {KEY: said.settings} if said.file.endswith(CONFIG) else {},
        "said": {said.file: said.key},
        "documents": {name: _text(os.path.join(folder, name)) for name in os.listdir(folder) if name == SIDE_FILE},
    }
    weights, apart = _with_beside(made, left)
    losses = [
        ledgers.Loss("dropped", f"*{ending}: {errors.plural(count, 'tensor')}", method.beside[ending])
        for ending, count in apart.items()
    ]
    return Folded(
        plain | weights,
        tuple(losses),
        (f"quantised: {method.what}, by {said.key} in {os.path.basename(said.file)}",),
        hint if made else None,
    )


def _text(path: str) -> str:
    return disk.read_small(path).decode()


def _made(
    tensors: Mapping[str, StoredTensor], method: Method, said: Said, problems: errors.Problems
) -> tuple[dict[str, StoredTensor], set[str]]:
    """The weights that codes and scales make, and the names of these."""
    made: dict[str, StoredTensor] = {}
    taken: set[str] = set()
    for name, tensor in tensors.items():
        spelling = next((one for one in method.spellings if one.fits(name, tensor)), None)
        if spelling is None:
            continue
        taken.add(name)
        try:
            parts = spelling.parts(name, tensors, method.what)
            taken |= {one.name for one in parts.beside.values()}
            if parts.name in made or (parts.name in tensors and parts.name != name):
                raise parts.codes.wrong(f"makes {parts.name!r}, which is there as well", "one of them")
            if method.listed(parts.name.removesuffix(WEIGHT)):
                raise parts.codes.wrong(
                    f"has codes, and {said.key} lists its module as one that is not quantised",
                    fix="config and tensors contradict each other: find out which is of another model",
                )
            made[parts.name] = spelling.made(parts)
        except CkptError as problem:
            problems.add(problem)
    return made, taken


def _with_beside(
    made: Mapping[str, StoredTensor], left: Mapping[str, Sequence[Quantity]]
) -> tuple[dict[str, StoredTensor], Counter[str]]:
    """The weights, each with what lies beside it: a scale of activations goes along where codes are kept. And what lies beside none, by
    how its name ends."""
    beside: dict[str, list[lazy.Operand]] = {}
    apart: Counter[str] = Counter()
    for ending, found in left.items():
        for one in found:
            module = one.name.removesuffix(ending)
            owner = f"{module}{WEIGHT}"
            if owner not in made:  # a scale of the cache is that of a module whose projections have the weights
                owner = next((name for name in made if name.startswith(f"{module}.")), "")
            if not owner:
                apart[ending] += 1
            else:
                beside.setdefault(owner, []).append(one.operand(max(1, one.stored.elements), 0))
    whole = dict(made)
    for owner, operands in beside.items():
        held = made[owner].quantised
        assert held is not None
        whole[owner] = replace(made[owner], quantised=replace(held, beside=(*held.beside, *operands)))
    return whole, apart


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
            found=f"{errors.plural(len(found), 'tensor')}, {found[0]!r} among them",
            expected=f"{KEY} in config.json, or hf_quant_config.json beside it, in {os.path.basename(folder) or folder}",
            fix="get the config that was published with these weights: the numbers alone are not the weights",
        )
