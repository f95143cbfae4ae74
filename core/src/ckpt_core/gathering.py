"""Canonical tensors, put together from what a plugin found in the files of every rank: those of the model, and those of its training."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING

from ckpt_core import training
from ckpt_core.description import Averaged
from ckpt_core.errors import CkptError, FormatError, NotCarried
from ckpt_core.layout import BoundTables, account
from ckpt_core.lean import dataclass
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.tensors.assembly import ParameterBuilder, whole
from ckpt_core.text import plural

if TYPE_CHECKING:
    from ckpt_core.architecture import Parameter
    from ckpt_core.checkpoint import Checkpoint
    from ckpt_core.description import Description, RankTensors, SavedTraining
    from ckpt_core.layout import Native
    from ckpt_core.tensors.assembly import LazyParameter, Shard
    from ckpt_core.training import Kind, Training


def parameters_of(description: Description) -> dict[str, LazyParameter]:
    """The canonical tensors, put together from those of all ranks; what several ranks hold is compared when it is read.

    Raises at once: every tensor that is missing on its rank, is not part of the model or has another shape, and every
    parameter that the ranks together do not hold once.
    """
    bound = BoundTables(description.tables, description.architecture, description.choices)
    known = description.natives
    return _gathered(bound, bound.parameters, description.ranks, description.where, lambda native: native, known=known)


def _gathered(
    bound: BoundTables,
    parameters: Mapping[str, Parameter],
    found: Iterable[RankTensors],
    where: str,
    turned: Callable[[Native], Native],
    left_out: Callable[[Native], bool] = lambda native: False,
    known: Mapping[str, Native] | None = None,
) -> dict[str, LazyParameter]:
    """The `parameters` in the tensors `found`, which hold what the tables say, `turned` into what they hold of it.

    `left_out` tells the native tensors of the tables that hold nothing of it. `known` are those of the whole model.
    """
    builder = ParameterBuilder(parameters, where)
    for rank in _by_rank(found):
        held_here = (turned(native) for native in _bound(bound, rank, known).values() if not left_out(native))
        natives = {native.name: native for native in held_here}
        for problem in account(
            {name: native for name, native in natives.items() if rank.needs(native)},
            bound.tables,
            {name for name in rank.found if name not in natives or rank.needs(natives[name])},
            rank.where,
            rank.found,
        ):
            builder.problems.add(problem)
        for name, native in natives.items():
            for held in rank.files:
                _enter(builder, native, held, name)
    return builder.finish()


@dataclass
class _Rank:
    """All files of one rank, which are accounted for together."""

    files: list[RankTensors] = field(default_factory=list)

    @property
    def found(self) -> dict[str, str]:
        """Every tensor found, with the file or folder it lies in."""
        return {name: held.where for held in reversed(self.files) for name in held.tensors}

    @property
    def where(self) -> str:
        """What errors about a tensor that no file of the rank has name."""
        first = self.files[0]
        if all(held.where == first.where for held in self.files):
            return first.where
        ranks = " ".join(f"{name}={rank}" for name, (rank, count) in first.ranks.items() if count > 1)
        return os.path.commonpath([held.where for held in self.files]) + (f" ({ranks})" if ranks else "")

    def needs(self, native: Native) -> bool:
        needed = self.files[0].needed
        return needed is None or needed(native)


def _by_rank(found: Iterable[RankTensors]) -> list[_Rank]:
    """What was found, the files of one rank together, in the order of their first."""
    ranks: dict[tuple[object, ...], _Rank] = {}
    for held in found:
        place = tuple(sorted(held.ranks.items())), held.called, held.needed
        ranks.setdefault(place, _Rank()).files.append(held)
    return list(ranks.values())


def _bound(bound: BoundTables, rank: _Rank, known: Mapping[str, Native] | None = None) -> Mapping[str, Native]:
    """The tensors that the tables have on a rank, by what they are called in its files."""
    first = rank.files[0]
    try:
        natives = bound.natives(first.ranks) if known is None or first.ranks else known
    except CkptError as error:  # a number of ranks that the model can't have
        error.file = error.file or rank.where
        raise
    if first.called is None:
        return natives
    named = ((first.called(native), native) for native in natives.values())
    return {name: replace(native, name=name) for name, native in named if name is not None}


def _enter(builder: ParameterBuilder, native: Native, rank: RankTensors, name: str) -> None:
    held = rank.tensors.get(name)
    if isinstance(held, Averaged):
        builder.add_averaged(native, held.ranks)
    elif held is not None:
        builder.add(native, _shards(held))
    if (rounded := rank.rounded.get(name)) is not None:
        builder.add_rounded(native, _shards(rounded))


def _shards(held: StoredTensor | Sequence[Shard]) -> Sequence[Shard]:
    return whole(held) if isinstance(held, StoredTensor) else held


# --- the state of a training -----------------------------------------------------------------------------------------


def training_of(description: Description, saved: SavedTraining, checkpoint: Checkpoint) -> Training:
    """The state of a training as it is `saved`, by the parameters of the `checkpoint` that was made of the description.

    A moment is read by the table of its weight. Raises, each by name: a parameter without a moment, one in no group or in two, one of
    which a part is frozen, a moment of another shape, and one that is of no parameter.
    """
    if saved.tables is None:
        bound = BoundTables(description.tables, description.architecture, description.choices)
    else:
        bound = BoundTables(saved.tables, description.architecture, saved.choices)
    ranks = {kind: list(found) for kind, found in saved.ranks.items()}
    held = _held_by_name(bound, [rank for found in ranks.values() for rank in found])
    frozen = _canonical(saved.state.frozen, held, "a frozen parameter", description.where)
    groups = [_canonical(group.parameters, held, "a group", description.where) for group in saved.state.groups]
    if saved.rest_is_frozen:
        stepped = {name for names in groups for name in names}
        frozen = dict.fromkeys(name for name in bound.parameters if name not in stepped)
    trained = {name: parameter for name, parameter in bound.parameters.items() if name not in frozen}
    _check_groups(groups, trained, frozen, saved.where)
    if saved.rest_is_frozen:
        _check_whole(bound, ranks[training.EXP_AVG], trained, saved.where)
    found: dict[Kind, dict[str, LazyParameter]] = {}
    for kind in training.KINDS:
        if kind in ranks:
            found[kind] = _moments(kind, bound, trained, ranks[kind], saved)
    masters = found.get(training.MASTER)
    weights = {name: checkpoint.tensors[name] for name in trained if name in checkpoint.tensors}
    if masters is not None and saved.rounds:
        masters = {
            name: replace(master, rounded=weights[name].blocks) for name, master in masters.items() if name in weights
        }
    known = checkpoint.parameters

    def of_kind(kind: Kind, tensors: Mapping[str, LazyParameter]) -> dict[str, LazyParameter]:
        """The tensors of a kind under the parameters of the checkpoint, whose vocabulary is settled."""
        return {
            name: replace(tensor, parameter=training.moment_of(kind, known[name]))
            for name, tensor in tensors.items()
            if name in known
        }

    return replace(
        saved.state,
        groups=tuple(
            replace(group, parameters=tuple(names)) for group, names in zip(saved.state.groups, groups, strict=True)
        ),
        frozen=tuple(frozen),
        own_masters=masters is not None,
        master=of_kind(training.MASTER, weights if masters is None else masters),
        exp_avg=of_kind("exp_avg", found["exp_avg"]),
        exp_avg_sq=of_kind(training.EXP_AVG_SQ, found[training.EXP_AVG_SQ]),
    )


def _moments(
    kind: Kind,
    bound: BoundTables,
    trained: Mapping[str, Parameter],
    ranks: Sequence[RankTensors],
    saved: SavedTraining,
) -> dict[str, LazyParameter]:
    """The tensors of a kind by canonical parameter. They are called `exp_avg of NAME` in errors. They are float32, and may be stored in a wider dtype."""

    def turned(native: Native) -> Native:
        moved = training.moment_native(kind, native)
        return replace(moved, name=f"{kind} of {native.name}")

    def labelled(rank: RankTensors) -> RankTensors:
        tensors = {f"{kind} of {name}": tensor for name, tensor in rank.tensors.items()}
        return replace(rank, tensors=tensors)

    known = {training.named(kind, name): training.moment_of(kind, parameter) for name, parameter in trained.items()}
    found = _gathered(
        bound,
        known,
        map(labelled, ranks),
        saved.where,
        turned,
        lambda native: not any(piece.parameter in trained for piece in native.pieces),
    )
    least = {training.EXP_AVG: -math.inf, training.EXP_AVG_SQ: 0.0}.get(
        kind
    )  # a mean of gradients may be anything but a NaN
    return {name: replace(found[training.named(kind, name)], least=least, float32=True) for name in trained}


def _check_whole(bound: BoundTables, ranks: Sequence[RankTensors], trained: Collection[str], where: str) -> None:
    """`NotCarried` for a parameter that lies in several tensors of which some were never stepped, as of an expert that got no token."""
    held = _held_by_name(bound, ranks)
    with_moments = {name for rank in ranks for name in rank.tensors}
    stepped = {parameter for name in with_moments & held.keys() for parameter in held[name]}
    natives = (item for rank in _by_rank(ranks) for item in _bound(bound, rank).items())
    aliases = {name for name, native in natives if native.row.copy}
    lacking = [
        name
        for name, parameters in held.items()
        if name not in with_moments | aliases and parameters & stepped & set(trained)
    ]
    if lacking:
        raise NotCarried(
            f"{lacking[0]!r} was never stepped, and others of its kind were: a state has moments of all experts, or of none",
            file=where,
            found=f"no moments of {plural(len(lacking), 'tensor')}",
            fix="an expert that got no token has none: convert the weights alone, with --training-state drop",
        )


def _held_by_name(bound: BoundTables, ranks: Iterable[RankTensors]) -> dict[str, set[str]]:
    """The parameters in each native tensor, over all ranks, by what the tensor is called."""
    held: dict[str, set[str]] = {}
    for rank in _by_rank(ranks):
        for name, native in _bound(bound, rank).items():
            held.setdefault(name, set()).update(piece.parameter for piece in native.pieces)
    return held


def _canonical(names: Collection[str], held: Mapping[str, Collection[str]], what: str, where: str) -> dict[str, None]:
    """The parameters in native tensors of these names, in their order."""
    for name in names:
        if name not in held:
            raise FormatError(f"{what} of the optimizer names {name!r}, which is not part of the model", file=where)
    return dict.fromkeys(parameter for name in names for parameter in sorted(held[name]))


def _check_groups(
    groups: Sequence[Collection[str]], trained: Collection[str], frozen: Collection[str], where: str
) -> None:
    known: dict[str, int] = {}
    for number, names in enumerate(groups):
        for name in names:
            if name in known or name in frozen:
                raise FormatError(
                    f"{name} is stepped twice",
                    file=where,
                    found=f"group {number}, and {'it is frozen' if name in frozen else f'group {known[name]}'}",
                )
            known[name] = number
    if missing := [name for name in trained if name not in known]:
        raise FormatError(
            f"{missing[0]} is in no group of the optimizer, and not frozen",
            file=where,
            found=f"{len(missing)} such parameters",
            expected="every parameter in one group",
        )
