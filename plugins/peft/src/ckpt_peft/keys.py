"""The names of an adapter's tensors, taken apart.

    base_model.model.   model.layers.0.self_attn.q_proj   .lora_A.weight
    what PEFT puts on   the module of the model           what the tensor is of it

In a state dict, and in what accelerate and verl save of one, the name of the adapter stands in it: `.lora_A.default.weight`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import field, replace

from ckpt_core.sdk import FormatError, StoredTensor, dtypes, errors, lazy, schema

PREFIX = "base_model.model."

DOWN, UP, MAGNITUDE, BIAS = "A", "B", "magnitude", "bias of B"

_ROLES = {
    DOWN: re.compile(r"(.+)\.lora_A(?:\.default)?\.weight"),
    UP: re.compile(r"(.+)\.lora_B(?:\.default)?\.weight"),
    "embedding A": re.compile(r"(.+)\.lora_embedding_A(?:\.default)?"),
    "embedding B": re.compile(r"(.+)\.lora_embedding_B(?:\.default)?"),
    MAGNITUDE: re.compile(r"(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?"),
    BIAS: re.compile(r"(.+)\.lora_B(?:\.default)?\.bias"),
}
_BASE_LAYER = re.compile(r"(.+)\.base_layer(\.(?:weight|bias))")
_SAVED = re.compile(r"(.+)\.modules_to_save(?:\.default)?(\.[\w.]+)")
# Where tokens were added, PEFT saves everything in the wrappers of the embedding and of the head: the module, once more, and the one before
# the training (peft 0.21.2, utils/save_and_load.py, "DEAL WITH EMBEDDINGS").
_ORIGINAL = re.compile(r"(.+)\.original_module(\.[\w.]+)")


@schema.dataclass(frozen=True)
class NamedTensor:
    """A tensor with the name that it has in the files: `shards` tile it."""

    key: str
    shape: tuple[int, ...]
    shards: tuple[lazy.Shard, ...]

    @classmethod
    def whole(cls, key: str, stored: StoredTensor) -> NamedTensor:
        """A tensor that a file holds whole."""
        return cls(key, stored.shape, (lazy.Shard((0,) * len(stored.shape), stored),))

    @property
    def dtype(self) -> dtypes.DType:
        """The dtype that it is stored in."""
        return self.shards[0].stored.dtype

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def turned(self) -> NamedTensor:
        """The matrix with its rows as columns."""
        shards = (
            lazy.Shard(
                one.origin[::-1], replace(one.stored, shape=one.stored.shape[::-1], strides=one.stored.strides[::-1])
            )
            for one in self.shards
        )
        return NamedTensor(self.key, self.shape[::-1], tuple(shards))

    def part(self, axis: int, start: int, count: int, step: int = 1) -> NamedTensor:
        """Every `step`-th index of an axis from `start` on, `count` of them, of a tensor that one file holds."""
        ((_, stored),) = ((one.origin, one.stored) for one in self.shards)
        shape = (*stored.shape[:axis], count, *stored.shape[axis + 1 :])
        strides = (*stored.strides[:axis], stored.strides[axis] * step, *stored.strides[axis + 1 :])
        offset = stored.offset + start * stored.strides[axis] * stored.dtype.size
        return NamedTensor.whole(
            f"{self.key} from {start}", replace(stored, shape=shape, strides=strides, offset=offset)
        )

    def lazy(self) -> lazy.LazyParameter:
        """The tensor as one that is read when it is asked for."""
        return lazy.of_shards(self.key, self.shape, self.shards)


@schema.dataclass
class AdaptedModule:
    """The tensors of one adapted module: `path` is that of the module, or of the wrapper (`.base_layer`) that it lies in."""

    path: str
    embedding: bool = False
    tensors: dict[str, NamedTensor] = field(default_factory=dict)

    @property
    def down(self) -> NamedTensor:
        """A, which is [rank, in]."""
        return self.tensors[DOWN]

    @property
    def up(self) -> NamedTensor:
        """B, which is [out, rank]."""
        return self.tensors[UP]


@schema.dataclass
class Contents:
    """What an adapter's tensors are: `adapted` modules, and `saved`, whole tensors of the model by their names.

    Of what is saved, `inside` are names that are saved in the place of the base's own (`.base_layer.weight`), `again` are the tensors that are
    saved a second time, and `originals` those that the saved ones took the place of.
    """

    by_path: dict[tuple[str, bool], AdaptedModule] = field(default_factory=dict)
    saved: dict[str, NamedTensor] = field(default_factory=dict)
    inside: set[str] = field(default_factory=set)
    again: dict[str, NamedTensor] = field(default_factory=dict)
    originals: dict[str, NamedTensor] = field(default_factory=dict)

    @property
    def adapted(self) -> list[AdaptedModule]:
        """The adapted modules, in the order of the file."""
        return list(self.by_path.values())


def is_of_pair(key: str) -> bool:
    """Whether a tensor is one of those that adapt a module."""
    return key.startswith(PREFIX) and any(pattern.fullmatch(key.removeprefix(PREFIX)) for pattern in _ROLES.values())


def sorted_out(tensors: Iterable[NamedTensor], file: str) -> Contents:
    """Every tensor by what it is; raises those that are nothing known, and matrices that lack their other half."""
    contents, problems = Contents(), errors.Problems(f"reading {file}")
    for tensor in tensors:
        key = tensor.key
        if not key.startswith(PREFIX):
            problems.add(
                FormatError(
                    f"tensor {key!r} is not of an adapter", file=file, expected=f"names that begin with {PREFIX}"
                )
            )
        elif not _enter(contents, key.removeprefix(PREFIX), tensor):
            problems.add(FormatError(f"two tensors are {key!r} under different names", file=file))
    for adapted in contents.adapted:
        for role in (DOWN, UP):
            if role not in adapted.tensors:
                there = next(iter(adapted.tensors.values())).key
                problems.add(
                    FormatError(f"the matrix {role} of {adapted.path} is missing", file=file, found=f"only {there}")
                )
                break
    for name, named in contents.originals.items():
        if name not in contents.saved:
            problems.add(
                FormatError(
                    f"tensor {named.key!r} was replaced, and by what is missing", file=file, expected=f"{PREFIX}{name}"
                )
            )
    problems.raise_any()
    return contents


def _enter(contents: Contents, name: str, tensor: NamedTensor) -> bool:
    """Enter a tensor; False if its place is taken."""
    for role, pattern in _ROLES.items():
        if match := pattern.fullmatch(name):
            embedding = role.startswith("embedding ")
            kinds = (False, True) if role == MAGNITUDE else (embedding,)  # a magnitude is called alike of both kinds
            place = next(
                (place for kind in kinds if (place := (match[1], kind)) in contents.by_path), (match[1], kinds[0])
            )
            adapted = contents.by_path.setdefault(place, AdaptedModule(*place))
            taken = adapted.tensors.setdefault(role.removeprefix("embedding "), tensor)
            return taken is tensor
    if match := _ORIGINAL.fullmatch(name):
        return contents.originals.setdefault(match[1] + match[2], tensor) is tensor
    if match := _BASE_LAYER.fullmatch(name) or _SAVED.fullmatch(name):
        name = match[1] + match[2]
        if match.re is _BASE_LAYER:
            contents.inside.add(name)
        elif name in contents.saved:
            return contents.again.setdefault(name, tensor) is tensor
    elif (before := contents.saved.get(name)) is not None and ".modules_to_save." in before.key:
        contents.saved[name] = tensor
        return contents.again.setdefault(name, before) is before
    return contents.saved.setdefault(name, tensor) is tensor
