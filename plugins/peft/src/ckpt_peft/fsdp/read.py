"""Reading base and adapter out of what FSDP saved of a PEFT model.

    base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight         the base of an adapted module
    base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight     its adapter
    base_model.model.model.norm.weight                                         everything else

In a distributed checkpoint of accelerate or of a script all of them stand below the name of the model (`model.base_model...`).
verl (0.9, utils/fsdp_utils.py) saves the rank and alpha beside, in lora_train_meta.json, and no patterns: the scale is alpha / r.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    Checkpoint,
    CkptError,
    FormatError,
    ReadRequest,
    Refusal,
    disk,
    documents,
    lazy,
    ledgers,
    reading,
)
from ckpt_fsdp.sdk import SavedTensors, config_beside, described, place, stored_at
from ckpt_hf.sdk import CONFIG, ModelInMemory, model_in_memory
from ckpt_peft.alone import alone
from ckpt_peft.fsdp.files import META
from ckpt_peft.keys import DOWN, PREFIX, Contents, NamedTensor, is_of_pair, sorted_out
from ckpt_peft.merge import Merger
from ckpt_peft.pairs import pairs_of, without_weights
from ckpt_peft.read import merged_checkpoint
from ckpt_peft.settings import Settings

_BASE_LAYER = ".base_layer."
_OTHERS = ("modules_to_save", "original_module", "lora_bias")


def read(path: str, request: ReadRequest) -> Checkpoint:
    """The merged model of the adapter and the base that lie at `path`, or of `-o base`; the adapter, where it is wanted alone."""
    where = place(path)
    stored = stored_at(where)
    if stored.lacking:  # a pair that is in no file would be missed by nothing
        raise stored.lacking
    pairs, rest = _parts(stored, where.weights)
    contents = sorted_out(pairs, where.weights)
    config = config_beside(where, path) or request.config
    inner = reading.checkpoint_of(described(rest, where, path, request), "fsdp", path, request)
    ledger = ledgers.Ledger()
    settings, read_too = _settings(contents, os.path.join(where.home, META), request, path, ledger)
    states = [disk.FileState.of(file) for file in dict.fromkeys([*stored.files, *read_too])]
    of_hf = config is not None and os.path.basename(config) == CONFIG
    if request.alone:
        bare = without_weights(inner.architecture, *(("hf", config or "") if of_hf else ("", "")))
        merger = _merged(model_in_memory(bare), settings, where.weights, states, contents, False)
        ledger.joined(inner.ledger)
        return alone("fsdp-lora", path, inner.architecture, pairs_of(merger, states), None, states, ledger)
    given = request.options.get("base")
    base = given if isinstance(given, Checkpoint) else inner
    model = model_in_memory(replace(base, format="hf", path=config or "") if of_hf and base is inner else base)
    merger = _merged(model, settings, where.weights, states, contents, request.options.get("merge") == "fp32")
    merger.settings = replace(settings, base=base.path)  # it is known, and need not be assumed
    return merged_checkpoint("fsdp-lora", path, base, merger, states, inner.sidecars, ledger)


def _merged(
    model: ModelInMemory, settings: Settings, file: str, states: list[disk.FileState], contents: Contents, exact: bool
) -> Merger:
    merger = Merger(model, settings, file, states, exact=exact)
    merger.add_all(contents.adapted)
    merger.check_whole()
    return merger


def _parts(stored: SavedTensors, file: str) -> tuple[list[NamedTensor], SavedTensors]:
    """The tensors of pairs, and the base under the names of its own model. Raises what is neither."""
    stored = _bare(stored)
    for name in sorted(stored.names):
        other = next((part for part in _OTHERS if part in name.split(".")), None)
        if other is not None or not name.startswith(PREFIX):
            raise Refusal(
                f"tensor {name!r} is neither of a pair nor of the base",
                file=file,
                found=other or f"a name without {PREFIX}",
                fix="save the adapter with PEFT (save_pretrained)",
            )
    pairs = []
    for name in sorted(filter(is_of_pair, stored.names)):
        first, *replicas = [copy[name] for copy in stored.copies if name in copy]
        states = [disk.FileState.of(one.stored.file) for copy in (first, *replicas) for one in copy]
        if not all(lazy.are_equal(first, copy, states) for copy in (first, *replicas)):  # and each is whole
            raise FormatError(f"two copies of {name!r} differ", file=file, expected="ranks of one step of one run")
        pairs.append(NamedTensor(name, _shape(first), tuple(first)))
    if not pairs:
        raise FormatError("there is no adapter in what FSDP saved", file=file, expected="pairs of lora_A and lora_B")
    copies = []
    for copy in stored.copies:
        plain = {name: _plain(name) for name in copy if not is_of_pair(name)}
        copies.append({plain[name]: copy[name] for name in plain})
        if len(copies[-1]) < len(plain):
            twice = next(name for name in plain if list(plain.values()).count(plain[name]) > 1)
            raise FormatError(f"tensor {twice!r} is there twice, with and without {_BASE_LAYER.strip('.')}", file=file)
    keys = {_plain(name): key for name, key in stored.keys.items()}
    return pairs, replace(stored, copies=copies, keys=keys)


def _bare(stored: SavedTensors) -> SavedTensors:
    """The tensors without what stands before the names of PEFT in all of them."""
    outer = {name.partition(PREFIX)[0] for name in stored.names if PREFIX in name}
    if len(outer) != 1 or not all(name.startswith(f"{next(iter(outer))}{PREFIX}") for name in stored.names):
        return stored
    (prefix,) = outer
    copies = [{name.removeprefix(prefix): one for name, one in copy.items()} for copy in stored.copies]
    return replace(stored, copies=copies, keys={name.removeprefix(prefix): key for name, key in stored.keys.items()})


def _plain(name: str) -> str:
    return name.removeprefix(PREFIX).replace(_BASE_LAYER, ".")


def _shape(shards: Any) -> tuple[int, ...]:
    """The shape of the tensor that shards tile."""
    dims = range(len(shards[0].origin))
    return tuple(max(one.origin[dim] + one.stored.shape[dim] for one in shards) for dim in dims)


def _settings(
    contents: Contents, meta: str, request: ReadRequest, path: str, ledger: ledgers.Ledger
) -> tuple[Settings, list[str]]:
    """What the merge needs to know, and the files that say it."""
    said: Mapping[str, Any] = documents.read_json_object(meta) if os.path.isfile(meta) else {}
    files = [meta] if said else []
    if said:
        ledger.used("the merge", meta)
    rank = contents.adapted[0].tensors[DOWN].shape[0]
    asked, alpha = request.options.get("lora_alpha"), said.get("lora_alpha")
    if asked is not None and alpha is not None and asked != alpha:
        raise CkptError("-o lora_alpha and the files differ", file=meta, found=f"{asked:g}", expected=str(alpha))
    alpha = asked if alpha is None else alpha
    if alpha is None:
        raise CkptError(
            "nothing says by how much the adapter counts", file=path, expected=META, fix="give -o lora_alpha=NUMBER"
        )
    if type(alpha) not in (int, float) or not 0 < alpha < float("inf"):
        raise FormatError("the alpha of the adapter is not a number above zero", file=meta, found=f"{alpha!r}"[:60])
    if (named := said.get("r", rank)) != rank or type(named) is not int:
        raise FormatError(
            "the rank of the files is not the one beside them", file=meta, found=f"{named!r}"[:60], expected=str(rank)
        )
    settings = Settings(
        base=None, revision=None, default_rank=rank, default_alpha=alpha, rank_pattern={}, alpha_pattern={}, rslora=False, dora=False,
        bias="none", lora_bias=False, saved_modules=(), targets=None, target_parameters=(), excluded=(), layers=None, layers_pattern=(), tied=False,
    )  # fmt: skip
    return settings, files
