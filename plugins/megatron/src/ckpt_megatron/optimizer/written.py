"""The state of a training as Megatron-LM loads it: which optimizer it is for, and what the files say beside its tensors.

optimizer=distributed    --use-distributed-optimizer: masters of every parameter, fully reshardable in torch_dist, flat buffers in torch
optimizer=plain          without it: the weights of an fp32 model are what it steps, and a model in half precision has masters
adam=fused               TransformerEngine's or Apex' FusedAdam, which a run on a GPU has: it counts the steps of a group
adam=torch               torch's AdamW, where neither is installed: it counts the steps of a parameter
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import field, replace
from typing import Any

from ckpt_core.sdk import Checkpoint, TargetBuilder, WriteRequest, dtypes, errors, ledgers, reading, schema, torch_files
from ckpt_megatron.builder import GPTBuilder
from ckpt_megatron.files import FSDP_DTENSOR
from ckpt_megatron.layout import DIVISIBLE, FileLayout, keeping_rows
from ckpt_megatron.optimizer.groups import DROP, ORDER, Divided, body_of, place_of, written_groups
from ckpt_megatron.optimizer.model_space import DistStates
from ckpt_megatron.optimizer.progress import CONSUMED, consumed_samples, rates_of, written_schedule

_FULLY_RESHARDABLE = "fully_reshardable"
_DISTRIBUTED = DistStates({"param": reading.MASTER, "exp_avg": reading.EXP_AVG, "exp_avg_sq": reading.EXP_AVG_SQ})
_MOMENTS = DistStates({"exp_avg": reading.EXP_AVG, "exp_avg_sq": reading.EXP_AVG_SQ})
_HALF = DistStates({"fp32_param": reading.MASTER, **_MOMENTS.kinds}, of_half=True)


@schema.dataclass(frozen=True)
class OptimizerChoice:
    """The optimizer that a state is written for. `masters`: it keeps masters beside the weights."""

    distributed: bool
    fused: bool
    masters: bool
    batch: int | None

    @classmethod
    def of(cls, request: WriteRequest, container: str, dtype: dtypes.DType) -> OptimizerChoice:
        """What the options ask for; without them a distributed optimizer in torch_dist, a plain one in torch files, and FusedAdam."""
        usual = "distributed" if container == "torch_dist" else "plain"
        distributed = (request.options.get("optimizer") or usual) == "distributed"
        return cls(
            distributed,
            (request.options.get("adam") or "fused") == "fused",
            distributed or dtype != dtypes.FP32,
            request.options.get("global_batch_size"),
        )

    @property
    def dist_states(self) -> DistStates:
        """What it keeps of each parameter in torch_dist."""
        return _DISTRIBUTED if self.distributed else _HALF if self.masters else _MOMENTS


def stepped(checkpoint: Checkpoint, request: WriteRequest, dtype: dtypes.DType) -> Checkpoint:
    """The checkpoint whose weights are those that an optimizer steps, where they are written in fp32 (`dtype`): masters beside them would be others."""
    return TargetBuilder.stepped(checkpoint, request, pads=True) if dtype == dtypes.FP32 else checkpoint


def continued(layout: FileLayout, checkpoint: Checkpoint, request: WriteRequest) -> FileLayout:
    """The layout of files that a run goes on from: those of an iteration, with as many rows of padding as it was trained with where ranks can share them.

    `NotCarried` for files that Megatron-LM takes no state from.
    """
    state, tokens = checkpoint.training, checkpoint.architecture.tokens
    assert state is not None
    if layout.container == FSDP_DTENSOR or layout.names == "legacy":
        where = "Megatron-FSDP's files" if layout.container == FSDP_DTENSOR else "files of the models before Core"
        raise errors.NotCarried(f"the state of a training is not written into {where}", fix=DROP)
    iteration = state.iterations or state.step
    if layout.iteration is not None and layout.iteration < state.step:
        raise errors.NotCarried(
            "an iteration that is asked for is before the steps that the optimizer has made",
            found=f"-o iteration={layout.iteration}",
            expected=f"{iteration}",
            fix=f"leave out -o iteration; or {DROP}",
        )
    layout = replace(layout, iteration=iteration if layout.iteration is None else layout.iteration)
    if tokens is None or request.options.get(DIVISIBLE) is not None:
        return layout
    multiple = keeping_rows(tokens.vocabulary, tokens.padded_vocabulary, layout.multiple, layout.tp)
    return layout if multiple is None else replace(layout, multiple=multiple)


@schema.dataclass
class WrittenState:
    """The state of a training in the files: what `args` and the common state say, and its groups.

    `bodies` are what the files say of each group, by the parameters that are in it, without their numbers.
    """

    choice: OptimizerChoice
    step: int
    args: dict[str, Any]
    schedule: dict[str, Any]
    bodies: dict[Divided, dict[str, Any]]
    losses: list[ledgers.Loss] = field(default_factory=list)

    @property
    def decisions(self) -> dict[str, str]:
        """The choices by which it is written."""
        return {
            "optimizer": "distributed" if self.choice.distributed else "plain",
            "adam": "fused" if self.choice.fused else "torch",
        }

    @property
    def optimizers(self) -> list[list[Divided]]:
        """The groups of each optimizer: experts that expert parallel ranks share out have one of their own."""
        apart = [place for place in self.bodies if place.experts]
        dense = [place for place in self.bodies if not place.experts]
        return [dense, apart] if apart else [dense]

    def common(self) -> tuple[dict[str, Any], dict[tuple[str | int, ...], bytes]]:
        """What the common state of torch_dist has of it, and the bytes of the tensors in that."""
        several = [self._of_optimizer(places) for places in self.optimizers]
        told = several[0] if len(several) == 1 else dict(enumerate(several))
        steps: dict[tuple[str | int, ...], bytes] = {}
        if not (self.choice.distributed or self.choice.fused):
            for number in range(len(several)):
                inside = ("optimizer", *(() if len(several) == 1 else (number,)), *self._within)
                steps[*inside, "state", "common_step"] = struct.pack("<f", float(self.step))
        return {"optimizer": told, "opt_param_scheduler": self.schedule}, steps

    @property
    def content(self) -> dict[str, Any]:
        """What `content_metadata` has of it."""
        if not self.choice.distributed:
            return {}
        return {
            "distrib_optim_sharding_type": _FULLY_RESHARDABLE,
            "distrib_optim_fully_reshardable_mem_efficient": False,
        }

    @property
    def _within(self) -> tuple[str, ...]:
        """Where the inner optimizer stands: that of an fp32 model has no other around it."""
        return ("optimizer",) if self.choice.masters else ()

    def counted(self, places: Sequence[Divided]) -> list[dict[str, Any]]:
        """The groups of a distributed optimizer, which counts the steps of a group, whichever Adam is below (distrib_optimizer.py, `state_dict`)."""
        step = self.step if self.choice.fused else float(self.step)
        return [self.bodies[place] | {"step": step} for place in places]

    def _of_optimizer(self, places: Sequence[Divided]) -> dict[str, Any]:
        if self.choice.distributed:
            return {
                "optimizer": {"param_groups": self.counted(places)},
                "param_state_sharding_type": _FULLY_RESHARDABLE,
            }
        state = {} if self.choice.fused else {"common_step": torch_files.TensorSpec(dtypes.FP32, ())}
        inner = {"state": state, "param_groups": [self.bodies[place] for place in places]}
        return dict.fromkeys(self._within, inner) or inner


def written_state(builder: GPTBuilder, choice: OptimizerChoice, apart: bool) -> WrittenState | None:
    """What the files say of the builder's state, whose groups become Megatron's; `apart`: expert parallel ranks share experts out.

    `NotCarried` for a state that Megatron-LM can't go on from.
    """
    training = builder.training
    if training is None:
        return None
    places: dict[Divided, dict[str, None]] = {}
    for name, native in builder.natives().items():
        parameters = dict.fromkeys(piece.parameter for piece in native.pieces)
        if builder.moments(reading.EXP_AVG, {name: native}) and not native.row.copy:
            places.setdefault(place_of(name, len(native.shape), apart), {}).update(parameters)
    ordered = {place: list(places[place]) for place in ORDER if place in places}
    groups, losses = written_groups(training, ordered)
    builder.training = replace(training, groups=tuple(groups))
    samples = consumed_samples(training, choice.batch)
    schedule = written_schedule(training, samples)
    rates = rates_of(schedule)
    return WrittenState(
        choice,
        training.step,
        {
            CONSUMED: samples,
            "no_save_rng": True,  # there are no random states: a loader that knows it asks for none
            "use_distributed_optimizer": choice.distributed,
            "dist_ckpt_optim_fully_reshardable": choice.distributed,
            "optimizer": "adam",
            **({} if training.clip_grad is None else {"clip_grad": training.clip_grad}),
            "override_opt_param_scheduler": schedule["lr_decay_style"] is None,
            "use_checkpoint_opt_param_scheduler": schedule["lr_decay_style"] is not None,
        },
        schedule,
        {
            place: body_of(group, place, training.step, choice.fused, rates)
            for place, group in zip(ordered, groups, strict=True)
        },
        losses,
    )
