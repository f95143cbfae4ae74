"""The optimizer of a job that goes on, as zero-1 saves it (see `optimizer`), and Lightning's account of the run beside it."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

from ckpt_core.sdk import TargetBuilder, dtypes, errors, layouts, ledgers, reading, schema, torch_files
from ckpt_megatron.sdk import lightning
from ckpt_nxdt.contents import USER_CONTENT
from ckpt_nxdt.masters import KEY, UNDECAYED
from ckpt_nxdt.places import OPTIMIZER
from ckpt_nxdt.weights import Arrangement
from ckpt_nxdt.xser import Path, plan_nested_xser

_DROP = "convert the weights alone, with --training-state drop"
_LIGHTNING = "2.5.0"
_BIASES, _NORMS = UNDECAYED


@schema.dataclass
class WrittenOptimizer:
    """The optimizer over `ranks` data parallel ranks. `words` are those of the names of parameters in the second of the `groups`."""

    ranks: int
    words: tuple[str, ...]
    groups: list[reading.Group]
    training: reading.Training
    losses: list[ledgers.Loss] = field(default_factory=list)

    @property
    def decisions(self) -> dict[str, object]:
        """What a reader of the receipt has to know."""
        return {"dp": self.ranks, "undecayed": "norms" if self.words == _NORMS else "biases"}

    @property
    def account(self) -> bytes:
        """user_content.pt: what Lightning saves beside weights and optimizer."""
        counted = lightning.counters(self.training)
        samples = self.training.consumed_samples
        data = {} if samples is None else {"MegatronDataModule": {"consumed_samples": samples}}
        said = {"epoch": 0, "pytorch-lightning_version": _LIGHTNING, "callbacks": {}, **counted, **data}
        return torch_files.torch_bytes(said, USER_CONTENT)

    def add_rank(self, builder: TargetBuilder, rank: str, natives: Mapping[str, layouts.Native], xser: bool) -> None:
        """The files of all data parallel ranks of a model's file, which has these tensors in the order of the modules."""
        names: list[list[str]] = [[], []]
        for name in natives:
            names[any(word in name for word in self.words)].append(name)
        order = [*names[0], *names[1]]
        held = {name: self._padded(natives[name]) for name in order}
        for number in range(self.ranks):
            path = f"{OPTIMIZER}/dp_rank_{number:02d}_{rank}"
            shards = {name: native.block(number, self.ranks) for name, native in held.items()}
            value, known, places = self._content(builder, names, natives, shards)
            if xser:
                plan = plan_nested_xser(path, value, known)
                builder.files += plan.files
                builder.documents |= plan.documents
                for inside, (file, offset) in plan.places.items():
                    builder.place(places[inside], file, offset)
            else:
                planned, offsets = torch_files.plan_nest(path, value, known)
                builder.files.append(planned)
                for inside, native in places.items():
                    builder.place(native, path, offsets[inside])

    def _padded(self, native: layouts.Native) -> layouts.Native:
        """A tensor with rows of zeros behind its own, so that all data parallel ranks have as many."""
        rows, *inner = native.shape
        more = -rows % self.ranks
        padding = native.padding + more * math.prod(inner)
        return replace(native, shape=(rows + more, *inner), padding=padding)

    def _content(
        self,
        builder: TargetBuilder,
        names: list[list[str]],
        natives: Mapping[str, layouts.Native],
        shards: Mapping[str, layouts.Native],
    ) -> tuple[dict[str, Any], dict[Path, bytes], dict[Path, layouts.Native]]:
        """The optimizer of a data parallel rank: its nest, the bytes that are known, and the tensors by their paths in it."""
        known: dict[Path, bytes] = {}
        places: dict[Path, layouts.Native] = {}
        states: dict[int, dict[str, torch_files.TensorSpec]] = {}
        masters: dict[int, torch_files.TensorSpec] = {}
        step, scalar = struct.pack("<f", float(self.training.step)), torch_files.TensorSpec(dtypes.FP32, ())
        for number, (name, shard) in enumerate(shards.items()):
            spec = torch_files.TensorSpec(dtypes.FP32, shard.shape)
            states[number] = {"step": scalar, **dict.fromkeys(reading.MOMENTS, spec)}
            known["base_state", number, "step"] = step
            kept: list[tuple[Path, reading.Kind]] = [(("base_state", number, kind), kind) for kind in reading.MOMENTS]
            if self.training.own_masters:
                masters[number] = spec
                kept.append(((KEY, number), reading.MASTER))
            for inside, kind in kept:
                if shard.pieces:
                    (places[inside],) = builder.moments(kind, {name: shard}).values()
                else:  # of fewer rows than ranks, the last ranks have padding alone
                    known[inside] = bytes(math.prod(shard.shape) * dtypes.FP32.size)
        numbers = iter(range(len(shards)))
        bodies = [
            reading.adam.said_by(group, [next(numbers) for _ in of], self.training.optimizer)
            for group, of in zip(self.groups, names, strict=True)
        ]
        content: dict[str, Any] = {
            "state": {},
            "param_groups": bodies,
            "base_state": states,
            "shape_info": {
                number: torch_files.Opaque("torch", "Size", args=(natives[name].shape,))
                for number, name in enumerate(shards)
            },
        }
        return (content | {KEY: masters} if masters else content), known, places


def optimizer_of(
    builder: TargetBuilder, arrangement: Arrangement, options: Mapping[str, Any]
) -> WrittenOptimizer | None:
    """What is written of the builder's state of a training; None where it has none. `NotCarried` for what no job can go on from."""
    training = builder.training
    if training is None:
        return None
    if arrangement.layout != "native":
        raise errors.NotCarried(
            "AWS's converter writes weights alone, in an order in which no job trains",
            fix="leave out -o layout, or drop the state",
        )
    if training.frozen:
        raise errors.NotCarried(
            "a job steps every parameter of a model, and the source does not train some",
            found=training.frozen[0],
            fix=_DROP,
        )
    if training.optimizer != reading.ADAMW and any(group.weight_decay for group in training.groups):
        raise errors.NotCarried(
            "the source adds weight decay to the gradients (L2), and a job's AdamW decays the weights", fix=_DROP
        )
    ranks = options.get("dp")
    if ranks is not None and int(ranks) < 1:
        raise errors.UsageError("dp is at least 1", found=ranks)
    words = _NORMS if options.get("undecayed") == "norms" else _BIASES
    names: list[dict[str, None]] = [{}, {}]
    for name, native in builder.natives().items():
        if not native.row.copy:
            names[any(word in name for word in words)] |= dict.fromkeys(piece.parameter for piece in native.pieces)
        else:
            raise errors.NotCarried(
                f"{name} is a copy here of a parameter that is one in the source: a job trains the two apart", fix=_DROP
            )
    groups, losses = reading.regrouped(training, [list(of) for of in names], [None, 0.0])
    builder.training = replace(training, groups=tuple(group for group in groups if group.parameters))
    if training.consumed_samples is None:
        why = "the source does not count them: the data begins anew"
        losses.append(ledgers.Loss("assumed", "0 consumed samples", why))
    return WrittenOptimizer(int(ranks or 1), words, groups, builder.training, losses)
