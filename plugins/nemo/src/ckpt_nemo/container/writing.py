"""Planning the files of a NeMo 1 checkpoint, whatever model is in them.

A writer of a kind of model adds the weights to a `NemoBuilder`, by their names in the archive. `packed` puts them, the config
and the tokenizer's files into a tar, into a folder, or into the files of a training run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ckpt_core.sdk import (
    Refusal,
    Target,
    TargetBuilder,
    company,
    disk,
    documents,
    dtypes,
    layouts,
    ledgers,
    rewrites,
    torch_files,
    trees,
)
from ckpt_nemo.container.archive import COMPANIONS, CONFIG, RANK_FILE, WEIGHTS
from ckpt_nemo.container.lightning import FOLDER, HPARAMS, SUFFIX, VERSION
from ckpt_nemo.container.saved import rank_folder

_ARCHIVE = "model.nemo"
_EMBEDDED = 64 << 20  # bytes of one companion
STEP = "step=0-consumed_samples=0.0"


@dataclass(frozen=True)
class Constant:
    """A tensor whose values are known in advance: a buffer."""

    dtype: dtypes.DType
    shape: tuple[int, ...]
    data: bytes


Entry = layouts.Native | Constant | None
State = Mapping[str, Entry]
"""The state dict of one rank, or of one of its virtual stages, by stored name and in the order of the modules.

None stands for the extra state of a module that has none."""


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


class NemoBuilder(TargetBuilder):
    """A NeMo 1 checkpoint as it is decided, kept in the way of `form`. Members of an archive have the order in which they are added."""

    def __init__(
        self,
        model: rewrites.Rewritable,
        tables: layouts.Tables,
        dtype: dtypes.DType | None,
        form: Form,
        *,
        choices: layouts.Chosen | None = None,
    ) -> None:
        super().__init__(model, tables, dtype, choices=choices)
        self.form = form
        self.members: dict[str, disk.OutputFile | bytes] = {}

    def add_rank(self, place: tuple[int, int], ranks: tuple[int, int], stages: Sequence[State]) -> None:
        """Enter one rank's file, which has one state dict or, for virtual pipeline stages, several."""
        form = self.form
        if len(stages) > 1 and form.container != "ckpt":
            raise Refusal(
                "a .nemo has no virtual pipeline stages in rank files",
                found=f"vpp={len(stages)}",
                fix="use -o container=ckpt",
            )
        folder = rank_folder(*place, ranks)
        specs = [OrderedDict((name, self._spec(value)) for name, value in stage.items()) for stage in stages]
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
                if isinstance(value, Constant):
                    literals.append((offsets[(*prefix, stored_as)], value.data))
                elif value is not None:
                    self.place(value, name, offsets[(*prefix, stored_as)])
        self.members[name] = replace(file, literals=tuple(sorted(literals)))

    def _spec(self, value: Entry) -> torch_files.TensorSpec | None:
        if value is None:
            return None
        return torch_files.TensorSpec(value.dtype if isinstance(value, Constant) else self.dtype_of(value), value.shape)

    def packed(
        self,
        config: Mapping[str, Any],
        artifacts: Mapping[str, bytes],
        companions: Mapping[str, company.Sidecar],
        *,
        held: Collection[str],
        losses: Sequence[ledgers.Loss],
        parallel: Mapping[str, int],
        decisions: Mapping[str, Any],
        said: Mapping[str, Any],
    ) -> Target:
        """The target: its members, the config, the tokenizer's files (`artifacts`) and the companions.

        `held` are the names of the source's sidecars that lie in the artifacts. See `Target` for the other arguments.
        """
        container = self.form.container
        text = documents.dump_yaml({"cfg": dict(config)} if container == "ckpt" else dict(config)).encode()
        sidecars: dict[str, company.Sidecar] = {}
        if container == "nemo":
            # an archive is planned with the content of its small members
            small = {name: file for name, file in companions.items() if file.size <= _EMBEDDED}
            beside = {f"{COMPANIONS}/{name}": file.extent.read() for name, file in small.items()}
            self._pack({**artifacts, **beside, CONFIG: text, **self.members})
            held = {*held, *small}
        else:
            self.documents |= {HPARAMS if container == "ckpt" else CONFIG: text, **artifacts}
            self.documents |= {name: member for name, member in self.members.items() if isinstance(member, bytes)}
            self.files += [member for member in self.members.values() if not isinstance(member, bytes)]
            sidecars = {f"{COMPANIONS}/{name}": file for name, file in companions.items()}
        if container == "ckpt":
            why = (
                "weights alone are written: start a run with model.restore_from_path or these weights, not by resuming"
            )
            losses = [*losses, ledgers.Loss("unsaid", "optimizer states and the progress of training", why)]
        return self.target(
            "nemo",
            sidecars=sidecars,
            parallel=parallel,
            decisions=decisions,
            losses=losses,
            said=said,
            held=held,
            config=config,
            single_file=container == "nemo",
        )

    def _pack(self, members: Mapping[str, disk.OutputFile | bytes]) -> None:
        """Make one file of `members`, and move the places of their tensors into it."""
        file, offsets = trees.plan_tar(_ARCHIVE, {f"./{name}": member for name, member in members.items()})
        self.files = [file]
        self.placements = [
            replace(one, file=_ARCHIVE, offset=offsets[f"./{one.file}"] + one.offset) for one in self.placements
        ]


def distributed_folder(form: Form) -> str:
    """Where the files of a distributed checkpoint go."""
    return f"{FOLDER}/{form.step}" if form.container == "ckpt" else WEIGHTS
