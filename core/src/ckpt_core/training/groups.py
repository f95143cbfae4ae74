"""The groups of an optimizer as another framework divides its parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt_core.errors import NotCarried
from ckpt_core.layout import Native
from ckpt_core.ledger import Loss
from ckpt_core.training.state import ADAM, Group, Training


def regrouped(
    training: Training, wanted: Sequence[Sequence[str]], decays: Sequence[float | None] | None = None
) -> tuple[list[Group], list[Loss]]:
    """A group for each list of parameters, with the hyper-parameters that they have in the source.

    `decays` are the weight decays that the target gives to each group, whatever it is told; without one, or where it is None, the group has that of
    most of its elements. A loss names the parameters that the source decays otherwise. `NotCarried` where they differ in anything else.
    """
    found: list[Group] = []
    losses: list[Loss] = []
    by_name = {name: group for group in training.groups for name in group.parameters}
    for names, fixed in zip(wanted, decays or [None] * len(wanted), strict=True):
        old = {id(by_name[name]): by_name[name] for name in names}
        if not old:
            last = training.groups[-1]
            found.append(replace(last, parameters=(), weight_decay=last.weight_decay if fixed is None else fixed))
            continue
        kinds = {(group.lr, group.initial_lr, group.betas, group.eps) for group in old.values()}
        if len(kinds) > 1:
            raise NotCarried(
                f"{names[0]} and others of its group have different learning rates, betas or eps, and the target steps them alike",
                found="; ".join(
                    f"lr {lr:g}, betas {betas}, eps {eps:g}" for lr, _, betas, eps in sorted(kinds, key=str)
                ),
                fix="leave the state of the training behind with --training-state drop",
            )
        decay = _commonest_decay(training, by_name, names) if fixed is None else fixed
        others = [name for name in names if by_name[name].weight_decay != decay]
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            losses.append(
                Loss(
                    "assumed",
                    f"weight decay {decay:g} of {others[0]}{more}",
                    f"it was {by_name[others[0]].weight_decay:g}: the moments are right, and the regularisation changes",
                )
            )
        found.append(replace(next(iter(old.values())), parameters=tuple(names), weight_decay=decay))
    return found, losses


def assumed_of(training: Training, groups: Sequence[Group]) -> list[Loss]:
    """What is not as it was in a target whose loaders take learning rates from the files, and the kind of the optimizer from a program:
    the rate that a schedule scales, where the source says that of the next step alone, and weight decay that is added to the gradient."""
    losses = []
    if rates := sorted({group.lr for group in groups if group.initial_lr is None}):
        why = "the source says the rate of the next step alone, and a schedule that goes on scales that of the files, not of your arguments: set base_lrs and initial_lr"
        losses.append(Loss("assumed", f"peak learning rate {', '.join(f'{rate:.9g}' for rate in rates)}", why))
    if training.optimizer == ADAM and any(group.weight_decay for group in groups):
        why = "it adds weight decay to the gradients (L2): torch.optim.Adam, or adam_w_mode=False; AdamW, which a Trainer makes by itself, decays the weights"
        losses.append(Loss("assumed", "a program that goes on with Adam", why))
    return losses


def _commonest_decay(training: Training, by_name: Mapping[str, Group], names: Sequence[str]) -> float:
    """The weight decay of most elements of these parameters."""
    sizes: Counter[float] = Counter()
    for name in names:
        sizes[by_name[name].weight_decay] += training.exp_avg[name].parameter.elements
    return sizes.most_common(1)[0][0]


def named_groups(training: Training, natives: Mapping[str, Native]) -> Iterator[tuple[Group, list[str]]]:
    """The groups as they are, each with the names of the native tensors that hold its parameters.

    `NotCarried` where a tensor holds parameters of two groups.
    """
    of_name: dict[str, int] = {}
    number_of = {name: number for number, group in enumerate(training.groups) for name in group.parameters}
    for name, native in natives.items():
        numbers = {number_of[piece.parameter] for piece in native.pieces}
        if len(numbers) > 1:
            raise NotCarried(
                f"{name} holds parameters of several groups of the optimizer, and the target steps them alike"
            )
        of_name[name] = numbers.pop()
    for number, group in enumerate(training.groups):
        yield group, [name for name, found in of_name.items() if found == number]
