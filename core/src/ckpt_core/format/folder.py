"""Where the files of a checkpoint lie, for the usual shapes: one file, shards with an index, a file for each rank."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from functools import cached_property
from typing import Any

from ckpt_core.checkpoint import Sidecar
from ckpt_core.company import files_below, files_in
from ckpt_core.errors import CkptError, FormatError, Problems
from ckpt_core.format.names import NamePattern
from ckpt_core.lean import dataclass
from ckpt_core.ledger import Ledger, Loss
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.containers import WEIGHT_SUFFIXES, Container, read_index
from ckpt_core.storage.documents import dump_yaml, read_json_object, read_yaml_object
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.text import plural

DIMENSIONS = ("tp", "pp", "ep")
_MOST_MISSING = 1000  # files that are named one by one


@dataclass(frozen=True)
class WeightFile:
    """The tensors of one file of weights, and whose they are; `losses` are what else it holds."""

    numbers: Mapping[str, int]
    path: str
    tensors: Mapping[str, StoredTensor]
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The folder of a checkpoint: a config, and weights in one of three shapes.

        Folder(config="params.json", weights="consolidated.{tp:02}.pth")                 a file for each rank
        Folder(config="model_config.yaml", weights="lit_model.pth")                      one file
        Folder(config="config.json", weights="model.safetensors",                        one file, or shards and an index
               shards="model-{shard:05}-of-{shards:05}.safetensors", index="model.safetensors.index.json")

    `config` is JSON, or YAML where its name says so. `weights` are torch files, or safetensors where the name says so;
    its fields `{tp}`, `{pp}` and `{ep}` are the numbers of the rank whose tensors a file holds, from 0 on, with a width as in
    Python's format strings. `shards` are files that hold what does not fit one; `{shard}` counts from 1 to `{shards}`, and
    the index says which file holds which tensor. `counts` are keys of the config that say how many ranks there are,
    `{"tp": "model_parallel_size"}`; without one, the files say it, and a missing last rank can't be told from none.
    `companions` is the folder of what travels along (tokenizer, licence): that of the checkpoint itself, unless said.

    Raises `CkptError` for a name that leads out of the folder, an unknown field, or `shards` without `index`.
    """

    config: str
    weights: str
    shards: str = ""
    index: str = ""
    counts: Mapping[str, str] = field(default_factory=dict)
    companions: str = ""

    def __post_init__(self) -> None:
        names = [NamePattern(name, ()) for name in (self.config, self.index, self.companions) if name]
        assert names and self.pattern.fields is not None
        if bool(self.shards) != bool(self.index):
            raise CkptError("shards need an index that says which tensor lies where, and an index needs shards")
        if self.shards and (self.pattern.fields or set(self._shard_pattern.fields) != {"shard", "shards"}):
            raise CkptError(
                "shards are of weights in one file, and named by number", found=f"{self.weights!r}, {self.shards!r}"
            )
        for dimension in self.counts:
            if dimension not in self.dimensions:
                raise CkptError(f"a key counts ranks that {self.weights!r} does not name", found=dimension)

    @cached_property
    def pattern(self) -> NamePattern:
        return NamePattern(self.weights, DIMENSIONS)

    @cached_property
    def _shard_pattern(self) -> NamePattern:
        return NamePattern(self.shards, ("shard", "shards"))

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions along which files are ranks'."""
        return self.pattern.fields

    @property
    def container(self) -> Container:
        return Container.of(self.weights)

    # --- config ---

    def read_config(self, file: str) -> dict[str, Any]:
        """The object in a config file. `FormatError` if it holds none."""
        return read_yaml_object(file) if self._is_yaml else read_json_object(file, infinite=True)

    def config_text(self, config: Mapping[str, Any]) -> bytes:
        """What a config file holds."""
        return (dump_yaml(dict(config)) if self._is_yaml else json.dumps(config, indent=2) + "\n").encode()

    @property
    def _is_yaml(self) -> bool:
        return self.config.endswith((".yaml", ".yml"))

    def sizes_in(self, config: Mapping[str, Any], file: str) -> dict[str, int]:
        """How many ranks the keys `counts` say there are. `FormatError` for what is not a number of ranks."""
        sizes = {}
        for dimension, key in self.counts.items():
            size = config.get(key)
            if type(size) is not int or size < 1:
                raise FormatError(f"key {key!r} is not a number of ranks", file=file, found=repr(size)[:60])
            sizes[dimension] = size
        return sizes

    # --- weights ---

    def first_weights(self, path: str) -> str | None:
        """The name of a file of weights in a folder; None if there is none."""
        if self.index and os.path.isfile(os.path.join(path, self.index)):
            return self.index
        return next((name for _, name in self.pattern.files(path)), None)

    def read_weights(self, path: str, said: Mapping[str, int]) -> tuple[dict[str, int], list[WeightFile]]:
        """How many ranks there are along each dimension, and the files of all of them, from headers alone.

        `said` are the numbers that the config says. Raises every file that is missing or is of no rank.
        """
        if self.index and os.path.isfile(os.path.join(path, self.index)):
            return {}, list(self._indexed(path))
        found = {tuple(numbers.values()): name for numbers, name in self.pattern.files(path)}
        sizes = {
            dimension: said.get(dimension, 1 + max((place[axis] for place in found), default=0))
            for axis, dimension in enumerate(self.dimensions)
        }
        if math.prod(sizes.values()) > len(found) + _MOST_MISSING:
            ranks = " ".join(f"{dimension}={size}" for dimension, size in sizes.items())
            raise FormatError(
                "there are fewer files than ranks", file=path, found=plural(len(found), "file"), expected=ranks
            )
        wanted = list(self.places(sizes))
        problems = Problems(f"reading {path}")
        for numbers in wanted:
            if tuple(numbers.values()) not in found:
                name = self.pattern.name(numbers)
                problems.add(FormatError("a file of weights is missing", file=os.path.join(path, name)))
        known = {tuple(numbers.values()) for numbers in wanted}
        for place, name in found.items():
            if place not in known:
                ranks = " ".join(f"{dimension}={size}" for dimension, size in sizes.items())
                problems.add(
                    FormatError(
                        f"a file is of a rank that {self.config} does not count",
                        file=os.path.join(path, name),
                        expected=ranks,
                        fix="remove it if it is left over from another run",
                    )
                )
        problems.raise_any()
        return sizes, [self._file(path, found[tuple(numbers.values())], numbers) for numbers in wanted]

    def places(self, sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """The numbers of every rank that has a file."""
        for place in itertools.product(*(range(sizes.get(dimension, 1)) for dimension in self.dimensions)):
            yield dict(zip(self.dimensions, place, strict=True))

    def _file(self, folder: str, name: str, numbers: Mapping[str, int]) -> WeightFile:
        path = os.path.join(folder, name)
        held = self.container.read(path)
        beside = f"{name}: {', '.join(held.beside)}"
        losses = [Loss("dropped", beside, f"beside the weights, which are its {held.wrapper!r}")] if held.beside else []
        return WeightFile(numbers, path, held.tensors, tuple(losses))

    def _indexed(self, folder: str) -> Iterator[WeightFile]:
        """The shards that the index names, each with the tensors that the index says; any other tensor is an error."""
        index = os.path.join(folder, self.index)
        places = read_index(index)
        shards = [self._file(folder, name, {}) for name in sorted(set(places.values()))]
        held = {os.path.basename(shard.path): shard for shard in shards}
        problems = Problems(f"reading {folder}")
        for name, shard in held.items():
            for tensor in sorted(shard.tensors):
                if places.get(tensor) != name:
                    expected = f"in {places.get(tensor, 'no file')}"
                    problems.add(
                        FormatError(
                            f"tensor {tensor!r} is not where the index says", file=shard.path, expected=expected
                        )
                    )
        for tensor, name in places.items():
            if tensor not in held[name].tensors:
                problems.add(FormatError(f"tensor {tensor!r} is missing from its shard", file=held[name].path))
        problems.raise_any()
        yield from shards

    def weight_names(self, sizes: Iterable[int], limit: int) -> list[str]:
        """The file of each of the tensors that are written to a folder without ranks, whose `sizes` are in bytes."""
        shard, taken, numbers = 1, 0, []
        for size in sizes:
            if self.shards and taken and taken + size > limit:
                shard, taken = shard + 1, 0
            numbers.append(shard)
            taken += size
        if shard == 1:
            return [self.weights] * len(numbers)
        return [self._shard_pattern.name({"shard": number, "shards": shard}) for number in numbers]

    # --- what goes along ---

    def sidecars(self, path: str) -> dict[str, Sidecar]:
        """The files that travel along: those of the folder `companions`, or all beside the weights that are not weights."""
        if self.companions:
            return files_below(os.path.join(path, self.companions))
        return files_in(path, self._is_companion)

    def _is_companion(self, name: str) -> bool:
        own = name in (self.config, self.index) or self.pattern.numbers(name) is not None
        return not own and not name.startswith((".", "ckpt-receipt")) and not name.endswith(WEIGHT_SUFFIXES)

    def companion(self, name: str) -> str:
        """Where a file that travels along is written."""
        return f"{self.companions}/{name}" if self.companions else name

    def files(self, path: str, weights: Iterable[WeightFile], ledger: Ledger) -> list[FileState]:
        """The state of every file that is read but the config; the index is entered into the ledger."""
        files = [FileState.of(file.path) for file in weights]
        if self.index and os.path.isfile(index := os.path.join(path, self.index)):
            ledger.used("where each tensor lies", index)
            files.append(FileState.of(index))
        return files
