"""What passes between a reader and a writer: `Checkpoint` and `Target`, the intermediate representation and its company.

A reader turns a folder into a `Checkpoint`: an architecture, lazy canonical tensors, and everything else a
model comes with. A writer turns one into a `Target`: files whose every byte is either known already or the
image of a canonical tensor. The engine moves the bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any

from ckpt_core.architecture import Architecture, Parameter, parameters
from ckpt_core.errors import CkptError, ProblemsFound, Refusal
from ckpt_core.lazily import hints_in
from ckpt_core.lean import dataclass
from ckpt_core.ledger import Ledger, Loss
from ckpt_core.storage.archive.extent import Extent

if TYPE_CHECKING:
    from ckpt_core.launch import Launch
    from ckpt_core.layout import Native
    from ckpt_core.storage.bytes.files import FileState
    from ckpt_core.storage.bytes.output import OutputFile
    from ckpt_core.storage.dtypes import DType
    from ckpt_core.storage.tensor import Quantised, StoredTensor
    from ckpt_core.tensors.assembly import LazyParameter
    from ckpt_core.training import Training
else:
    hints_in(
        __name__,
        {
            "ckpt_core.launch": "Launch",
            "ckpt_core.layout": "Native",
            "ckpt_core.storage.bytes.files": "FileState",
            "ckpt_core.storage.bytes.output": "OutputFile",
            "ckpt_core.storage.dtypes": "DType",
            "ckpt_core.storage.tensor": "Quantised StoredTensor",
            "ckpt_core.tensors.assembly": "LazyParameter",
            "ckpt_core.training": "Training",
        },
    )


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A file that travels with a model as it is: tokenizer, chat template, generation config, licence.

    It is `size` bytes from byte `offset` of the file at `path` on: all of it, or a member of an archive. `made` are its bytes, where it
    lies in no file as it is and was made of what the one at `path` says.
    """

    path: str
    size: int
    offset: int = 0
    made: bytes | None = None

    @property
    def extent(self) -> Extent:
        return Extent(self.path, self.offset, self.size, self.made)

    @classmethod
    def made_of(cls, path: str, content: bytes) -> Sidecar:
        """A file with this content, which was made of what the one at `path` says."""
        return cls(path, len(content), made=content)


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint comes from, and what its reading rests on.

    `hints` are the layout choices of the source, by which the same format can be written again bit for bit;
    `origins` are those of earlier formats it went through, by format, as receipts recorded them.
    `evidence` says, in words, what decided the reading. `losses` are those that no file or key of the source stands for.
    `explanations` are what the source's own config says about facts, by their path: refusals quote them.
    `masters`: fp32 master weights exist beside the weights. `recorded`: a fitting receipt lies beside it. `named` are
    files outside of it that the user gave (`-o tokenizer=FILE`).
    """

    hints: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    evidence: Sequence[str] = ()
    losses: Sequence[Loss] = ()
    explanations: Mapping[str, str] = field(default_factory=dict)
    masters: bool = False
    recorded: bool = False
    named: tuple[str, ...] = ()


@dataclass(frozen=True)
class Adapter:
    """What makes a checkpoint an adapter, which is not a model, and changes one: its architecture is that of this model.

    `parameters` are its own tensors. `settings` say, in JSON's types, what is done with them: where two adapters have the same
    parameters, values and settings, they are the same. `base` is what its files call the model.
    """

    parameters: Mapping[str, Parameter]
    settings: Mapping[str, Any]
    base: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The intermediate representation of one checkpoint. Nobody changes one after it was made.

    `tensors` maps every canonical name to its lazy tensor. `files` are those that were read. `notes` are facts that
    change no output of the model but belong to it (`bos`, `eos`, `pad`, `max_positions`, ...). `sidecars` are the files
    that travel with it, by their names beside it. `parallel` is the layout found (`tp`, `pp`, ...). `ledger` says of
    every file and key of the source what became of it. Where `adapter` is there, this is not a model. `training` is the state of its
    training, where there is one and it was asked for.
    """

    format: str
    path: str
    architecture: Architecture
    tensors: Mapping[str, LazyParameter]
    files: Sequence[FileState]
    notes: Mapping[str, Any] = field(default_factory=dict)
    sidecars: Mapping[str, Sidecar] = field(default_factory=dict)
    parallel: Mapping[str, int] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    provenance: Provenance = Provenance()
    adapter: Adapter | None = None
    training: Training | None = None
    carried: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The canonical tensors that it must have, by name."""
        return parameters(self.architecture) if self.adapter is None else self.adapter.parameters

    @property
    def all_losses(self) -> list[Loss]:
        """What reading lost: what the reader says, and whatever the ledger has as left."""
        return [*self.provenance.losses, *self.ledger.losses(self.path)]

    def explained(self, refusal: CkptError) -> list[str]:
        """What the source says about the facts that a refusal is about."""
        parts = refusal.problems if isinstance(refusal, ProblemsFound) else [refusal]
        about = [fact for one in parts if isinstance(one, Refusal) for fact in one.facts]
        found = self.provenance.explanations.items()
        return [explanation for path, explanation in found if any(_of_one_thing(path, fact) for fact in about)]

    @property
    def in_masters(self) -> Checkpoint:
        """The checkpoint whose weights are the masters, for formats that keep one set of them: the one that the optimizer steps in.

        Without a state of the training, or without masters of its own, the checkpoint itself.
        """
        state = self.training
        if state is None or not state.own_masters:
            return self
        weights = {
            name: replace(state.master[name], parameter=tensor.parameter) if name in state.master else tensor
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=weights, training=replace(state, own_masters=False))

    def in_dtype(self, dtype: DType | None) -> Checkpoint:
        """The checkpoint for a target whose tensors are of `dtype`: what is computed of codes and scales is rounded once, to that one,
        and not first to the dtype that its own tools round to. None is that one."""
        if dtype is None:
            return self
        tensors = {name: tensor if tensor.dtype == dtype else tensor.unrounded for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors)

    def hints_for(self, format: str) -> Mapping[str, Any]:
        """The layout choices by which this model was once written in `format`; empty if it never was."""
        return self.provenance.hints if format == self.format else self.provenance.origins.get(format, {})

    def not_continued(self, problem: CkptError) -> Checkpoint:
        """The checkpoint without the state of its training, and with the reason why that can't be carried."""
        first = problem.problems[0] if isinstance(problem, ProblemsFound) else problem
        why = first.problem + (f" ({first.found})" if first.found else "")
        ledger = self.ledger.without_training(why)
        if ledger is None:
            return replace(self, training=None).because(losses=[Loss("dropped", "optimizer state", why)])
        return replace(self, training=None, ledger=ledger)

    def because(self, *evidence: str, losses: Iterable[Loss] = ()) -> Checkpoint:
        """The checkpoint with more evidence, and with more losses."""
        known = self.provenance
        known = replace(known, evidence=(*known.evidence, *evidence), losses=(*known.losses, *losses))
        return replace(self, provenance=known)


def _of_one_thing(path: str, fact: str) -> bool:
    """Whether a path is a fact's (`final_norm.kind`, `attention.window?`), or one of the two is a part of the other."""
    bare = fact.removesuffix(".*").removesuffix("?")
    return path == bare or path.startswith(f"{bare}.") or bare.startswith(f"{path}.")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a native tensor goes: its first byte in an output file, and the dtype it is stored in.

    `quantised`: it is stored as codes and scales, at the places of its operands, and is read as this tensor again: `dtype` is that of
    the numbers which its readers compute of them. The scheme is a `Quantiser`, unless these are copied as they are: `kept` is where they lie.
    """

    native: Native
    dtype: DType
    file: str
    offset: int
    quantised: StoredTensor | None = None
    kept: Quantised | None = None


@dataclass
class Target:
    """Everything a writer decides. `documents` are config files by path; `single_file`: the destination is one file.

    `said` are the notes as the written config says them, and `held` the names of the source's sidecars that lie inside
    the written files. The notes and sidecars that are in neither become losses: see `company.losses_of`. `config` is
    what the written config says, key by key, for `launch`: how the framework is started with these files. Where `adapter` is
    there, what is written is not a model. `named` are folders outside of the source that the user gave: files may be copied from there.
    `training` is the state of the training that is written along. `carried` are keys of the source's files (file -> key) that stand in the
    written ones as they are, with all that is below them.
    """

    format: str
    architecture: Architecture
    tensors: Mapping[str, LazyParameter]
    files: list[OutputFile]
    placements: list[Placement]
    documents: dict[str, bytes] = field(default_factory=dict)
    sidecars: Mapping[str, Sidecar] = field(default_factory=dict)
    parallel: Mapping[str, int] = field(default_factory=dict)
    decisions: dict[str, Any] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    single_file: bool = False
    said: Mapping[str, Any] = field(default_factory=dict)
    held: Collection[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    launch: Launch | None = None
    adapter: Adapter | None = None
    named: tuple[str, ...] = ()
    training: Training | None = None
    carried: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The canonical tensors that are written, by name."""
        return parameters(self.architecture) if self.adapter is None else self.adapter.parameters

    @property
    def moved(self) -> Mapping[str, LazyParameter]:
        """The tensors that are written, those of the training behind those of the model."""
        return self.tensors if self.training is None else {**self.tensors, **self.training.tensors}
