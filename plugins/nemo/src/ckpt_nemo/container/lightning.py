"""`.ckpt`: what PyTorch Lightning saves during training. The rank folder stands before the file's name.

    RUN/hparams.yaml                                    cfg: the model section, with paths of the training machine
    RUN/checkpoints/NAME.ckpt                           one rank
    RUN/checkpoints/mp_rank_TT/NAME.ckpt                several tensor parallel ranks, one pipeline stage
    RUN/checkpoints/tp_rank_TT_pp_rank_PPP/NAME.ckpt    several pipeline stages
    RUN/checkpoints/NAME/common.pt metadata.json ...    a distributed checkpoint of Megatron-Core

Files of other names are other training steps; only NAME-last repeats one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ckpt_core.sdk import FormatError, company, disk, errors, ledgers, torch_files, trees
from ckpt_megatron.sdk import contents
from ckpt_megatron.sdk import lightning as progress
from ckpt_nemo.container.archive import COMPANIONS, read_config
from ckpt_nemo.container.distributed import distributed_weights
from ckpt_nemo.container.omegaconf import plain, resolved, root_of
from ckpt_nemo.container.opened import common_of, content_of
from ckpt_nemo.container.places import COMMON, FOLDER, SUFFIX, Step
from ckpt_nemo.container.saved import Rank, SavedCheckpoint, state_dict

HPARAMS = "hparams.yaml"
_SECOND_CONFIG = ledgers.Reason("a copy of the config", "the config inside the checkpoint is read, as NeMo does")


def open_lightning(path: str, step: Step) -> SavedCheckpoint:
    """The checkpoint of one training step."""
    _check_finished(step)
    problems = errors.Problems(f"reading {step.place}")
    if step.folder is not None:
        content = common_of(step)
        file = os.path.join(step.folder, COMMON)
        config, config_file, section = _config(content, file, step)
        saved = SavedCheckpoint(path, step.folder, "ckpt", "", config, config_file, section=section)
        saved.content, saved.content_file = content, file
        distributed_weights(trees.open_tree(step.folder), saved)
    else:
        places = sorted(step.ranks)
        held = {place: content_of(step.ranks[place]) for place in places}
        first = step.ranks[places[0]]
        config, config_file, section = _config(held[places[0]], first, step)
        saved = SavedCheckpoint(path, step.place, "ckpt", "ranks", config, config_file, section=section)
        saved.content, saved.content_file = held[places[0]], first
        for place in places:
            _check_same(held[place], config, step.ranks[place], first, problems)
            saved.ranks.append(_rank(place, held[place], step.ranks[place], saved.ledger))
            contents.enter_state(saved.ledger, step.ranks[place], held[place], contents.LIGHTNING)
        saved.states = [disk.FileState.of(file) for file in step.ranks.values()]
    saved.root = os.path.dirname(step.base) if os.path.basename(step.base) == FOLDER else step.base
    if config_file.endswith(HPARAMS):
        saved.states.append(disk.FileState.of(config_file))
    else:
        for folder in (step.base, os.path.dirname(step.base)):
            if os.path.isfile(copy := os.path.join(folder, HPARAMS)):
                saved.ledger.left(_SECOND_CONFIG, copy, size=os.path.getsize(copy))
    saved.artifacts = _beside(step)
    saved.companions = company.files_below(os.path.join(saved.root, COMPANIONS))
    saved.check_ranks(problems)
    problems.raise_any()
    return saved


def _check_finished(step: Step) -> None:
    marker = os.path.join(step.base, f"{step.name.removesuffix(SUFFIX)}-unfinished")  # since NeMo 2.0
    if os.path.exists(marker):
        raise FormatError(
            "the checkpoint was not saved to its end",
            file=step.place,
            found=os.path.basename(marker),
            fix="use an earlier one",
        )


def _rank(place: tuple[int, int], content: Mapping[Any, Any], file: str, ledger: ledgers.Ledger) -> Rank:
    """Virtual pipeline stages are `model0`, `model1`, ...; `state_dict` is empty beside them."""
    stages = [content[f"model{number}"] for number in range(len(content)) if f"model{number}" in content]
    chunks = [state_dict(stage, file, ledger) for stage in stages or [content.get("state_dict")]]
    states = content.get("optimizer_states")
    optimizer = states[0] if isinstance(states, list) and len(states) == 1 else None
    return Rank(*place, file, chunks, optimizer, content.get(progress.STEP))


def _config(content: Mapping[Any, Any], file: str, step: Step) -> tuple[dict[str, Any], str, str]:
    """The config inside the checkpoint, else the one in hparams.yaml, else none; its file, and where in that it is."""
    own = _own_config(content, file)
    if own is not None:
        return own, file, "hyper_parameters.cfg"
    for folder in (step.base, os.path.dirname(step.base)):
        path = os.path.join(folder, HPARAMS)
        if os.path.isfile(path):
            config, section = read_config(disk.read_small(path), path)
            return config, path, section
    return {}, file, ""


def _own_config(content: Mapping[Any, Any], file: str) -> dict[str, Any] | None:
    parameters = content.get("hyper_parameters")
    value = parameters.get("cfg") if isinstance(parameters, Mapping) else None
    if value is None:
        return None
    config = plain(value, file)
    if not isinstance(config, dict):
        raise FormatError("hyper_parameters.cfg holds no keys", file=file, found=torch_files.brief(config))
    root, keys = root_of(value, file) if isinstance(value, torch_files.Opaque) else (None, ())
    return resolved(config, root, keys)


def _check_same(
    content: Mapping[Any, Any], config: Mapping[str, Any], file: str, first: str, problems: errors.Problems
) -> None:
    """Every rank's file has the config; two stories mean that the files are of two runs."""
    own = _own_config(content, file) or {}
    for key in sorted(own.keys() & config.keys()):
        if own[key] != config[key]:
            problems.add(
                FormatError(
                    f"{key} is {torch_files.brief(own[key])}",
                    file=file,
                    expected=f"{torch_files.brief(config[key])}, as in {first}",
                )
            )


def _beside(step: Step) -> dict[str, company.Sidecar]:
    """Files that a tokenizer may consist of, in the folder of the checkpoints and the one above."""
    found: dict[str, company.Sidecar] = {}
    for folder in _unique((step.base, os.path.dirname(step.base))):
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path) and name.endswith((".model", ".json", ".txt")):
                found.setdefault(name, company.Sidecar(path, os.path.getsize(path)))
    return found


def _unique(folders: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(folders))
