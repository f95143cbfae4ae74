"""Planning the files of a NeMo 1 checkpoint, whatever model is in them.

A writer of a kind of model adds the weights to a `NemoBuilder`, by their names in the archive. `packed` puts them, the config
and the tokenizer's files into a tar, into a folder, or into the files of a training run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, replace
from typing import Any

from ckpt_core.sdk import (
    Checkpoint,
    Refusal,
    Target,
    TargetBuilder,
    WriteRequest,
    company,
    disk,
    documents,
    dtypes,
    errors,
    layouts,
    ledgers,
    reading,
    rewrites,
    schema,
    torch_files,
    trees,
)
from ckpt_megatron.sdk import lightning
from ckpt_nemo.container.archive import COMPANIONS, RANK_FILE, WEIGHTS
from ckpt_nemo.container.continuing import Groups, Path, optimizer_of_rank, step_name, unsaid
from ckpt_nemo.container.lightning import HPARAMS
from ckpt_nemo.container.opened import VERSION
from ckpt_nemo.container.optimizer import STATES, Undecayed
from ckpt_nemo.container.places import CONFIG, FOLDER, SUFFIX
from ckpt_nemo.container.saved import rank_folder

_ARCHIVE = "model.nemo"
_EMBEDDED = 64 << 20  # bytes of one companion
STEP = "step=0-consumed_samples=0.0"


@schema.dataclass(frozen=True)
class Constant:
    """A tensor whose values are known in advance: a buffer."""

    dtype: dtypes.DType
    shape: tuple[int, ...]
    data: bytes


Entry = layouts.Native | Constant | None
State = Mapping[str, Entry]
"""The state dict of one rank, or of one of its virtual stages, by stored name and in the order of the modules.

None stands for the extra state of a module that has none."""


@schema.dataclass(frozen=True)
class Form:
    """How the checkpoint is kept: the container, and for `ckpt` the name of the step, the config for its files, and the run that it continues."""

    container: str
    step: str = STEP
    config: Mapping[str, Any] = field(default_factory=dict)
    continued: reading.Training | None = None

    @property
    def training(self) -> dict[str, Any]:
        """What Lightning stores besides weights and optimizer: of a run that goes on, or of one that is yet to start."""
        return self._anew | (lightning.counters(self.continued) if self.continued is not None else {})

    @property
    def _anew(self) -> dict[str, Any]:
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


def as_stepped(checkpoint: Checkpoint, request: WriteRequest, dtype: dtypes.DType | None) -> Checkpoint:
    """The checkpoint with the weights that its optimizer steps, where NeMo keeps no masters beside them: they are in float32 then. `dtype` is that of the
    weights, or each one's own."""
    if checkpoint.training is None or not checkpoint.training.own_masters:
        return checkpoint
    kind = dtypes.commonest(dtype or assembly.dtype for assembly in checkpoint.tensors.values())
    return checkpoint if kind.size < dtypes.FP32.size else TargetBuilder.stepped(checkpoint, request, pads=True)


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
        trained: Checkpoint | None = None,
    ) -> None:
        kind = dtypes.commonest(dtype or assembly.dtype for assembly in model.tensors.values())
        # with megatron_amp_O2, weights in half precision have masters beside them; without it, weights are in float32
        super().__init__(model, tables, dtype, choices=choices, trained=trained, masters=kind.size < dtypes.FP32.size)
        self.form = form
        self.groups: Groups | None = None
        self.members: dict[str, disk.OutputFile | bytes] = {}

    def continue_run(self, undecayed: Undecayed, drops_empty: bool = False) -> None:
        """Write the state of the training along, if there is one; `undecayed` says how NeMo divides the parameters of such a model, and
        `drops_empty` whether it makes no group without any."""
        if self.training is None:
            return
        if self.form.container != "ckpt":
            raise errors.NotCarried("a .nemo holds a model, and no optimizer", fix="write it with -o container=ckpt")
        self.groups = Groups(self, undecayed, drops_empty)
        step = self.form.step if _says(self.form.step, self.training) else step_name(self.training)
        self.form = replace(self.form, step=step, continued=self.training)

    def add_rank(
        self,
        place: tuple[int, int],
        ranks: tuple[int, int],
        stages: Sequence[State],
        apart: Collection[str] = (),
    ) -> None:
        """Enter one rank's file, which has one state dict or, for virtual pipeline stages, several.

        `apart` are second names of modules, by which an optimizer does not know them.
        """
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
        kept: dict[Path, layouts.Native] = {}
        if self.groups is not None:
            weights = [
                {name: value for name, value in stage.items() if isinstance(value, layouts.Native)} for stage in stages
            ]
            optimizer, kept = optimizer_of_rank(self, self.groups, weights, apart)
            body |= {STATES: [optimizer]}
        file, offsets = torch_files.plan_nest(name, body)
        for inside, native in kept.items():
            self.place(native, name, offsets[(STATES, 0, *inside)])
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
        if self.training is not None and self.groups is not None:
            losses = [*losses, *self.groups.losses, *unsaid(self.training)]
        elif container == "ckpt":
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
            says=lightning.SAID,
        )

    def _pack(self, members: Mapping[str, disk.OutputFile | bytes]) -> None:
        """Make one file of `members`, and move the places of their tensors into it."""
        file, offsets = trees.plan_tar(_ARCHIVE, {f"./{name}": member for name, member in members.items()})
        self.files = [file]
        self.placements = [
            replace(one, file=_ARCHIVE, offset=offsets[f"./{one.file}"] + one.offset) for one in self.placements
        ]


def _says(step: str, training: reading.Training) -> bool:
    """Whether the name of a source's checkpoint still tells how far the run is."""
    return f"consumed_samples={training.consumed_samples}.0" in step


def distributed_folder(form: Form) -> str:
    """Where the files of a distributed checkpoint go."""
    return f"{FOLDER}/{form.step}" if form.container == "ckpt" else WEIGHTS
