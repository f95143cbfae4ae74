"""The one writer: files and the places of tensors in them, as a plugin decides one after the other."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckpt_core.architecture import Architecture
from ckpt_core.checkpoint import Checkpoint, Placement, Sidecar, Target
from ckpt_core.company.vocabulary import with_vocabulary
from ckpt_core.errors import NotCarried
from ckpt_core.layout import BoundTables, Chosen, Native, Ranks, Table, Tables
from ckpt_core.ledger import Loss
from ckpt_core.plugins.request import WriteRequest
from ckpt_core.rewrite.model import Rewritable
from ckpt_core.storage.bytes.output import OutputFile
from ckpt_core.storage.containers import SAFETENSORS, Container
from ckpt_core.storage.dtypes import FP32, DType, commonest
from ckpt_core.storage.tensor import Quantised, StoredTensor
from ckpt_core.tensors.assembly import LazyParameter
from ckpt_core.tensors.stored import storage_dtype
from ckpt_core.text import plural
from ckpt_core.training import Kind, Training, followed, moment_native, unsaid_of


class TargetBuilder:
    """A target as it is decided: which tensor goes into which file, in which dtype, and what else is written.

        builder = TargetBuilder(model, TABLES, request.dtype)
        for rank in range(tp):
            builder.add_file(f"rank-{rank}.safetensors", builder.natives({"tp": (rank, tp)}))
        builder.documents["model.json"] = text
        return builder.target("example", sidecars=checkpoint.sidecars, parallel={"tp": tp}, said=CONFIG.said(config))

    `model` is written as it is: what the format can't say was rewritten before. `dtype` is that of all tensors whose row
    fixes none; None keeps each one's own. `choices` are those of the tables. `documents` are files whose bytes are known, by path.

    `trained` is the checkpoint that the model was made of, for a writer that takes the state of its training along: `training` is that of
    the model as it is written. Raises `NotCarried` where it can't follow the model, and where weights that the optimizer steps are to be rounded.
    `masters`: the format keeps fp32 masters beside the weights, which are then written in any dtype; what the source steps becomes the masters.
    """

    def __init__(
        self,
        model: Rewritable,
        tables: Tables | Sequence[Table],
        dtype: DType | None = None,
        *,
        choices: Chosen | None = None,
        trained: Checkpoint | None = None,
        masters: bool = False,
    ) -> None:
        self.model, self.dtype = model, dtype
        self.training: Training | None = None
        self._of_training: list[Loss] = []
        if trained is not None and trained.training is not None:
            self.training, self._of_training = followed(trained.training, trained.tensors, model.tensors)
            if masters:
                self.training = replace(self.training, own_masters=True)
            _check_rounding(self.training, model.tensors, dtype)
        self.bound = BoundTables(tables, model.architecture, choices)
        self.files: list[OutputFile] = []
        self.placements: list[Placement] = []
        self.documents: dict[str, bytes] = {}

    @staticmethod
    def stepped(checkpoint: Checkpoint, request: WriteRequest, *, pads: bool = False) -> Checkpoint:
        """The checkpoint as its optimizer steps it, for a format that keeps one set of weights.

        Its weights are the masters, and rows that pad the vocabulary are tokens, unless the format pads it, too (`pads`): they take part in the loss, and are
        trained. That is another model than the source's by a rounding and by these rows, so that it is written only where the state of the training was
        asked for: `NotCarried` otherwise.
        """
        state, tokens = checkpoint.training, checkpoint.architecture.tokens
        if state is None:
            return checkpoint
        padded = not pads and tokens is not None and tokens.vocabulary < tokens.padded_vocabulary
        rounded = state.own_masters and any(checkpoint.tensors[name].dtype.size < FP32.size for name in state.master)
        if request.training_state != "keep" and (rounded or padded):
            what = "the fp32 masters in place of the weights" if rounded else "the rows of padding as tokens"
            raise NotCarried(
                f"the target would have {what}, as the optimizer steps them",
                fix="ask for it with --training-state keep",
            )
        checkpoint = checkpoint.in_masters
        if tokens is None or not padded:
            return checkpoint
        return with_vocabulary(checkpoint, tokens.padded_vocabulary)

    @property
    def architecture(self) -> Architecture:
        return self.model.architecture

    def natives(self, ranks: Ranks | None = None) -> dict[str, Native]:
        """The tensors of a rank by name; see `BoundTables.natives` for the errors."""
        return self.bound.natives(ranks)

    def moments(self, kind: Kind, natives: Mapping[str, Native]) -> dict[str, Native]:
        """The tensors that hold `kind` of what `natives` hold, by the same names; none of a parameter that is not trained.

        `NotCarried` where a tensor holds both what is trained and what is not.
        """
        if self.training is None:
            return {}
        known, found = self.training.of(kind), {}
        for name, native in natives.items():
            trained = {piece.parameter in known for piece in native.pieces}
            if len(trained) == 2:
                raise NotCarried(
                    f"{name} holds parameters that are trained and others that are not",
                    fix="leave the state of the training behind with --training-state drop",
                )
            if trained == {True}:
                found[name] = moment_native(kind, native)
        return found

    def dtype_of(self, native: Native) -> DType:
        """The dtype that a tensor is stored in."""
        return storage_dtype(native, self.model.tensors, self.dtype)

    def bytes_of(self, native: Native) -> int:
        """How many bytes the data of a tensor takes."""
        return math.prod(native.shape) * self.dtype_of(native).size

    @property
    def commonest_dtype(self) -> DType:
        """The dtype of most tensors that have a place by now, for configs that name one."""
        return commonest([placement.dtype for placement in self.placements])

    def add_file(
        self,
        path: str,
        tensors: Mapping[str, Native],
        container: Container = SAFETENSORS,
        metadata: Mapping[str, str] | None = None,
        quantised: Mapping[str, StoredTensor] | None = None,
        kept: Mapping[str, Quantised] | None = None,
    ) -> None:
        """A file of the target that holds `tensors`, each under its name in the file.

        Those in `quantised` are stored as codes and scales, each under the name of its operand, whose file and offset are decided here.
        For those in `kept` these are copied from there.
        """
        coded = {name: quantised[name] for name in tensors if name in quantised} if quantised else {}
        specs = {name: (self.dtype_of(native), native.shape) for name, native in tensors.items() if name not in coded}
        for held in filter(None, (one.quantised for one in coded.values())):
            specs |= {operand.name: (operand.stored.dtype, operand.stored.shape) for operand in held.stored}
        file, offsets = container.plan(path, specs, metadata)
        self.files.append(file)
        for name, native in tensors.items():
            if name in coded:
                here = coded[name].moved_to(path, offsets)
                self.place(native, path, 0, here.dtype, here, (kept or {}).get(name))
            else:
                self.place(native, path, offsets[name])

    def place(
        self,
        native: Native,
        path: str,
        offset: int,
        dtype: DType | None = None,
        quantised: StoredTensor | None = None,
        kept: Quantised | None = None,
    ) -> None:
        """Put the data of a tensor into a file, from byte `offset` on. `dtype` is that of this place, if it has one of its own.

        `quantised` and `kept`: see `Placement`; the operands lie in files of the target.
        """
        self.placements.append(Placement(native, dtype or self.dtype_of(native), path, offset, quantised, kept))

    def target(
        self,
        format: str,
        *,
        sidecars: Mapping[str, Sidecar] | None = None,
        parallel: Mapping[str, int] | None = None,
        decisions: Mapping[str, Any] | None = None,
        losses: Iterable[Loss] = (),
        said: Mapping[str, Any] | None = None,
        held: Collection[str] = (),
        config: Mapping[str, Any] | None = None,
        single_file: bool = False,
        carried: Mapping[str, str] | None = None,
        says: Collection[str] = (),
    ) -> Target:
        """The target; the rewrites of the model are one of its decisions. See `Target` for the arguments.

        `says` is what the files say of a training besides groups, steps and tensors, of `ckpt_core.training.SAID`; what its state has beyond that is a loss.
        """
        return Target(
            format,
            self.model.architecture,
            self.model.tensors,
            self.files,
            self.placements,
            self.documents,
            sidecars or {},
            parallel or {},
            {**(decisions or {}), "rewrites": list(self.model.rewrites)},
            [*losses, *self._of_training, *(() if self.training is None else unsaid_of(self.training, says))],
            single_file,
            said or {},
            held,
            config or {},
            training=self.training,
            carried=carried or {},
        )


def _check_rounding(training: Training, tensors: Mapping[str, LazyParameter], dtype: DType | None) -> None:
    if dtype is None:
        return
    if training.own_masters:
        _check_masters(training, tensors, dtype)
        return
    wider = [name for name in training.exp_avg if tensors[name].dtype.size > dtype.size]
    if wider:
        raise NotCarried(
            f"the weights are what the optimizer steps, and they would be rounded to {dtype}",
            found=f"{plural(len(wider), 'tensor')}, {wider[0]} in {tensors[wider[0]].dtype} among them",
            fix="leave out --dtype, or leave the state of the training behind with --training-state drop",
        )


def _check_masters(training: Training, tensors: Mapping[str, LazyParameter], dtype: DType) -> None:
    """`NotCarried` where the weights would not be their masters, rounded once: frameworks save them so, and a reader compares the two."""
    narrower = dtype.size < FP32.size
    apart = [
        name
        for name, master in training.master.items()
        if dtype.size > FP32.size or (narrower and tensors[name].dtype not in (master.dtype, dtype))
    ]
    if apart:
        raise NotCarried(
            f"the weights in {dtype} would not be the masters, rounded to it",
            found=f"{plural(len(apart), 'tensor')}, {apart[0]} in {tensors[apart[0]].dtype} among them",
            fix="leave out --dtype, or leave the state of the training behind with --training-state drop"
            + (", or take the masters for the weights with --weights master" if narrower else ""),
        )
