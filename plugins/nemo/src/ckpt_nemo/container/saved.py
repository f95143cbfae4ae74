"""What any NeMo 1 checkpoint comes down to: a config, and the tensors of each rank or of all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from ckpt_core.sdk import (
    Config,
    FormatError,
    StoredTensor,
    chunked,
    company,
    disk,
    dtypes,
    errors,
    layouts,
    lazy,
    ledgers,
    reading,
    schema,
    torch_files,
    trees,
)
from ckpt_megatron.sdk import contents

if TYPE_CHECKING:
    import numpy as np

# `model.` is the attribute that holds the network; Float16Module and torch.compile add theirs.
_WRAPPERS = ("model.", "module.", "_orig_mod.")


def unwrapped(name: str) -> str:
    """A stored name without what wraps the network.

    >>> unwrapped("model.module.language_model.output_layer.weight")
    'language_model.output_layer.weight'
    """
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def rank_folder(tp: int, pp: int, ranks: tuple[int, int]) -> str:
    """The folder of one of `ranks` (tp, pp), with a slash; a single rank has none.

    >>> rank_folder(1, 0, (2, 1)), rank_folder(0, 2, (1, 3)), rank_folder(0, 0, (1, 1))
    ('mp_rank_01/', 'tp_rank_00_pp_rank_002/', '')
    """
    if ranks == (1, 1):
        return ""
    return f"mp_rank_{tp:02d}/" if ranks[1] == 1 else f"tp_rank_{tp:02d}_pp_rank_{pp:03d}/"


@schema.dataclass
class Rank:
    """One model parallel rank: its tensors by unwrapped name, a dict for each of its virtual pipeline stages.

    `optimizer` is the state of the optimizer that Lightning stored, `step` the global_step beside it, `file` what errors name.
    """

    tp: int
    pp: int
    file: str
    chunks: list[dict[str, StoredTensor]]
    optimizer: Any = None
    step: object = None


@schema.dataclass
class SavedCheckpoint:
    """A checkpoint as it lies on disk, from headers alone.

    `container` is `nemo`, `folder` or `ckpt`; `backend` is `ranks`, or the one of Megatron-Core's distributed
    checkpoints that holds `tensors`: `zarr` or `torch_dist`. `config` is the model section, empty where none is
    stored. `place` is the file or folder that errors name, `path` what the user gave, and `root` where the receipt of
    an earlier conversion would be. `artifacts` are the files that the config may name, by their stored names, `companions`
    those that travel with the model by their own. `tree`: the archive, where it is one. `section`: where in `config_file`
    the config is. `moments` are the tensors of a distributed optimizer by kind, and by the unwrapped keys of the weights; `optimizer_keys` are
    the stored ones, by where errors find them. `content` is what Lightning stored besides, in `content_file`.
    """

    path: str
    place: str
    container: str
    backend: str
    config: dict[str, Any]
    config_file: str
    ranks: list[Rank] = field(default_factory=list)
    tensors: dict[str, chunked.ChunkedTensor] = field(default_factory=dict)
    masters: dict[str, chunked.ChunkedTensor] = field(default_factory=dict)
    moments: dict[reading.Kind, dict[str, chunked.ChunkedTensor]] = field(default_factory=dict)
    optimizer_keys: dict[str, list[str]] = field(default_factory=dict)
    content: Mapping[Any, Any] = field(default_factory=dict)
    content_file: str = ""
    states: list[disk.FileState] = field(default_factory=list)
    artifacts: dict[str, company.Sidecar] = field(default_factory=dict)
    companions: dict[str, company.Sidecar] = field(default_factory=dict)
    root: str = ""
    ledger: ledgers.Ledger = field(default_factory=ledgers.Ledger)
    tree: trees.Tree | None = None
    section: str = ""

    def __post_init__(self) -> None:
        self.root = self.root or self.place

    @property
    def target(self) -> str:
        """The class that the config names, without its modules."""
        return str(self.config.get("target") or "").rpartition(".")[2]

    @property
    def names(self) -> list[str]:
        """Every unwrapped name, in the order of the files."""
        own = [name for rank in self.ranks for chunk in rank.chunks for name in chunk]
        return list(dict.fromkeys([*own, *self.tensors]))

    @property
    def parallel(self) -> tuple[int, int]:
        """The number of tensor and of pipeline parallel ranks: of the files, else what the config says."""
        if self.ranks:
            return max(rank.tp for rank in self.ranks) + 1, max(rank.pp for rank in self.ranks) + 1
        return _size(self.config, "tensor_model_parallel_size"), _size(self.config, "pipeline_model_parallel_size")

    def enter_config(self, table: Config, config: Mapping[str, Any]) -> None:
        """Enter what became of the keys of the config: what `table` says of those in `config`."""
        self.ledger.used("architecture", self.config_file)
        self.ledger.config(self.config_file, table.fates(config), self.section)

    def close(self, sidecars: Mapping[str, company.Sidecar]) -> ledgers.Ledger:
        """The ledger, with every file of an archive in it, of which the core sees one file; `sidecars` go along with the model."""
        if self.tree is not None and self.container == "nemo":
            self.ledger.archive(self.tree, [sidecar.extent for sidecar in sidecars.values()])
        return self.ledger

    def check_ranks(self, problems: errors.Problems) -> None:
        """Note ranks that are missing, and sizes that the config contradicts (stale files of another layout)."""
        if not self.ranks:
            return
        held = {(rank.tp, rank.pp) for rank in self.ranks}
        tp, pp = self.parallel
        for key, found in (("tensor_model_parallel_size", tp), ("pipeline_model_parallel_size", pp)):
            said = self.config.get(key)
            if isinstance(said, int) and said != found:
                problems.add(
                    FormatError(
                        f"{key} is {said} in the config, but there are files of {found} ranks",
                        file=self.place,
                        fix="files are missing, or left over from another parallel layout",
                    )
                )
        for t in range(tp):
            for p in range(pp):
                if (t, p) not in held:
                    problems.add(
                        FormatError(f"there is no file of tensor parallel rank {t}, pipeline rank {p}", file=self.place)
                    )
        if len({len(rank.chunks) for rank in self.ranks}) > 1:
            problems.add(FormatError("the ranks have different numbers of virtual pipeline stages", file=self.place))


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    return value if type(value) is int and 0 < value < 1 << 20 else 1


def values_of(tensor: StoredTensor, name: str, source: lazy.SourceFiles) -> np.ndarray:
    """All values of a stored tensor, which is small, in its shape; `name` is what errors call it."""
    loops = enumerate(zip(tensor.shape, tensor.strides, strict=True))
    links = tuple(layouts.Link(size, axis, 1, 0, stride) for axis, (size, stride) in loops)
    tile = layouts.Tile(links, (0,) * len(tensor.shape), (0,))
    parameter = schema.Parameter(name, tuple(schema.Axis(f"axis {n}", size) for n, size in enumerate(tensor.shape)))
    part = lazy.StoredPart(tensor.file, tensor.dtype, tensor.offset, tile)
    whole = tuple((0, size) for size in tensor.shape)
    return dtypes.decode(source.read(lazy.LazyParameter(parameter, tensor.dtype, (part,)), whole), tensor.dtype)


def state_dict(value: object, file: str, ledger: ledgers.Ledger) -> dict[str, StoredTensor]:
    """The tensors of a stored state dict by unwrapped name; extra states (None, or bytes of fp8 scales) are left out."""
    if not isinstance(value, Mapping):
        raise FormatError("there is no state dict", file=file, found=torch_files.brief(value))
    problems = errors.Problems(f"reading {file}")
    found: dict[str, StoredTensor] = {}
    for stored_as, tensor in value.items():
        name = unwrapped(str(stored_as))
        if name.endswith("_extra_state"):
            ledger.contents(file, {stored_as: tensor}, contents.NAMES)
            continue
        if not isinstance(tensor, StoredTensor):
            problems.add(
                FormatError(f"the entry {stored_as!r} is not a tensor", file=file, found=torch_files.brief(tensor))
            )
        elif name in found:
            problems.add(FormatError(f"the tensor {name!r} is stored twice, under different prefixes", file=file))
        else:
            found[name] = tensor
    problems.raise_any()
    return found
