"""What was found in a checkpoint folder, whichever container it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    FormatError,
    RankTensors,
    disk,
    layouts,
    lazy,
    ledgers,
    reading,
    schema,
    torch_files,
)
from ckpt_megatron.names import PREDICTORS, LegacySpelling


@schema.dataclass
class RankShare:
    """The tensors that one tensor parallel rank (or, for experts, one pair of ranks) holds, over all stages.

    `ranks` says which. Every name has all copies that were found, each as the shards that tile it.
    """

    ranks: layouts.Ranks
    expert: bool
    tensors: dict[str, list[list[lazy.Shard]]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, shards: list[lazy.Shard], stored_as: str) -> None:
        self.tensors.setdefault(name, []).append(shards)
        self.names[name] = stored_as


@schema.dataclass(frozen=True)
class DescribedModel:
    """What a reader knows of the model: its architecture, the choices of the tables, and how it was run, by the names of Megatron-LM's args."""

    architecture: Architecture
    choices: Mapping[str, layouts.Value]
    args: Mapping[str, Any]


Gathered = Callable[[list[RankShare]], Sequence[RankTensors]]
"""What the tables' ranks are that shares make."""


@schema.dataclass
class FolderContents:
    """What lies in a checkpoint folder. `args` is None where none are stored; `version` the checkpoint_version. `training` finds the
    state of the training, given the shares of a kind as the tables' ranks, and the model; None where no optimizer was saved."""

    folder: str
    container: str
    args: dict[str, Any] | None
    args_file: str
    shares: list[RankShare]
    files: list[str]
    parallel: dict[str, int]
    version: float = 3.0
    legacy: LegacySpelling | None = None
    fused_names: bool = False
    grouped: bool = False
    stages: list[int] = field(default_factory=list)
    layers: int = 0
    masters: bool = False
    iteration: object = None
    training: Callable[[Gathered, DescribedModel], reading.SavedTraining | None] | None = None
    ledger: ledgers.Ledger = field(default_factory=ledgers.Ledger)

    @property
    def states(self) -> list[disk.FileState]:
        return [disk.FileState.of(path) for path in self.files]

    @property
    def names(self) -> set[str]:
        """Every name of the tables that was found."""
        return {name for share in self.shares for name in share.tensors}

    @property
    def predicts(self) -> bool:
        """Whether there are layers of multi-token prediction."""
        return any(name.startswith(PREDICTORS) for name in self.names)

    def left(self, architecture: Architecture) -> list[ledgers.Loss]:
        """What is left behind of the weights: layers of multi-token prediction that the model is read without."""
        if not self.predicts or predicts(architecture):
            return []
        reason = "multi-token prediction layers, on which the model's own outputs do not depend"
        return [ledgers.Loss("dropped", f"{PREDICTORS}*", reason)]

    def rows(self, name: str) -> int:
        """The rows of a tensor that tensor parallel ranks divide, over all of them."""
        held = [share.tensors[name][0] for share in self.shares if name in share.tensors]
        if not held:
            raise FormatError(f"tensor {name!r} is missing", file=self.folder)
        return sum(height(shards) for shards in held)


# Modules that GPTModel lacks: heads and pooler of BertModel, head of T5Model, and the encoder of both.
_OF_OTHERS = ("lm_head.", "binary_head.", "pooler.", "language_model.pooler.", "encoder.layers.")


def check_kind(names: Iterable[str], file: str) -> None:
    """`FormatError` for another model of Megatron's scripts than a GPTModel, by the names that the tables have for its tensors."""
    others = sorted(name for name in names if name.startswith(_OF_OTHERS))
    if others:
        raise FormatError(
            "this is a model with an encoder, such as BertModel or T5Model, and of Megatron's models only GPTModel is read",
            file=file,
            found=", ".join(others[:3]) + ", ..." * (len(others) > 3),
            expected="the modules of a GPTModel: embedding, decoder, output_layer",
        )


def predicts(architecture: Architecture) -> bool:
    """Whether a model has layers of multi-token prediction."""
    return architecture.decoder is not None and architecture.decoder.predictors is not None


def height(shards: list[lazy.Shard]) -> int:
    """The rows that the shards of one tensor reach."""
    for shard in shards:
        if not shard.stored.shape:
            raise FormatError("a tensor that ranks divide has no dimension", file=shard.stored.file)
    return max(shard.origin[0] + shard.stored.shape[0] for shard in shards)


def stored_args(value: object, file: str) -> dict[str, Any] | None:
    """The attributes of the Namespace that a file holds as `value`; None where it holds none. Raises `FormatError` for anything else."""
    if value is None:
        return None
    if not isinstance(value, torch_files.Opaque) or not isinstance(value.state, dict):
        raise FormatError("args is not a Namespace", file=file, found=torch_files.brief(value))
    return {str(key): item for key, item in value.state.items()}
