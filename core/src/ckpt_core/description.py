"""What a plugin says of a checkpoint: what the model is, and where each rank's tensors lie.

A plugin looks at files and describes them. The core makes the checkpoint of the description (see `reading`): it binds the
tables, accounts for every tensor of every rank, compares what several ranks hold, and asks receipts and `--config`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any

from ckpt_core.lazily import hints_in
from ckpt_core.lean import dataclass
from ckpt_core.ledger import Ledger, Loss
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.tensors.assembly import Shard

if TYPE_CHECKING:
    from ckpt_core.architecture import Architecture
    from ckpt_core.checkpoint import Sidecar
    from ckpt_core.errors import CkptError
    from ckpt_core.layout import Chosen, Native, Ranks, Table, Tables
    from ckpt_core.storage.bytes.files import FileState
    from ckpt_core.training import Kind, Training
else:
    hints_in(
        __name__,
        {
            "ckpt_core.architecture": "Architecture",
            "ckpt_core.checkpoint": "Sidecar",
            "ckpt_core.errors": "CkptError",
            "ckpt_core.layout": "Chosen Native Ranks Table Tables",
            "ckpt_core.storage.bytes.files": "FileState",
            "ckpt_core.training": "Kind Training",
        },
    )


@dataclass(frozen=True, slots=True)
class Averaged:
    """A tensor that several ranks hold whole and not alike, each as shards that tile it: its value is the float32 mean."""

    ranks: Sequence[Sequence[Shard]]


Held = StoredTensor | Sequence[Shard] | Averaged
"""A tensor of the tables in the files: whole, in shards that tile it, or as the mean of several."""


@dataclass(frozen=True)
class RankTensors:
    """The tensors of one rank, or those that one of its files holds.

    `ranks` says which rank: the number and the count along each dimension that the tables divide, `{"tp": (1, 4)}`; files
    of a whole model give none. What is yielded for one rank is accounted for together: a rank may lie in several files, one
    for each pipeline stage. `tensors` are those found, by the names of the tables. `where` is the file or folder that
    errors name.

    `called` says what a tensor of the tables is called in `tensors` and in errors, where that is not its name in the
    tables; None if it does not lie here. `needed` says whether a tensor must be here: without it, every one must.
    `rounded` are copies in a narrower dtype, to which the values in `tensors` must round.
    """

    ranks: Ranks
    tensors: Mapping[str, Held]
    where: str
    called: Callable[[Native], str | None] | None = None
    needed: Callable[[Native], bool] | None = None
    rounded: Mapping[str, StoredTensor | Sequence[Shard]] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedTraining:
    """The state of a training as a plugin finds it beside the weights: the numbers, and where each rank's moments lie.

    `ranks` has for each kind the tensors of every rank, by the names that the tables have for the weights: a moment lies in a native tensor as its
    weight does. Without masters the weights are what the optimizer steps. The groups and the frozen parameters of `state` are native names, too; its
    tensors are those of `ranks`. `where` is the file or folder that errors name, and `files` are those that are read.

    `ledger` says of files and keys that they are carried; it replaces what the description's own says of them. `rounds`: masters must
    round to the weights, which are not stored in a wider dtype than they had. `tables` and `choices` are those of the moments, where they lie
    under other names than the weights. `rest_is_frozen`: the optimizer names what it steps, so that a parameter in no group is one that is not trained.
    """

    state: Training
    ranks: Mapping[Kind, Iterable[RankTensors]]
    where: str
    files: Sequence[FileState]
    ledger: Ledger = field(default_factory=Ledger)
    evidence: Sequence[str] = ()
    losses: Sequence[Loss] = ()
    rounds: bool = True
    tables: Tables | Sequence[Table] | None = None
    choices: Chosen = field(default_factory=dict)
    rest_is_frozen: bool = False


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What is known of the true vocabulary, where a config says the rows of the embedding alone.

    `rows` is the framework's rule: how many rows it gives to a number of tokens. `said`: the files prove that all rows are
    tokens. `tokenizer` is how many tokens the tokenizer has, where no companion can say it. `asked` is the number that the
    user gives, if it is not that of `-o vocab=N` or `--config`.
    """

    rows: Callable[[int], int]
    said: bool = False
    tokenizer: int | None = None
    asked: int | None = None


@dataclass(frozen=True, kw_only=True)
class Description:
    """A checkpoint as a plugin describes it.

    `architecture` is what `config`, a file, says; without `config` it is that of `--config` (see `reading.given`). `said` is what
    the config alone says, where the tensors decide more than it: `--config` must agree with that.
    `tables` say which tensor holds what, under the `choices` that were found out, and `ranks` are the tensors found. `where` is the folder or file of the weights,
    which errors name. `natives` are what the tables say of the whole model, where the plugin had to look at that already. `root` is where our own receipt would lie: `where`, unless said. `files` are those that are read,
    config files among them. `vocabulary` is None where the config itself says the true one.

    `training` finds the state of the training beside the weights, when it is wanted, and None where there is none. It raises `NotCarried`
    for one that this format can't say how to read, and any other error for damage.

    `notes`, `sidecars`, `parallel` and `ledger` are those of a `Checkpoint`; `hints`, `origins`, `evidence`, `losses`,
    `explanations` and `masters` those of its `Provenance`.
    """

    architecture: Architecture
    tables: Tables | Sequence[Table]
    ranks: Iterable[RankTensors]
    where: str
    files: Sequence[FileState]
    config: str | None = None
    said: Architecture | None = None
    root: str | None = None
    vocabulary: Vocabulary | None = None
    choices: Chosen = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    sidecars: Mapping[str, Sidecar] = field(default_factory=dict)
    parallel: Mapping[str, int] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    hints: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    evidence: Sequence[str] = ()
    losses: Sequence[Loss] = ()
    explanations: Mapping[str, str] = field(default_factory=dict)
    masters: bool = False
    training: Callable[[], SavedTraining | None] | None = None
    natives: Mapping[str, Native] | None = None


@dataclass(frozen=True)
class Fragment:
    """What lies at a path and is not a model by itself, such as an adapter without its base.

    `lines` are what `ckpt inspect` says of it, under labels; `facts` are the same as JSON. `lacks` is the error by which it is
    refused wherever a model is asked for.
    """

    lines: Mapping[str, Sequence[str]]
    facts: Mapping[str, Any]
    lacks: CkptError
