"""Planning a distributed checkpoint (see `dcp`): `.distcp` files of known layout, and their `.metadata`.

Each chunk becomes a torch file at an aligned place of one `.distcp`. `torch.distributed.checkpoint` loads the
result for any number of ranks: a chunk may be cut, and chunks may be joined, on loading.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes.output import Checksum, OutputFile
from ckpt_core.storage.chunks.dcp import METADATA
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.pickle.opaque import Opaque
from ckpt_core.storage.pickle.writer import Entries, write_pickle
from ckpt_core.storage.torch.nest import torch_bytes
from ckpt_core.storage.torch.writing import TensorSpec, TorchFilePlan, plan_torch_file

_ALIGNMENT = 64
_MODULE = "torch.distributed.checkpoint."
_NAME = "archive"  # the folder inside each embedded zip, as torch calls it when it writes to a stream


@dataclass(frozen=True, slots=True)
class ChunkSpec:
    """A part of `tensor` (of `whole` shape) to be written to `file`: `shape` elements from index `origin` on. `data` are its bytes,
    where they are known already."""

    tensor: str
    dtype: DType
    whole: tuple[int, ...]
    origin: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class DistributedPlan:
    """The files, where the data of each chunk begins (in the order of the chunks), and the bytes of `.metadata`."""

    files: list[OutputFile]
    offsets: list[int]
    metadata: bytes


def plan_distributed(
    folder: str,
    chunks: Sequence[ChunkSpec],
    objects: Mapping[str, tuple[str, bytes]] = MappingProxyType({}),
    paths: Mapping[str, tuple[str | int, ...]] | None = None,
    more: Mapping[str, object] = MappingProxyType({}),
) -> DistributedPlan:
    """Lay out `chunks` in files of `folder`, then `objects`: by name, the file and the bytes of a torch file.

    `folder` may be empty: the files then lie at the root of the output. `paths` is where each tensor stood in the nest of dicts
    that was saved: torch's `dcp_to_torch_save` and accelerate's `merge_fsdp_weights` make that nest again.
    `more` are attributes that a framework gives to the metadata.
    """
    files: dict[str, _File] = {}
    numbers: dict[str, list[int]] = {}  # of the chunks of each tensor
    offsets, places, starts = [], [], []
    for number, chunk in enumerate(chunks):
        file = files.setdefault(chunk.file, _File(chunk.file))
        start, length, first = file.add_tensor(TensorSpec(chunk.dtype, chunk.shape), chunk.data)
        offsets.append(first)
        places.append((start, length))
        numbers.setdefault(chunk.tensor, []).append(number)
    for target, data in objects.values():
        starts.append(files.setdefault(target, _File(target)).add_bytes(data))

    def described() -> Iterator[tuple[object, object]]:
        for tensor, own in numbers.items():
            first = chunks[own[0]]
            boxes: list[dict[str, object]] = [
                {"offsets": _size(chunks[number].origin), "sizes": _size(chunks[number].shape)} for number in own
            ]
            body: dict[str, object] = {"properties": _properties(first.dtype), "size": _size(first.whole)}
            body["chunks"] = [_object("metadata.ChunkStorageMetadata", box) for box in boxes]
            yield tensor, _object("metadata.TensorStorageMetadata", body)
        for name in objects:
            yield name, _object("metadata.BytesStorageMetadata", None)

    def located() -> Iterator[tuple[object, object]]:
        seen = Counter[str]()
        for chunk, place in zip(chunks, places, strict=True):
            index: dict[str, object] = {"fqn": chunk.tensor, "offset": _size(chunk.origin), "index": seen[chunk.tensor]}
            seen[chunk.tensor] += 1
            yield _object("metadata.MetadataIndex", index), _place(chunk.file, *place)
        for (name, (target, data)), start in zip(objects.items(), starts, strict=True):
            index = {"fqn": name, "offset": None, "index": None}
            yield _object("metadata.MetadataIndex", index), _place(target, start, len(data))

    body: dict[str, object] = {
        "state_dict_metadata": Entries(described),
        "planner_data": None if paths is None else dict(paths),
        "storage_data": Entries(located),
        "storage_meta": None,
        **more,
    }
    metadata = write_pickle(_object("metadata.Metadata", body), METADATA)
    return DistributedPlan([file.finished(folder) for file in files.values()], offsets, metadata)


@functools.lru_cache(1 << 10)
def _plan(tensor: TensorSpec) -> TorchFilePlan:
    """The plan of the torch file of a tensor, once for all that are alike: a model has tens of thousands of chunks of few shapes."""
    return plan_torch_file(tensor, _NAME)


class _File:
    """A `.distcp` file as it grows."""

    def __init__(self, path: str) -> None:
        self._path, self._at = path, 0
        self._literals: list[tuple[int, bytes]] = []
        self._checksums: list[Checksum] = []

    def add_tensor(self, tensor: TensorSpec, data: bytes | None) -> tuple[int, int, int]:
        """First byte and length of the torch file that will hold a tensor, and the first byte of its data."""
        if data is not None:
            body = torch_bytes(tensor, _NAME, {(): data})
            return self.add_bytes(body), len(body), 0
        start = self._aligned()
        plan = _plan(tensor)
        (slot,) = plan.slots
        self._literals += [(start + offset, data) for offset, data in plan.literals]
        self._checksums.append(
            Checksum(start + slot.offset, slot.size, tuple(start + position for position in slot.crc_at))
        )
        self._at = start + plan.size
        return start, plan.size, start + slot.offset

    def add_bytes(self, data: bytes) -> int:
        """First byte of a torch file that is known."""
        start = self._aligned()
        self._literals.append((start, data))
        self._at = start + len(data)
        return start

    def _aligned(self) -> int:
        return self._at + -self._at % _ALIGNMENT

    def finished(self, folder: str) -> OutputFile:
        return OutputFile(
            f"{folder}/{self._path}" if folder else self._path, self._at, tuple(self._literals), tuple(self._checksums)
        )


def _object(name: str, state: dict[str, object] | None) -> Opaque:
    module, _, cls = name.rpartition(".")
    return Opaque(_MODULE + module, cls, args=(), state=state)


def _place(file: str, offset: int, length: int) -> Opaque:
    return _object("filesystem._StorageInfo", {"relative_path": file, "offset": offset, "length": length})


def _size(shape: tuple[int, ...]) -> Opaque:
    return Opaque("torch", "Size", args=(shape,))


def _properties(dtype: DType) -> Opaque:
    """TensorProperties pickles itself as (dtype, layout, requires_grad, memory format, pin_memory)."""
    layout = Opaque("torch.serialization", "_get_layout", args=("torch.strided",))
    memory_format = Opaque(f"{_MODULE}metadata", "_MEM_FORMAT_ENCODING", args=(0,))
    return Opaque(f"{_MODULE}metadata", "TensorProperties", args=(), state=(dtype, layout, False, memory_format, False))
