"""`.nemo`: a config, weights and tokenizer files in a tar (gzip-compressed before NeMo 1.7), or in a folder.

model_config.yaml                                the model section of the training config
model_weights.ckpt                               a state dict: one rank
mp_rank_TT/model_weights.ckpt                    several tensor parallel ranks, one pipeline stage
tp_rank_TT_pp_rank_PPP/model_weights.ckpt        several pipeline stages
model_weights/metadata.json ...                  a distributed checkpoint of Megatron-Core: all ranks together
<32 hex digits>_tokenizer.model                  artifacts, which the config calls nemo:<name>
companions/generation_config.json ...            ours: files of the model that NeMo has no artifact for, and does not open
"""

from __future__ import annotations

import os
import posixpath
from typing import Any

from ckpt_core.sdk import FormatError, company, disk, documents, errors, ledgers, torch_files, trees
from ckpt_nemo.container.distributed import distributed_weights
from ckpt_nemo.container.omegaconf import resolved
from ckpt_nemo.container.places import CONFIG, rank_of
from ckpt_nemo.container.saved import Rank, SavedCheckpoint, state_dict

WEIGHTS = "model_weights"
RANK_FILE = f"{WEIGHTS}.ckpt"
COMPANIONS = "companions"


def has_weights(tree: trees.Tree) -> bool:
    """Whether weights lie where NeMo keeps them. Other tools, litgpt for one, have a `model_config.yaml` too."""
    folders = ["", *(f"{folder}/" for folder in tree.folders if rank_of(folder) is not None)]
    return f"{WEIGHTS}/metadata.json" in tree or any(f"{folder}{RANK_FILE}" in tree for folder in folders)


def open_archive(path: str, tree: trees.Tree, container: str) -> SavedCheckpoint:
    """The checkpoint in `tree`, which holds `CONFIG`."""
    config, section = read_config(tree.read(CONFIG), tree.place(CONFIG))
    saved = SavedCheckpoint(path, tree.path, container, "ranks", config, tree.place(CONFIG), tree=tree, section=section)
    saved.artifacts = {name: _sidecar(tree[name]) for name in _at_root(tree) if name not in (CONFIG, RANK_FILE)}
    saved.companions = companions_in(tree)
    folders = ["", *(f"{folder}/" for folder in tree.folders)]
    held = [f"{folder}{RANK_FILE}" for folder in folders if f"{folder}{RANK_FILE}" in tree]
    folder = tree.below(WEIGHTS)
    if "metadata.json" in folder:
        if held:
            raise FormatError(
                "the weights are there twice", file=tree.path, found=f"{held[0]} and {WEIGHTS}/", expected="one of them"
            )
        distributed_weights(folder, saved)
    else:
        saved.ranks = _ranks(tree, held, saved.ledger)
    saved.states = tree.states if container == "nemo" else [*saved.states, *_states(tree, [CONFIG, *held])]
    problems = errors.Problems(f"reading {tree.path}")
    saved.check_ranks(problems)
    problems.raise_any()
    return saved


def read_config(data: bytes, file: str) -> tuple[dict[str, Any], str]:
    """The model section in a YAML file and its name: the top level, or `model`, or (in hparams.yaml) `cfg`."""
    value = documents.parse_yaml(data, file)
    if not isinstance(value, dict):
        raise FormatError("the config holds no keys", file=file, found=type(value).__name__)
    section = next((key for key in ("model", "cfg") if isinstance(value.get(key), dict)), None)
    if section == "model":
        return resolved(value[section], value, (section,)), section
    return resolved(value[section] if section else value), section or ""


def _at_root(tree: trees.Tree) -> list[str]:
    """The files at the root: config, tokenizer files, weights of one rank."""
    names = os.listdir(tree.path) if os.path.isdir(tree.path) else [name for name in tree.files if "/" not in name]
    return sorted(name for name in names if not name.startswith(".") and name in tree)


def companions_in(tree: trees.Tree) -> dict[str, company.Sidecar]:
    """The files that travel with the model, by their own names."""
    held = tree.below(COMPANIONS)
    return {name: _sidecar(held[name]) for name in sorted(held.files)}


def _sidecar(extent: trees.Extent) -> company.Sidecar:
    return company.Sidecar(extent.file, extent.size, extent.offset)


def _states(tree: trees.Tree, names: list[str]) -> list[disk.FileState]:
    return [disk.FileState.of(tree[name].file) for name in names]


def _ranks(tree: trees.Tree, held: list[str], ledger: ledgers.Ledger) -> list[Rank]:
    if not held:
        raise FormatError(
            "there are no weights",
            file=tree.path,
            expected=f"{RANK_FILE}, rank folders with one, or {WEIGHTS}/metadata.json",
        )
    found = []
    forms = set()
    for name in held:
        folder = posixpath.dirname(name)
        place = rank_of(folder) if folder else (0, 0)
        if place is None:
            raise FormatError(
                "weights lie in a folder of no rank",
                file=tree.place(name),
                expected="mp_rank_TT or tp_rank_TT_pp_rank_PPP",
            )
        forms.add(folder[:2])
        found.append(
            Rank(
                *place,
                tree.place(name),
                [state_dict(torch_files.read_torch_member(tree, name), tree.place(name), ledger)],
            )
        )
        ledger.used("weights", tree.place(name))
    if len(forms) > 1:
        raise FormatError(
            "weights of several parallel layouts lie side by side",
            file=tree.path,
            found=", ".join(held[:4]),
            fix="remove the stale ones",
        )
    return found
