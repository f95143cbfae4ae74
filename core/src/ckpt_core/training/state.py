"""What a run needs to go on, besides the weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from typing import Any

from ckpt_core.architecture import Parameter
from ckpt_core.lean import dataclass
from ckpt_core.tensors.assembly import LazyParameter
from ckpt_core.text import plural
from ckpt_core.training.moments import EXP_AVG, EXP_AVG_SQ, KINDS, MASTER, Kind, moment_of, named

ADAMW = "adamw"
"""Adam with decoupled weight decay: torch's AdamW, Apex' and Transformer Engine's FusedAdam in their usual mode."""
ADAM = "adam"
"""Adam whose weight decay is added to the gradient (L2)."""


@dataclass(frozen=True)
class Group:
    """Parameters by canonical name, and how the optimizer steps them. `lr` is that of the next step, `initial_lr` the one that
    the schedule scales, where the source says it."""

    parameters: tuple[str, ...]
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    initial_lr: float | None = None


@dataclass(frozen=True)
class Schedule:
    """Where the schedule of the learning rate stands: `position` counts what `unit` says, `step` or `sample`.

    Its curve is a setting of the run, which frameworks do not say alike. `native` is what a framework keeps of it, as it was found,
    by the format's name.
    """

    position: int | None = None
    unit: str = "step"
    next_lr: float | None = None
    native: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """The state of a training.

    `step` is how many updates the optimizer has made: the next one is number `step + 1`. `iterations` counts those that it skipped
    too (`skipped_steps`, where a loss scale overflowed). `frozen` are the parameters that are not trained, by canonical name.

    `master`, `exp_avg` and `exp_avg_sq` are lazy tensors by canonical parameter, of every parameter that is trained; a tensor's own name says
    what it is (`optimizer.exp_avg/...`). `own_masters`: masters lie beside the weights, which are those rounded; where they do not, the weights
    themselves are what the optimizer steps.
    """

    step: int
    groups: tuple[Group, ...]
    optimizer: str = ADAMW
    schedule: Schedule = Schedule()
    iterations: int | None = None
    consumed_samples: int | None = None
    consumed_tokens: int | None = None
    skipped_steps: int | None = None
    loss_scale: float | None = None
    clip_grad: float | None = None
    frozen: tuple[str, ...] = ()
    own_masters: bool = False
    master: Mapping[str, LazyParameter] = field(default_factory=dict, repr=False)
    exp_avg: Mapping[str, LazyParameter] = field(default_factory=dict, repr=False)
    exp_avg_sq: Mapping[str, LazyParameter] = field(default_factory=dict, repr=False)

    def of(self, kind: Kind) -> Mapping[str, LazyParameter]:
        """The tensors of a kind by canonical parameter."""
        return {MASTER: self.master, EXP_AVG: self.exp_avg, EXP_AVG_SQ: self.exp_avg_sq}[kind]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What is kept besides the weights."""
        return (MASTER, EXP_AVG, EXP_AVG_SQ) if self.own_masters else (EXP_AVG, EXP_AVG_SQ)

    @functools.cached_property
    def tensors(self) -> dict[str, LazyParameter]:
        """What is kept besides the weights, by the tensors' own names."""
        return {named(kind, name): tensor for kind in self.kinds for name, tensor in self.of(kind).items()}

    @property
    def bytes(self) -> int:
        """How many bytes these tensors take as they are stored."""
        return sum(tensor.parameter.elements * tensor.dtype.size for tensor in self.tensors.values())

    @property
    def next_lr(self) -> float | None:
        """The learning rate of the next step, where one is known for all groups."""
        rates = {group.lr for group in self.groups}
        return self.schedule.next_lr if self.schedule.next_lr is not None else rates.pop() if len(rates) == 1 else None

    def of_parameters(self, known: Mapping[str, Parameter]) -> Training:
        """The same state, whose tensors are of these parameters, which differ by how many of their rows are padding."""
        held = {
            kind: {
                name: replace(tensor, parameter=moment_of(kind, known[name])) for name, tensor in self.of(kind).items()
            }
            for kind in KINDS
        }
        return replace(self, master=held[MASTER], exp_avg=held[EXP_AVG], exp_avg_sq=held[EXP_AVG_SQ])

    def still_to_do(self) -> Iterator[str]:
        """What a user has to see to for the run to go on, in sentences: the files can't say it."""
        rate = "" if self.next_lr is None else f": the next step has learning rate {self.next_lr:.9g}"
        yield f"set the learning rate schedule, which stands after {plural(self.step, 'step')}{rate}"
        if self.consumed_samples is not None:
            tokens = "" if self.consumed_tokens is None else f" ({plural(self.consumed_tokens, 'token')})"
            yield f"set the data loader to skip {plural(self.consumed_samples, 'sample')}{tokens}"
        else:
            yield f"set the data loader to skip what {plural(self.iterations or self.step, 'iteration')} consumed"
        if self.frozen:
            more = f" and {len(self.frozen) - 1} more" if len(self.frozen) > 1 else ""
            yield f"freeze {self.frozen[0]}{more} again: the source does not train them"
        yield "dropout masks and the order of data after the switch are new; with dropout 0 nothing changes"
