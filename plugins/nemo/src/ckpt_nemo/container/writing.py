"""Planning the files of a NeMo 1 checkpoint, whatever model is in them.

A writer of a kind of model makes `Members`: the weights by their names in the archive. `packed` puts them, the config
and the tokenizer's files into a tar, into a folder, or into the files of a training run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ckpt_core.sdk import DType, Loss, Native, Placement, Refusal, Sidecar, Target, disk, documents, torch_files, trees
from ckpt_nemo.container.archive import COMPANIONS, CONFIG, RANK_FILE, WEIGHTS
from ckpt_nemo.container.lightning import FOLDER, HPARAMS, SUFFIX, VERSION
from ckpt_nemo.container.saved import rank_folder

_ARCHIVE = "model.nemo"
_EMBEDDED = 64 << 20  # bytes of one companion
STEP = "step=0-consumed_samples=0.0"


@dataclass(frozen=True)
class Constant:
    """A tensor whose values are known in advance: a buffer."""

    dtype: DType
    shape: tuple[int, ...]
    data: bytes


Entry = tuple[Native, DType] | Constant | None
State = Mapping[str, Entry]
"""The state dict of one rank, or of one of its virtual stages, by stored name and in the order of the modules.

None stands for the extra state of a module that has none."""


@dataclass
class Members:
    """Files by name, and where tensors go in them; a name is that in the archive."""

    files: dict[str, disk.OutputFile | bytes] = field(default_factory=dict)
    placements: list[Placement] = field(default_factory=list)


@dataclass(frozen=True)
class Form:
    """How the checkpoint is kept: the container, and for `ckpt` the name of the step and the config for its files."""

    container: str
    step: str = STEP
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def training(self) -> dict[str, Any]:
        """What Lightning stores besides weights, of a run that is yet to start."""
        return {
            "epoch": 0,
            "global_step": 0,
            VERSION: "2.0.7",
            "loops": {},
            "callbacks": {},
            "optimizer_states": [],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": {"cfg": dict(self.config)},
        }


def container_for(option: object, destination: str) -> str:
    """The container that is asked for; else an archive."""
    container = str(option or "nemo")
    if container != "nemo" and destination.endswith(".nemo"):
        raise Refusal(
            f"a {container} is no .nemo file",
            found=f"-o container={container} and {destination}",
            fix="leave the option out",
        )
    return container


def add_rank(
    members: Members, place: tuple[int, int], ranks: tuple[int, int], stages: Sequence[State], form: Form
) -> None:
    """Enter one rank's file, which has one state dict or, for virtual pipeline stages, several."""
    if len(stages) > 1 and form.container != "ckpt":
        raise Refusal(
            "a .nemo has no virtual pipeline stages in rank files",
            found=f"vpp={len(stages)}",
            fix="use -o container=ckpt",
        )
    folder = rank_folder(*place, ranks)
    specs = [OrderedDict((name, _spec(value)) for name, value in stage.items()) for stage in stages]
    body: dict[str, Any] | OrderedDict[str, torch_files.TensorSpec | None] = specs[0]
    prefixes: list[tuple[str, ...]] = [()]
    name = f"{folder}{RANK_FILE}"
    if form.container == "ckpt":
        name = f"{FOLDER}/{folder}{form.step}{SUFFIX}"
        keys = ["state_dict"] if len(stages) == 1 else [f"model{number}" for number in range(len(stages))]
        body = form.training | {"state_dict": OrderedDict()} | dict(zip(keys, specs, strict=True))
        prefixes = [(key,) for key in keys]
    file, offsets = torch_files.plan_nest(name, body)
    literals = list(file.literals)
    for prefix, stage in zip(prefixes, stages, strict=True):
        for stored_as, value in stage.items():
            if value is None:
                continue
            offset = offsets[(*prefix, stored_as)]
            if isinstance(value, Constant):
                literals.append((offset, value.data))
            else:
                members.placements.append(Placement(*value, name, offset))
    members.files[name] = replace(file, literals=tuple(sorted(literals)))


def _spec(value: Entry) -> torch_files.TensorSpec | None:
    if value is None:
        return None
    if isinstance(value, Constant):
        return torch_files.TensorSpec(value.dtype, value.shape)
    native, dtype = value
    return torch_files.TensorSpec(dtype, native.shape)


def distributed_folder(form: Form) -> str:
    """Where the files of a distributed checkpoint go."""
    return f"{FOLDER}/{form.step}" if form.container == "ckpt" else WEIGHTS


def packed(
    members: Members,
    config: Mapping[str, Any],
    artifacts: Mapping[str, bytes],
    companions: Mapping[str, Sidecar],
    form: Form,
    target: Target,
) -> Target:
    """`target` with its files: `members`, the config, the tokenizer's files and the companions in the container of `form`."""
    target.config = config
    text = (
        documents.dump_yaml(dict(config)).encode()
        if form.container != "ckpt"
        else documents.dump_yaml({"cfg": dict(config)}).encode()
    )
    if form.container == "nemo":
        # an archive is planned with the content of its small members
        small = {name: file for name, file in companions.items() if file.size <= _EMBEDDED}
        target.held = {*target.held, *small}
        beside = {f"{COMPANIONS}/{name}": file.extent.read() for name, file in small.items()}
        held: dict[str, disk.OutputFile | bytes] = {**artifacts, **beside, CONFIG: text, **members.files}
        file, offsets = trees.plan_tar(_ARCHIVE, {f"./{name}": member for name, member in held.items()})
        target.files, target.single_file = [file], True
        target.placements = [
            replace(one, file=_ARCHIVE, offset=offsets[f"./{one.file}"] + one.offset) for one in members.placements
        ]
        return target
    target.sidecars = {f"{COMPANIONS}/{name}": file for name, file in companions.items()}
    target.documents = {HPARAMS if form.container == "ckpt" else CONFIG: text, **artifacts}
    for name, member in members.files.items():
        if isinstance(member, bytes):
            target.documents[name] = member
        else:
            target.files.append(member)
    target.placements = members.placements
    if form.container == "ckpt":
        why = "weights alone are written: start a run with model.restore_from_path or these weights, not by resuming"
        target.losses.append(Loss("unsaid", "optimizer states and the progress of training", why))
    return target
