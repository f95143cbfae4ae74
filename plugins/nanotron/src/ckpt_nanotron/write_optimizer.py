"""Writing the optimizer of a run beside its weights: the files that nanotron's own loader asks for.

    optimizer/optimizer_config.json      which optimizer, on how many ranks; with ZeRO-1 the range of each parameter that each rank steps
    optimizer/optimizer_pp-0-of-1_[dp-1-of-2_]tp-0-of-2_exp-0-of-1.pt
    lr_scheduler/lr_scheduler.pt         release 0.4; main has one for each file of the optimizer

Torch takes a state by its number, so the order within a file is that in which the model class registers its parameters.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import TargetBuilder, dtypes, errors, layouts, ledgers, reading, schema, torch_files
from ckpt_nanotron.config import Release
from ckpt_nanotron.optimizer import CONFIG, MASTERS, divided

# The blocks of a layer as its class registers them, where the tables have another order (0.4: models/llama.py, models/starcoder2.py; main: models/qwen.py, nn/moe.py).
_IN_LAYER = (
    "input_layernorm", "ln_1",
    "attn.qkv.q.bias", "attn.qkv.q.weight", "attn.qkv.kv.bias", "attn.qkv.kv.weight", "attn",  # a ParameterDict of torch sorts its names
    "post_attention_layernorm", "ln_2", "mlp.gate_up_proj", "mlp.down_proj", "mlp.router", "mlp.shared_expert.", "mlp.shared_expert_gate", "mlp.experts",
    "ff.c_fc", "ff.c_proj",
)  # fmt: skip
# A row-parallel linear adds its bias on the first tensor parallel rank, and the others have no such parameter (parallel/tensor_parallel/nn.py, TensorParallelRowLinear).
_ON_FIRST_RANK = (".attn.dense.bias", ".attn.o.bias", ".ff.c_proj.bias")
_BLOCK = re.compile(r"model\.decoder\.(\d+)\.pp_block\.(.+)")


@schema.dataclass(frozen=True)
class Ranks:
    """How a run is divided. With `zero` 1 each of `dp` ranks steps a range of every parameter; with 0 all of them step the whole."""

    tp: int
    pp: int
    dp: int
    zero: int

    @property
    def shares(self) -> int:
        """In how many ranges a parameter is stepped."""
        return self.dp if self.zero else 1

    def file(self, kind: str, tp: int, pp: int, dp: int) -> str:
        """The name of a file of one rank."""
        share = f"_dp-{dp}-of-{self.dp}" if self.zero else ""
        return f"{kind}_pp-{pp}-of-{self.pp}{share}_tp-{tp}-of-{self.tp}_exp-0-of-1.pt"

    def ranges(self, elements: int) -> dict[int, tuple[int, int]]:
        """The range of a flattened parameter that each data parallel rank steps."""
        return divided(elements, self.shares)


def registered(names: Sequence[str]) -> list[str]:
    """The names of a model's parameters in the order in which its class registers them."""

    def place(name: str) -> tuple[int, int, int]:
        block = _BLOCK.fullmatch(name)
        if block:
            inside = next(n for n, prefix in enumerate(_IN_LAYER) if block[2].startswith(prefix))
            return 1, int(block[1]), inside
        return (3 if ".lm_head." in name else 2 if ".final_layer_norm." in name else 0), 0, 0

    return sorted(names, key=place)


def add_optimizer(
    builder: TargetBuilder, release: Release, step: str, ranks: Ranks, stages: Mapping[str, int], head: int
) -> list[ledgers.Loss]:
    """The files of the optimizer and of its schedule in the folder `step`, if the builder has a state; what of it is not as it was.

    `stages` are the pipeline stages of the native tensors by name. A tied head lies on stage `head`, which has moments of its own where that is not
    the stage of the embedding: the same ones.
    """
    if builder.training is None:
        return []
    if builder.training.optimizer != reading.ADAMW and any(group.weight_decay for group in builder.training.groups):
        raise errors.NotCarried(
            "the source adds weight decay to the gradients (L2), and nanotron's adamW decays the weights",
            fix="convert the weights alone, with --training-state drop",
        )
    whole = builder.natives()
    names = registered(list(builder.moments(reading.EXP_AVG, whole)))
    losses: list[ledgers.Loss] = []
    if release.name == "0.4":  # it has one group, of all parameters
        together = list(dict.fromkeys(piece.parameter for name in names for piece in whole[name].pieces))
        groups, losses = reading.regrouped(builder.training, [together])
        builder.training = replace(builder.training, groups=tuple(groups))
    group_of = {
        name: group
        for group, members in reading.named_groups(builder.training, {name: whole[name] for name in names})
        for name in members
    }
    embedding = next(name for name in whole if name.endswith("token_embedding.weight"))
    tied = not any(".lm_head." in name and not native.row.copy for name, native in whole.items())
    offsets: dict[str, dict[int, tuple[int, int]]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for tp in range(ranks.tp):
        natives = builder.natives({"tp": (tp, ranks.tp)})
        for pp in range(ranks.pp):
            here = [name for name in names if stages[name] == pp and not (tp and name.endswith(_ON_FIRST_RANK))]
            if tied and embedding in names and pp == head != stages[embedding]:
                here.append(embedding)
            held = {name: natives[name] for name in here}
            offsets |= {name: ranks.ranges(math.prod(native.shape)) for name, native in held.items()}
            shapes |= {name: native.shape for name, native in held.items()}
            for dp in range(ranks.shares):
                groups = [group_of[name] for name in here]
                if release.name == "0.4":
                    groups = list(builder.training.groups)
                _add_file(builder, f"{step}/optimizer/{ranks.file('optimizer', tp, pp, dp)}", held, groups, ranks, dp)
                if release.name != "0.4":
                    path = f"{step}/lr_scheduler/{ranks.file('lr_scheduler', tp, pp, dp)}"
                    builder.documents[path] = _schedule(builder.training, groups, {}, path)
    if release.name == "0.4":
        path = f"{step}/lr_scheduler/lr_scheduler.pt"
        builder.documents[path] = _schedule(builder.training, builder.training.groups, None, path)
    kind = "OptimizerFromGradientAccumulator" if builder.training.own_masters else "NamedOptimizer"
    if ranks.zero:
        kind = "ZeroDistributedOptimizer"
    builder.documents[f"{step}/optimizer/{CONFIG}"] = _config(kind, ranks, offsets, shapes)
    return losses


def _add_file(
    builder: TargetBuilder,
    path: str,
    natives: Mapping[str, layouts.Native],
    groups: Sequence[reading.Group],
    ranks: Ranks,
    dp: int,
) -> None:
    """The file of one rank. `groups` are one of all its parameters, or one for each."""
    training = builder.training
    assert training is not None
    kinds = training.kinds if training.own_masters else reading.MOMENTS
    ranges = {name: ranks.ranges(math.prod(native.shape)).get(dp) for name, native in natives.items()}
    numbered = {name: number for number, name in enumerate(name for name, share in ranges.items() if share)}

    def spec(name: str) -> torch_files.TensorSpec:
        start, stop = ranges[name] or (0, 0)
        return torch_files.TensorSpec(dtypes.FP32, (stop - start,) if ranks.zero else natives[name].shape)

    members = [[numbered[name]] if name in numbered else [] for name in natives]
    if len(groups) == 1:
        members = [list(numbered.values())]
    value: dict[str, Any] = {
        "state": {
            number: {
                "step": torch_files.TensorSpec(dtypes.FP32, ()),
                **{kind: spec(name) for kind in reading.MOMENTS},
            }
            for name, number in numbered.items()
        },
        "param_groups": [
            reading.adam.said_by(group, numbers, training.optimizer)
            for group, numbers in zip(groups, members, strict=True)
        ],
        "names": {number: name for name, number in numbered.items()},
    }
    if training.own_masters:
        value[MASTERS] = {name: spec(name) for name in numbered}
    step = struct.pack("<f", float(training.step))
    file, offsets = torch_files.plan_nest(
        path, value, {("state", number, "step"): step for number in numbered.values()}
    )
    builder.files.append(file)
    for kind in kinds:
        for name, native in builder.moments(kind, {name: natives[name] for name in numbered}).items():
            at = offsets[(MASTERS, name) if kind == reading.MASTER else ("state", numbered[name], kind)]
            for before, box in native.flat_range(*(ranges[name] or (0, 0))):
                builder.place(box, path, at + before * dtypes.FP32.size)


def _schedule(training: reading.Training, groups: Sequence[reading.Group], function: object, path: str) -> bytes:
    """As torch's LambdaLR saves itself; `function` is what it says of the curve, which nanotron makes of config.yaml."""
    schedule = training.schedule
    position = schedule.position if schedule.unit == "step" and schedule.position is not None else training.step
    held = {
        "base_lrs": [group.lr if group.initial_lr is None else group.initial_lr for group in groups],
        "last_epoch": position,
        "_step_count": position + 1,
        "_is_initial": False,
        "_get_lr_called_within_step": False,
        "_last_lr": [group.lr for group in groups],
        "lr_lambdas": [function for _ in groups],
    }
    return torch_files.torch_bytes(held, path)


def _config(
    kind: str, ranks: Ranks, offsets: Mapping[str, Mapping[int, tuple[int, int]]], shapes: Mapping[str, Sequence[int]]
) -> bytes:
    """`optimizer_config.json`, all of whose numbers are text."""
    sizes = {"tp_size": ranks.tp, "dp_size": ranks.dp, "pp_size": ranks.pp, "expert_parallel_size": 1}
    configs: dict[str, Any] = {}
    if ranks.zero:
        configs["param_name_to_dp_rank_offsets"] = {
            name: {str(rank): list(map(str, ends)) for rank, ends in of.items()} for name, of in offsets.items()
        }
        configs["orig_param_shapes"] = {name: list(map(str, shape)) for name, shape in shapes.items()}
    body = {"type": kind, "parallelism": {name: str(size) for name, size in sizes.items()}, "configs": configs}
    return json.dumps(body).encode()
