"""What a NeMo 2 checkpoint holds for a run to go on: the distributed optimizer of Megatron-Core, and Lightning's account of the run, in common.pt.

optimizer.state.fp32_param.module.KEY  .exp_avg.  .exp_avg_sq.     fully_sharded_model_space, the default of NeMo 2.0 to 2.4 (ckpt_parallel_save_optim)
common.pt: optimizer                                               [{"optimizer": {"param_groups": [...]}, "param_state_sharding_type": ...}]
common.pt: global_step, loops, lr_schedulers, PreTrainingDataModule
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

from ckpt_core.sdk import Checkpoint, TargetBuilder, WriteRequest, dtypes, errors, ledgers, reading, schema
from ckpt_megatron.sdk import DistStates, GPTBuilder, lightning, optimizer_groups

_DROP = "convert the weights alone, with --training-state drop"
_SHARDING = "fully_sharded_model_space"
_KEPT = DistStates(
    {"fp32_param": reading.MASTER, **{kind: kind for kind in reading.MOMENTS}},
    flattened=True,
)
_LIGHTNING = "2.4.0"


def as_stepped(checkpoint: Checkpoint, request: WriteRequest) -> Checkpoint:
    """The checkpoint with the weights that its optimizer steps, where they are written in float32: masters beside them would be others."""
    kind = dtypes.commonest(request.dtype or assembly.dtype for assembly in checkpoint.tensors.values())
    if checkpoint.training is None or kind.size < dtypes.FP32.size:
        return checkpoint
    return TargetBuilder.stepped(checkpoint, request, pads=True)


@schema.dataclass(frozen=True)
class WrittenRun:
    """What common.pt says of a run, and what is kept of each parameter: nothing, where weights alone are written."""

    common: Mapping[str, Any] = field(default_factory=dict)
    states: DistStates = DistStates({})
    losses: list[ledgers.Loss] = field(default_factory=list)

    @classmethod
    def of(cls, builder: GPTBuilder) -> WrittenRun:
        """The run of a builder's state, whose groups become Megatron's. `NotCarried` for a state that no NeMo 2 goes on from."""
        training = builder.training
        if training is None:
            return cls()
        if builder.layout.ep > 1:
            raise errors.NotCarried(
                "experts that expert parallel ranks share out have an optimizer to themselves, which is not written into NeMo 2",
                found=f"ep={builder.layout.ep}",
                fix=_DROP,
            )
        places: dict[Any, dict[str, None]] = {}
        for name, native in builder.natives().items():
            if builder.moments(reading.EXP_AVG, {name: native}) and not native.row.copy:
                place = optimizer_groups.place_of(name, len(native.shape), False)
                places.setdefault(place, {}).update(dict.fromkeys(piece.parameter for piece in native.pieces))
        ordered = {place: list(places[place]) for place in optimizer_groups.ORDER if place in places}
        groups, losses = optimizer_groups.written_groups(training, ordered)
        builder.training = training = replace(training, groups=tuple(groups))
        bodies = [
            _body(group, optimizer_groups.body_of(group, place, training.step, True, {}))
            for place, group in zip(ordered, groups, strict=True)
        ]
        losses += reading.assumed_of(training, groups)
        if training.consumed_samples is None:
            why = "the source does not count them: the data begins anew"
            losses.append(ledgers.Loss("assumed", "0 consumed samples", why))
        optimizer = {"optimizer": {"param_groups": bodies}, "param_state_sharding_type": _SHARDING}
        common = {
            "epoch": 0,
            "pytorch-lightning_version": _LIGHTNING,
            "state_dict": {},
            "callbacks": {},
            "optimizer_states": {},
            **lightning.counters(training),
            "PreTrainingDataModule": {"consumed_samples": training.consumed_samples or 0},
            "optimizer": [optimizer],
        }
        return cls(common, _KEPT, losses)


def _body(group: reading.Group, body: Mapping[str, Any]) -> dict[str, Any]:
    """A group as NeMo 2 keeps it: it applies the multiples of learning rate and weight decay itself, and renames them (lightning/_strategy_lib.py)."""
    base = group.lr if group.initial_lr is None else group.initial_lr
    renamed = {f"pre_{key}" if key in ("wd_mult", "lr_mult") else key: value for key, value in body.items()}
    more = {"max_lr": base, "min_lr": None, "initial_lr": base, "pre_mult_lr": base, "pre_mult_wd": group.weight_decay}
    return {key: value for key, value in renamed.items() if key != "default_config"} | more
