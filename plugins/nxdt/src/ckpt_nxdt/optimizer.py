"""The optimizer of a job, as it lies beside the weights: states by number, cut over data parallel ranks by zero-1.

    optim/dp_rank_DD_tp_rank_TT_pp_rank_PP.pt    zero-1: {"base_state": {i: {"step", "exp_avg", "exp_avg_sq"}}, "shape_info": {i: shape},
                                                          "sharded_master_weights": {i: shard}, "param_groups": [{..., "params": [i]}]}
                                                 without: torch's AdamW, {"state": {i: ...}, "param_groups": [...]}, of dp_rank_00 alone
    user_content.pt                              Lightning's account of the run: global_step, lr_schedulers, consumed samples

Numbers count the parameters with weight decay first, in the order of the modules, and then the others (see `masters`). A shard is one of a parameter that was
padded with zeros to a multiple of the data parallel ranks on its first axis. A job may step in double precision.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import FormatError, StoredTensor, disk, errors, lazy, ledgers, reading, torch_files
from ckpt_megatron.sdk import lightning
from ckpt_nxdt.contents import USER_CONTENT
from ckpt_nxdt.files import FolderContents, RankFile, Weights, optimizer_files
from ckpt_nxdt.masters import KEY, UNDECAYED, in_order, joined, parameters
from ckpt_nxdt.places import OPTIMIZER, Rank, root_of
from ckpt_nxdt.xser import read_xser

_DROP = "convert the weights alone, with --training-state drop"
_SETTINGS = ("hyper_parameters", "callbacks", "loops")
_SAMPLE = 1 << 10  # elements of the first matrix
_Tensors = dict[str, list[lazy.Shard]]


def training_beside(contents: FolderContents) -> reading.SavedTraining | None:
    """The state of the training beside the weights; None where no optimizer was saved."""
    by_rank: dict[Rank, dict[int, str]] = {}
    for rank, path in optimizer_files(contents.folder).items():
        by_rank.setdefault(replace(rank, dp=0), {})[rank.dp] = path
    if not by_rank:
        return None
    lacking = [file for file in contents.files if file.rank not in by_rank]
    if lacking:
        where = next(iter(next(iter(by_rank.values())).values()))
        raise FormatError(
            f"there is no optimizer of rank {lacking[0].rank}", file=lacking[0].path, expected=f"as {where}"
        )
    paths = {file.rank: in_order(file, by_rank[file.rank]) for file in contents.files}
    held = {path: _content(path) for of_rank in paths.values() for path in of_rank}
    first = paths[contents.files[0].rank][0]
    _check_groups(paths, held, first)
    undecayed = _words(contents, paths, held)
    steps: dict[str, object] = {}
    found: dict[reading.Kind, dict[Rank, _Tensors]] = {}
    members: list[dict[str, None]] = [{} for _ in _bodies(held[first])]
    for file in contents.files:
        names = _numbered(file, held[paths[file.rank][0]], undecayed)
        for group, body in zip(members, _bodies(held[paths[file.rank][0]]), strict=True):
            group.update(dict.fromkeys(names[number] for number in body["params"]))
        for kind, tensors in _of_rank(file, names, paths[file.rank], held, steps).items():
            found.setdefault(kind, {})[file.rank] = tensors
    if any(len(ranks) != len(contents.files) for ranks in found.values()):
        raise FormatError(f"some ranks have {KEY}, and others have none", file=first)
    files = _states(held, found)
    step = reading.adam.one_step(steps, first, files)
    bodies = _bodies(held[first])
    groups = [reading.adam.group_of(body, names, first) for body, names in zip(bodies, members, strict=True) if names]
    ledger = ledgers.Ledger()
    for path in (os.path.join(root_of(contents.folder), OPTIMIZER), *held):
        ledger.carried(ledgers.OPTIMIZER.what, path)
    checked = not _holds_rounded(contents)
    saved = reading.SavedTraining(
        state=reading.Training(step, tuple(groups), reading.adam.kind_of(bodies, first)),
        ranks={kind: list(_in_place_of_weights(contents, tensors).by_rank()) for kind, tensors in found.items()},
        where=first,
        files=files,
        ledger=ledger,
        evidence=["moments by the order of the modules, in the groups of the optimizer"],
        losses=list(_assumed(contents, reading.MASTER in found, checked)),
        rounds=checked,
        rest_is_frozen=True,
    )
    return _with_progress(saved, contents, files)


def _in_place_of_weights(contents: FolderContents, tensors: Mapping[Rank, _Tensors]) -> Weights:
    return Weights(
        contents.folder, contents.tp, contents.ep, tensors, {file.rank: file.path for file in contents.files}
    )


def _content(path: str) -> Mapping[str, Any]:
    content = read_xser(path)
    states = _states_in(content) if isinstance(content, dict) else None
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise errors.NotCarried(
            "the optimizer keeps no states by number, as zero-1 and torch's AdamW do",
            file=path,
            found=torch_files.brief(content),
            fix=_DROP,
        )
    bodies = content.get("param_groups")
    if not isinstance(bodies, list) or not all(
        isinstance(body, dict) and isinstance(body.get("params"), list) for body in bodies
    ):
        raise errors.NotCarried("the optimizer has no groups", file=path, fix=_DROP)
    numbers = [number for body in bodies for number in body["params"]]
    if numbers != list(range(len(numbers))):
        raise errors.NotCarried(
            "the groups of the optimizer do not number the parameters one after the other",
            file=path,
            found=f"{numbers!r:.80}",
            fix=_DROP,
        )
    return content


def _check_groups(paths: Mapping[Rank, Sequence[str]], held: Mapping[str, Mapping[str, Any]], first: str) -> None:
    """All ranks have the same groups, and data parallel ranks the same parameters in them."""

    def said(path: str, params: bool) -> list[dict[str, Any]]:
        return [{key: one for key, one in body.items() if params or key != "params"} for body in _bodies(held[path])]

    for of_rank in paths.values():
        for path in of_rank:
            for params, other in ((False, first), (True, of_rank[0])):
                if said(path, params) != said(other, params):
                    raise FormatError(
                        "the ranks have other groups of the optimizer than each other",
                        file=path,
                        expected=f"those in {other}",
                        fix="copy the files of one step again",
                    )


def _states_in(content: Mapping[str, Any]) -> Any:
    """The states by number: those of the optimizer that zero-1 wraps, or its own."""
    return content["base_state"] if "base_state" in content else content.get("state")


def _bodies(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return content["param_groups"]


def _words(
    contents: FolderContents, paths: Mapping[Rank, Sequence[str]], held: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    """The words of the names of parameters without weight decay: the ones that fit the numbers and shapes of all ranks."""
    by_count: dict[tuple[object, ...], tuple[str, ...]] = {}
    fitting: dict[tuple[object, ...], tuple[str, ...]] = {}
    for words in UNDECAYED:
        orders = {file.path: _divided(file, words, len(_bodies(held[paths[file.rank][0]]))) for file in contents.files}
        sizes = {
            file.path: [len(body["params"]) for body in _bodies(held[paths[file.rank][0]])] for file in contents.files
        }
        if all(list(map(len, orders[path])) == sizes[path] for path in orders):
            order = tuple(tuple(map(tuple, of)) for of in orders.values())
            by_count.setdefault(order, words)
            if all(
                _has_shapes(file, words, held[paths[file.rank][0]], len(paths[file.rank])) for file in contents.files
            ):
                fitting.setdefault(order, words)
    # Of a single order, a shape that is another is a fault of one tensor, which is named when it is put together.
    known = fitting or (by_count if len(by_count) == 1 else {})
    if len(known) != 1:
        first = paths[contents.files[0].rank][0]
        raise errors.NotCarried(
            "the order of the parameters in the optimizer can't be established",
            file=first,
            found=f"groups of {', '.join(str(len(body['params'])) for body in _bodies(held[first]))}, which fit {len(known)} orders",
            expected=f"one order of {len(parameters(contents.files[0]))} parameters: those with weight decay, then those without",
            fix=_DROP,
        )
    return next(iter(known.values()))


def _divided(file: RankFile, words: tuple[str, ...], groups: int) -> list[list[str]]:
    """The parameters of each group."""
    found: list[list[str]] = [[] for _ in range(groups)]
    for name in parameters(file):
        found[groups == 2 and any(word in name for word in words)].append(name)
    return found


def _numbered(file: RankFile, content: Mapping[str, Any], words: tuple[str, ...]) -> list[str]:
    """The parameters by number."""
    return [name for names in _divided(file, words, len(_bodies(content))) for name in names]


def _has_shapes(file: RankFile, words: tuple[str, ...], content: Mapping[str, Any], ranks: int) -> bool:
    wanted, states = parameters(file), _states_in(content)
    return all(
        not isinstance(moment := states.get(number, {}).get(kind), StoredTensor)
        or moment.shape == (-(-wanted[name][0] // ranks), *wanted[name][1:])
        for number, name in enumerate(_numbered(file, content, words))
        for kind in reading.MOMENTS
    )


def _of_rank(
    file: RankFile,
    names: Sequence[str],
    paths: Sequence[str],
    held: Mapping[str, Mapping[str, Any]],
    steps: dict[str, object],
) -> dict[reading.Kind, _Tensors]:
    """The tensors of a rank by kind and name, out of the files of its data parallel ranks."""
    shapes = parameters(file)
    found: dict[reading.Kind, _Tensors] = {kind: {} for kind in reading.MOMENTS}
    for path in paths:
        if others := sorted(map(str, _states_in(held[path]).keys() - set(range(len(names))))):
            raise FormatError("the optimizer has states of no parameter", file=path, found=", ".join(others[:4]))
        of_file = {name: _states_in(held[path]).get(number, {}) for number, name in enumerate(names)}
        steps |= {f"{name} of {path}": step for name, step in reading.adam.steps_of(of_file, (), path).items()}
    for number, name in enumerate(names):
        states = [(_states_in(held[path]).get(number, {}), path) for path in paths]
        for state, path in states:
            reading.adam.check_state(name, state, StoredTensor, path)
        for kind in reading.MOMENTS:
            found[kind][name] = joined(
                f"{kind} of {name}", shapes[name], [(state[kind], path) for state, path in states]
            )
    kept: list[Any] = [held[path].get(KEY) for path in paths]
    if any(kept):
        if not all(isinstance(one, dict) and one.keys() == set(range(len(names))) for one in kept):
            raise FormatError(
                f"{KEY} has not a master for each parameter", file=paths[0], expected=f"{len(names)} of them"
            )
        for number, name in enumerate(names):
            shards = [(one[number], path) for one, path in zip(kept, paths, strict=True)]
            found.setdefault(reading.MASTER, {})[name] = joined(f"the master of {name}", shapes[name], shards)
    return found


def _states(held: Mapping[str, Any], found: Mapping[reading.Kind, Mapping[Rank, _Tensors]]) -> list[disk.FileState]:
    """The optimizer's files, and those that hold its tensors."""
    paths = {
        *held,
        *(
            shard.stored.file
            for ranks in found.values()
            for of in ranks.values()
            for shards in of.values()
            for shard in shards
        ),
    }
    steps = {
        state["step"].file
        for content in held.values()
        for state in _states_in(content).values()
        if isinstance(state.get("step"), StoredTensor)
    }
    return [disk.FileState.of(path) for path in sorted(paths | steps)]


def _holds_rounded(contents: FolderContents) -> bool:
    """Whether weights are float32 tensors whose values are bf16's, as jobs with mixed precision write them (XLA_DOWNCAST_BF16)."""
    for file in contents.files:
        for tensor in file.tensors.values():
            if tensor.dtype.name == "fp32" and len(tensor.shape) == 2:
                count = min(tensor.elements, _SAMPLE)
                data = disk.read_range(tensor.file, tensor.offset, count * tensor.dtype.size)
                return all(not any(data[at : at + 2]) for at in range(0, len(data), 4))
    return False


def _assumed(contents: FolderContents, masters: bool, checked: bool) -> Iterator[ledgers.Loss]:
    half = any(tensor.dtype.size < 4 for file in contents.files for tensor in file.tensors.values())
    if not masters and (half or not checked):
        why = f"{KEY} is not saved (use_master_weights_in_ckpt), so that the job itself goes on from rounded weights"
        yield ledgers.Loss("assumed", "the weights in place of the fp32 masters", why)
    elif not checked:
        why = "the weights are float32 with values of bf16, to which masters are not compared"
        yield ledgers.Loss("assumed", "masters and weights of one step", why)


def _with_progress(
    saved: reading.SavedTraining, contents: FolderContents, files: list[disk.FileState]
) -> reading.SavedTraining:
    """The state with what user_content.pt says; without it, with the name of the folder alone."""
    root = root_of(contents.folder)
    path = os.path.join(root, USER_CONTENT)
    if not os.path.isfile(path):
        return saved
    said = torch_files.read_torch_file(path)
    if not isinstance(said, dict):
        raise FormatError("the account of the run is no dict", file=path, found=torch_files.brief(said))
    state = disk.FileState.of(path)
    progress = lightning.progress_in(said, os.path.basename(os.path.normpath(root)), path, [state])
    saved.ledger.carried(ledgers.PROGRESS.what, path)
    if settings := [key for key in _SETTINGS if said.get(key)]:
        saved.ledger.left(ledgers.SETTINGS, path, *settings)
    saved = replace(saved, files=[*files, state])
    return lightning.continued(saved, progress, [path], counts_anew=False, own_rates=True)
