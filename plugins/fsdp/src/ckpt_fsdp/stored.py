"""The tensors that FSDP saved, put together over ranks: from verl's rank files, and from distributed checkpoints."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import TypeVar

from ckpt_core.sdk import (
    CkptError,
    FormatError,
    RankTensors,
    Table,
    chunked,
    disk,
    documents,
    dtypes,
    errors,
    lazy,
    ledgers,
    schema,
    torch_files,
)
from ckpt_fsdp.contents import EXTRA, contents_of, enter_keys
from ckpt_fsdp.files import EXTRA as EXTRA_NAME
from ckpt_fsdp.files import SETTINGS, rank_files
from ckpt_fsdp.parts import Part, Parts

# What wrappers of single layers leave within names, where a script saves `model.state_dict()` as it is: torch.compile of a
# layer, FSDP1 with `use_orig_params`, activation checkpointing.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_BESIDE = "tensors beside the model"
_OF_ONE_STEP = "the files are of different runs or steps: copy those of one step again, of all ranks"
_STEP = 1 << 20
T = TypeVar("T")


@schema.dataclass
class SavedTensors:
    """Tensors by the names that FSDP gave them.

    `copies` has every tensor's parts as often as it is held whole: replicas must be equal, which is found out when they are read.
    `described` is the file that lists all tensors, where there is one, and `keys` what it calls them. `lacking`: see `chunked.DistributedCheckpoint`.
    """

    copies: list[dict[str, Sequence[lazy.Shard]]]
    dtypes: set[dtypes.DType]
    files: list[str]
    ledger: ledgers.Ledger = field(default_factory=ledgers.Ledger)
    world: int | None = None
    described: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    lacking: FormatError | None = None

    @property
    def names(self) -> set[str]:
        return set(self.copies[0])

    @property
    def masters(self) -> bool:
        """Whether the weights are in fp32: FSDP keeps one set of them, in the dtype that the optimizer steps in."""
        return all(dtype.name == "fp32" for dtype in self.dtypes)

    def check_asked(self, weights: str, where: str) -> None:
        """`NotCarried` if the `weights` that are asked for are masters, and there are none."""
        if weights == "master" and not self.masters:
            raise errors.NotCarried(
                "there are no fp32 masters: FSDP keeps the parameters in the dtype that the optimizer steps in",
                file=where,
                found=", ".join(sorted(dtype.name for dtype in self.dtypes)),
                fix="use --weights model, or what was saved before it was cast for export",
            )

    def is_zero(self, name: str) -> bool:
        """Whether a tensor has no element but zeros, in any of its copies."""
        source = lazy.SourceFiles(states(self.files))
        try:
            for stored in (shard.stored for copy in self.copies for shard in copy.get(name, ())):
                part = lazy.of_shards(name, stored.shape, lazy.whole(stored))
                if any(source.floats(part, box).any() for box in lazy.boxes(stored.shape, _STEP)):
                    return False
            return True
        finally:
            source.close()

    def narrow(self, prefix: str, where: str) -> None:
        """Read only the tensors whose names begin with `prefix`, and enter the others. `CkptError` if there are none."""
        others = {name for name in self.names if not name.startswith(prefix)}
        if others == self.names:
            raise CkptError(
                f"no tensor has a name that begins with {prefix!r}, as -o prefix says",
                file=where,
                found=", ".join(sorted({f"{name.partition('.')[0]}." for name in others})[:8]),
            )
        for name in sorted(others):
            self.leave("of another model than -o prefix names", name)
        self.copies = [{name: shards for name, shards in copy.items() if name not in others} for copy in self.copies]
        self.dtypes = {shard.stored.dtype for copy in self.copies for shards in copy.values() for shard in shards}

    def leave(self, why: str, name: str) -> None:
        """Enter a tensor that stays behind, and the reason."""
        sizes: Counter[str] = Counter()
        for stored in (shard.stored for copy in self.copies for shard in copy.get(name, ())):
            sizes[self.described or stored.file] += stored.elements * stored.dtype.size
        for file, size in sizes.items():
            self.ledger.left(ledgers.Reason(_BESIDE, why), file, self.keys.get(name, name), size=size)

    def enter_zeros(self, name: str) -> None:
        """Enter a tensor that is not read, because it is zero."""
        if self.described is not None:
            self.ledger.used("nothing, as it is zero", self.described, self.keys[name])

    def leave_dropped(self, tables: Iterable[Table]) -> None:
        """Enter the tensors that `tables` drop."""
        reasons = {name: [table.why_dropped(name) for table in tables] for name in sorted(self.names)}
        for name, found in reasons.items():
            if why := next(filter(None, found), None):
                self.leave(why, name)

    def are_same(self, one: str, other: str) -> bool:
        """Whether the tensors of two names hold the same elements; not where one of them is missing."""
        held = self.copies[0]
        return {one, other} <= held.keys() and lazy.are_equal(held[one], held[other], states(self.files))

    def ranks(self, where: str) -> Iterator[RankTensors]:
        """What the core puts together: a copy after the other."""
        for copy in self.copies:
            yield RankTensors({}, copy, where)


# --- torch.distributed.checkpoint ------------------------------------------------------------------------------------


def read_chunks(folder: str, listed: bool = True) -> SavedTensors:
    """The tensors in a distributed checkpoint that are not of an optimizer or of another part of a training; `listed`: by its `.metadata`."""
    held = chunked.read_distributed(folder) if listed else chunked.read_shards(folder)
    contents = contents_of(held.tensors)
    model = {name: tensor for name, tensor in held.tensors.items() if contents.of(name) is ledgers.UNKNOWN_KEY}
    shards: dict[str, Sequence[lazy.Shard]] = {
        name: [lazy.Shard(origin, stored) for origin, stored in tensor.stored()]
        for name, tensor in unwrapped(model, folder).items()
    }
    found = SavedTensors([shards], {tensor.dtype for tensor in model.values()}, held.files, lacking=held.lacking)
    found.described = held.described_in[0] if listed else None
    found.keys = unwrapped({name: name for name in model}, folder)
    enter_keys(found.ledger, held, set(model), contents)
    return found


def unwrapped(held: Mapping[str, T], file: str) -> dict[str, T]:
    """A state dict under the names that its module has without wrappers around its layers; `FormatError` if two are one then."""
    found: dict[str, T] = {}
    for name, value in held.items():
        bare = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if bare in found:
            raise FormatError(
                f"{bare!r} is there twice, within wrappers and without",
                file=file,
                found=", ".join(sorted(set(held) & {name, bare})),
                fix="save the state dict of the module that is wrapped",
            )
        found[bare] = value
    return found


# --- a file for each rank --------------------------------------------------------------------------------------------


def read_ranks(folder: str) -> SavedTensors:
    """The tensors in the files of all ranks. Raises what is not as the names of the files, or the other ranks, say."""
    files = rank_files(folder)
    world = len(files)
    found = SavedTensors([], set(), list(files), world=world)
    _check_settings(folder, world, found)
    _check_steps(folder, found)
    parts, copies, first = Parts(world), dict[str, dict[tuple, list[lazy.Shard]]](), dict[str, Part]()
    problems, refused = errors.Problems(f"reading {folder}"), set[str]()
    for rank, file in enumerate(files):
        held = _state_dict(file)
        for name in first.keys() - held.keys():
            refused.add(name)
            problems.add(FormatError(f"rank {rank} has no {name!r}, which rank 0 has", file=file, fix=_OF_ONE_STEP))
        for name, value in held.items():
            try:
                part = parts.of(name, value, rank, file)
                _check_alike(name, part, first, rank, file)
            except FormatError as problem:
                problems.add(problem)
                refused.add(name)
                continue
            copies.setdefault(name, {}).setdefault(part.copy, []).extend(part.shards)
            found.dtypes.add(part.dtype)
    for name in (
        name for name in copies if name not in refused
    ):  # what lacks a part that was refused is not short by itself
        for shards in copies[name].values():
            have, want = sum(shard.stored.elements for shard in shards), math.prod(first[name].shape)
            if have != want:
                problems.add(
                    FormatError(
                        f"the parts of {name!r} do not add up to it",
                        file=folder,
                        found=f"{have} elements over all ranks",
                        expected=f"{want}: {first[name].said}",
                        fix=_OF_ONE_STEP,
                    )
                )
    problems.raise_any()
    found.copies = [
        {name: copy for name, of_name in copies.items() if (copy := _nth(of_name, number)) is not None}
        for number in range(max(map(len, copies.values()), default=1))
    ]
    for file in files:
        found.ledger.used("weights", file)
    return found


def _nth(copies: Mapping[tuple, list[lazy.Shard]], number: int) -> Sequence[lazy.Shard] | None:
    return list(copies.values())[number] if number < len(copies) else None


def _state_dict(file: str) -> Mapping[str, object]:
    held = torch_files.read_torch_file(file)
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        raise FormatError("the file of a rank holds no state dict", file=file, found=torch_files.brief(held))
    return unwrapped(held, file)


def _check_alike(name: str, part: Part, first: dict[str, Part], rank: int, file: str) -> None:
    known = first.get(name)
    if known is None and rank:
        raise FormatError(f"rank {rank} has {name!r}, which rank 0 has not", file=file, fix=_OF_ONE_STEP)
    if known is not None and part.said != known.said:
        raise FormatError(
            f"ranks say different things of {name!r}",
            file=file,
            found=part.said,
            expected=f"as rank 0 says: {known.said}",
            fix=_OF_ONE_STEP,
        )
    first.setdefault(name, part)


def _check_settings(folder: str, world: int, found: SavedTensors) -> None:
    """verl's fsdp_config.json, which says the world size once more."""
    file = os.path.join(folder, SETTINGS)
    if not os.path.isfile(file):
        return
    said = documents.read_json_object(file).get("world_size", world)
    if said != world:
        raise FormatError(
            f"{SETTINGS} is of another run than the files of the ranks",
            file=file,
            found=f"world_size {said!r:.40}",
            expected=f"{world}, as the names of the files say",
            fix="remove the files of the run that is not wanted",
        )
    found.ledger.used("parallel layout", file)
    found.files.append(file)


def _check_steps(folder: str, found: SavedTensors) -> None:
    """Every rank saves its learning rate schedule, whose count is the step: ranks of two steps look alike otherwise."""
    steps: dict[object, str] = {}
    for name in sorted(os.listdir(folder)):
        match = EXTRA_NAME.fullmatch(name)
        if match is None or int(match[1]) != found.world or int(match[2]) >= int(match[1]):
            continue
        file = os.path.join(folder, name)
        state = torch_files.read_torch_file(file)
        if not isinstance(state, dict):
            raise FormatError("the extra state of a rank is not a dict", file=file, found=torch_files.brief(state))
        found.ledger.contents(file, state, EXTRA)
        found.ledger.used("that the ranks are of one step", file)
        found.files.append(file)
        schedule = state.get("lr_scheduler")
        step = schedule.get("last_epoch") if isinstance(schedule, dict) else None
        if type(step) is int:
            steps.setdefault(step, file)
    if len(steps) > 1:
        (one, first), (other, second) = list(steps.items())[:2]
        raise FormatError(
            "the files of the ranks are of different steps",
            file=second,
            found=f"step {other} of the learning rate schedule",
            expected=f"{one}, as in {first}",
            fix="copy the files of one step again",
        )


def states(files: Sequence[str]) -> list[disk.FileState]:
    return [disk.FileState.of(file) for file in dict.fromkeys(files)]
