"""The plan: from headers alone, every byte that will be read and written, before anything is.

`make_plan` checks total accounting on the target side (each element of each native tensor is written exactly
once, each canonical tensor is delivered) and splits the work into transfers, pieces of canonical tensors.
"""

from __future__ import annotations

import bisect
import functools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace

from blake3 import blake3

from ckpt_core.addresses import spelled, spelled_in
from ckpt_core.checkpoint import Checkpoint, Loss, Placement, Target
from ckpt_core.company.companions import losses_of
from ckpt_core.engine.encoding import Encoded
from ckpt_core.engine.order import in_order
from ckpt_core.engine.pieces import Transfer, Write, pieces, uncut
from ckpt_core.engine.records import watched
from ckpt_core.engine.weaving import others_of, strands
from ckpt_core.errors import CkptError, FormatError, Problems
from ckpt_core.layout import Add, Link, Scale
from ckpt_core.lean import dataclass
from ckpt_core.sizes import size_text
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.bytes.home import Home
from ckpt_core.storage.bytes.output import Checksum, Excerpt, Extents, OutputFile
from ckpt_core.storage.dtypes import FP32, DType
from ckpt_core.storage.tensor import Quantised, contiguous_strides
from ckpt_core.tensors.assembly import LazyParameter, StoredPart, flat_tile, significant_bits
from ckpt_core.tensors.pieces import PIECE
from ckpt_core.text import plural

DEFAULT_MEMORY = 256 << 20
_CHUNK = 4 << 20  # stays in the cache between reading, hashing and writing
_INTERPRETER = 44 << 20  # with NumPy, the tables of all plugins, and what a small plan takes
# What planning takes for each block that is read, for each that is written, what more for one of either that is stored as codes and scales, and for
# each piece of a file that is known already: measured for the plans of benchmarks/plan_time.py, to within a third.
_PER_READ, _PER_WRITTEN, _PER_CODED, _PER_LITERAL = 900, 650, 500, 200
_READING = 16 << 20  # obstore with its connections
_SENDING = 48 << 20  # boto3 or Azure's library, with what is on its way
_PER_PIECE = 2000  # of a tensor that is cut: its transfer, and the result that is kept until the end
_LEAST = 1 << 20  # of a buffer
_BUFFERS = 6  # chunk-sized buffers a transfer may hold at once: raw, decoded, mapped, encoded, packed, near


@dataclass(repr=False)
class Plan:
    """A conversion that has not happened yet: `bytes_read`, `bytes_written` and `peak_memory` are in bytes.

    `tensors` are the transfers of whole canonical tensors, in the order of the target; `transfers` what is carried out.
    `memory` is the budget of this process, or, where workers are processes `apart`, of each of them and of this one. Each of those carries
    out `threads` transfers at a time; `grows`: `workers` are those of a cluster that are there, and others that join it are used too. `libraries` are
    the bytes that the libraries of stores take. `limited`: the budget is the user's, and not one that grows with what has to be moved at a time.
    """

    source: Checkpoint
    target: Target
    tensors: list[Transfer]
    workers: int
    memory: int
    options: Mapping[str, object] = field(default_factory=dict)
    apart: bool = False
    threads: int = 1
    grows: bool = False
    libraries: int = 0
    limited: bool = True

    @property
    def bytes_read(self) -> int:
        excerpts = sum(one.size for file in self.target.files for one in file.excerpts)
        return excerpts + sum(tensor.bytes_read for tensor in self.tensors)

    @property
    def bytes_written(self) -> int:
        documents = sum(len(data) for data in self.target.documents.values())
        return (
            sum(file.size for file in self.target.files)
            + documents
            + sum(s.size for s in self.target.sidecars.values())
        )

    def __repr__(self) -> str:
        sizes = f"{size_text(self.bytes_read)} to read, {size_text(self.bytes_written)} to write"
        said = f"{plural(len(self.tensors), 'tensor')} to {plural(len(self.target.files), 'file')}, {sizes}, {plural(len(self.losses), 'loss', 'losses')}"
        return f"<Plan {self.source.format} {spelled(self.source.path)} to {self.target.format}: {said}>"

    @functools.cached_property
    def transfers(self) -> list[Transfer]:
        """The pieces of all tensors, in the order in which they are carried out. They do not depend on memory and workers."""
        cut = (piece for tensor in self.tensors for piece in pieces(tensor))
        return in_order(cut, lambda one: one.bytes_read + one.bytes_written, lambda one: one.file)

    @functools.cached_property
    def outputs(self) -> frozenset[str]:
        """The names of all files of the output, but for its receipt."""
        return frozenset([*(file.path for file in self.target.files), *self.target.documents, *self.target.sidecars])

    @property
    def peak_memory(self) -> int:
        """An upper bound of private memory in bytes: of this process, or of the largest one where workers are apart."""
        together = self.threads if self.apart else self.workers  # transfers that one process carries out at a time
        buffers = (
            max(t.chunk * _bytes_at_once(t.assembly, t.deliveries), _bytes_to_encode(t.deliveries))
            for t in self.tensors
        )
        largest = sorted(buffers, reverse=True)[:together]
        moved = _BUFFERS * sum(largest) + together * _bytes_to_merge(t.assembly for t in self.tensors)
        return max(self.footprint, _INTERPRETER + moved) if self.apart else self.footprint + moved

    @functools.cached_property
    def footprint(self) -> int:
        """The part of `peak_memory` that the plan itself takes, whatever is moved."""
        return self.libraries + _footprint(self.target, [tensor.deliveries for tensor in self.tensors])

    def spread(self, workers: int, threads: int, grows: bool = False) -> Plan:
        """The same plan for so many workers, where a process carries out `threads` transfers at a time; `grows`: for those that join later, too."""
        taken, together = (_INTERPRETER, threads) if self.apart else (self.footprint, workers)
        least = _bytes_to_encode(d for one in self.tensors for d in one.deliveries)
        taken += together * _bytes_to_merge(one.assembly for one in self.tensors)
        needed = 0 if self.limited else taken + together * _BUFFERS * max(_LEAST, least)
        memory = max(self.memory, needed)
        budget = _budget(memory, taken, together, least)
        tensors = [replace(one, chunk=_chunk_elements(one.assembly, one.deliveries, budget)) for one in self.tensors]
        return replace(self, tensors=tensors, memory=memory, workers=workers, threads=threads, grows=grows)

    @functools.cached_property
    def losses(self) -> list[Loss]:
        return self.losses_counted(lambda _: 1)

    def losses_counted(self, stands_for: Callable[[str], int]) -> list[Loss]:
        """The losses, where the tensor of a name is counted as so many."""
        company = losses_of(self.source, self.target)
        return [
            *self.source.all_losses,
            *self.target.losses,
            *company,
            *self._of_training(),
            *_dequantised(self.tensors, stands_for),
            *_rounding(self.tensors, stands_for),
        ]

    def _of_training(self) -> Iterator[Loss]:
        source, target = self.source, self.target
        if source.training is not None and target.training is None:
            yield Loss("dropped", "state of the training", f"format {target.format} does not take it along")
        before, after = source.architecture.tokens, target.architecture.tokens
        if target.training is not None and before and after and before.vocabulary < after.vocabulary:
            rows = after.vocabulary - before.vocabulary
            why = f"{rows} rows of padding take part in the loss of the run, which goes on as it was only with them"
            yield Loss("assumed", f"a vocabulary of {after.vocabulary}", why)

    @functools.cached_property
    def hash(self) -> str:
        """Identifies the conversion (`identity`)."""
        from ckpt_core.engine.identity import END, identity  # few commands ask for it

        digest = blake3()
        for lines in identity(self.source, self.target, self.tensors):
            digest.update(f"{spelled(lines)}{END}".encode("utf-8", "surrogatepass"))  # a path need not be UTF-8
        return digest.hexdigest()

    def training_json(self) -> dict[str, object]:
        """The state of the training that is written, in figures: its step, its tensors and their bytes, and what the user must see to."""
        state = self.target.training
        if state is None:
            return {}
        moved = [tensor for tensor in self.tensors if tensor.name in state.tensors]
        return {
            "optimizer": state.optimizer,
            "step": state.step,
            "next_lr": state.next_lr,
            "tensors": len(moved),
            "bytes": sum(tensor.bytes_written for tensor in moved),
            "masters": "their own" if state.own_masters else "the weights",
            "to_do": list(state.still_to_do()),
        }

    def to_json(self) -> dict[str, object]:
        """What `--dry-run --json` prints."""
        return {
            "source": {
                "format": self.source.format,
                "path": spelled(self.source.path),
                "parallel": self.source.parallel,
            },
            "target": {
                "format": self.target.format,
                "parallel": self.target.parallel,
                "decisions": self.target.decisions,
                **({} if self.target.launch is None else {"launch": self.target.launch.to_json()}),
            },
            "files": [{"path": file.path, "bytes": file.size} for file in self.target.files],
            "documents": {path: len(data) for path, data in self.target.documents.items()},
            "sidecars": sorted(self.target.sidecars),
            "tensors": len(self.tensors),
            **({} if self.target.training is None else {"training": self.training_json()}),
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "peak_memory": self.peak_memory,
            "workers": self.workers,
            "losses": [spelled_in(loss.to_json()) for loss in self.losses],
            "plan": self.hash,
        }


def make_plan(
    source: Checkpoint,
    target: Target,
    *,
    memory: int | None = None,
    workers: int | None = None,
    options: Mapping[str, object] | None = None,
    apart: bool = False,
    sent: bool = False,
) -> Plan:
    """Check the target against its architecture and cut the work into transfers within a memory budget (bytes).

    Without a budget it is `DEFAULT_MEMORY`, or as much as it takes where the plan itself leaves too little of that. Workers that
    are `apart`, in processes or on machines of their own, have the budget each. `sent`: the output goes to a store.
    """
    workers = workers or min(4, os.cpu_count() or 1)
    expected = dict(target.parameters)
    problems = Problems(f"writing {target.format}")
    if target.training is not None:
        expected |= {name: tensor.parameter for name, tensor in target.training.tensors.items()}
    _check_tensors(expected, target, problems)
    _check_files(target, problems)
    _check_links(source, target, problems)
    deliveries = _deliveries(target, problems)
    for name, parameter in expected.items():
        delivered = sum(delivery.block.tile.elements for delivery in deliveries.get(name, ()) if not delivery.copy)
        if delivered < parameter.elements or delivered % parameter.elements:
            problems.add(
                CkptError(f"{delivered} elements of {parameter} are written", expected="all of them, in whole copies")
            )
    problems.raise_any()
    libraries = _SENDING * sent + _READING * any(state.remote is not None for state in source.files)
    footprint = libraries + _footprint(target, deliveries.values())
    together = 1 if apart else workers
    least = _bytes_to_encode(delivery for one in deliveries.values() for delivery in one)
    limited = memory is not None
    merging = together * _bytes_to_merge(target.moved.values())
    if memory is None:
        memory = max(DEFAULT_MEMORY, footprint + merging + together * _BUFFERS * max(_CHUNK, least))
    budget = _budget(memory, footprint + merging, together, least)
    if apart:
        budget = _budget(memory, _INTERPRETER + merging, together, least)  # they hold no plan
    ledger = source.ledger.with_carried(target.carried) if target.carried else source.ledger
    source = replace(source, files=[*source.files, *_copied_files(source, target)], ledger=ledger)
    tensors = []
    for name, assembly in watched(target.moved).items():
        outgoing = tuple(deliveries[name])
        tensors.append(uncut(assembly, outgoing, _chunk_elements(assembly, outgoing, budget)))
    return Plan(source, target, tensors, workers, memory, options or {}, apart, libraries=libraries, limited=limited)


def _budget(memory: int, taken: int, together: int, least: int) -> int:
    """The bytes for each buffer of a process that carries out so many transfers at a time, has `taken` some already, and needs at `least` so many."""
    budget = (memory - taken) // (together * _BUFFERS)
    if budget < max(_LEAST, least):
        least = (taken + together * _BUFFERS * max(_LEAST, least) >> 20) + 1
        raise CkptError(
            "the memory budget is too small",
            found=f"{memory / 2**20:.3g} MiB for {together} {'worker' if together == 1 else 'workers'}",
            expected=f"at least {least} MiB, {taken >> 20} of them for the plan",
            fix=f"--max-memory {least}MiB" + (", or fewer --workers" if together > 1 else ""),
        )
    return budget


def _footprint(target: Target, deliveries: Iterable[Sequence[Write]]) -> int:
    """About the most bytes that a process holds to make and to keep a plan, without the buffers that move the data."""
    written = [delivery for one in deliveries for delivery in one]
    read = [block for assembly in target.moved.values() for block in assembly.all_blocks]
    coded = sum(one.encoded is not None for one in written) + sum(block.quantised is not None for block in read)
    literals = [data for file in target.files for _, data in file.literals]
    known = sum({id(data): len(data) for data in literals}.values())  # torch files that are alike share theirs
    excerpts = sum(1 for _ in _excerpts(target))
    documents = sum(map(len, target.documents.values()))
    cut = sum(one.parameter.elements * one.dtype.size // PIECE for one in target.moved.values())
    each = (
        _PER_READ * len(read)
        + _PER_WRITTEN * len(written)
        + _PER_CODED * coded
        + _PER_LITERAL * (len(literals) + excerpts)
        + _PER_PIECE * cut
    )
    return _INTERPRETER + each + known + documents


def _copied_files(source: Checkpoint, target: Target) -> list[FileState]:
    """The files that sidecars and excerpts are copied from, in their present state, besides those that are read anyway."""
    known = {state.path for state in source.files}
    copied = {sidecar.path for sidecar in target.sidecars.values()} | {one.source for one in _excerpts(target)}
    return [FileState.of(path) for path in sorted(copied - known)]


def _excerpts(target: Target) -> Iterator[Excerpt]:
    return (one for file in target.files for one in file.excerpts)


def _check_tensors(expected: Mapping, target: Target, problems: Problems) -> None:
    tensors = target.moved
    for name in expected.keys() - tensors.keys():
        problems.add(CkptError(f"the architecture has {expected[name]}, but no tensor of that name is given"))
    for name in tensors.keys() - expected.keys():
        problems.add(CkptError(f"tensor {name!r} is given, but the architecture has none"))
    for name in expected.keys() & tensors.keys():
        shape = tensors[name].parameter.shape
        if shape != expected[name].shape:
            problems.add(CkptError(f"{name} has shape {shape}", expected=str(expected[name])))


def _check_files(target: Target, problems: Problems) -> None:
    paths = [file.path for file in target.files] + list(target.documents) + list(target.sidecars)
    if target.single_file and len(paths) != 1:
        problems.add(CkptError("the destination is a single file", found=", ".join(sorted(paths)[:4]), expected="one"))
    for file in target.files:
        if file.excerpts and file.checksums:
            problems.add(CkptError(f"{file.path} is copied in part, and holds checksums of what is not known"))
    for path in paths:
        parts = path.split("/")
        if os.path.isabs(path) or ".." in parts or "" in parts or "\\" in path or "\0" in path:
            problems.add(CkptError(f"an output path leaves the destination: {path!r}"))
    for path in {path for path in paths if paths.count(path) > 1} if len(set(paths)) != len(paths) else ():
        problems.add(CkptError(f"two things would be written to {path!r}"))


def _check_links(source: Checkpoint, target: Target, problems: Problems) -> None:
    """No file is copied that is not one of the checkpoint's, whichever way a plugin found it."""
    home = Home(source.path, (*source.provenance.named, *target.named))
    embedded = [source.sidecars[name] for name in target.held if name in source.sidecars]
    for sidecar in (*embedded, *target.sidecars.values()):
        try:
            home.check(sidecar.path, weights=False)
        except FormatError as problem:
            problems.add(problem)


def _deliveries(target: Target, problems: Problems) -> dict[str, list[Write]]:
    files = {file.path: file for file in target.files}
    checksums = {file.path: _InOrder(file) for file in target.files}
    found: dict[str, list[Write]] = {}
    extents = {file.path: Extents(file) for file in target.files}
    for placed in target.placements:
        native = placed.native
        elements = math.prod(native.shape)
        written = sum(piece.tile.elements for piece in native.pieces) + native.padding
        if written != elements:
            problems.add(
                CkptError(
                    f"native tensor {native.name!r} gets {written} of its {elements} elements",
                    found=native.row.sentence,
                )
            )
        if placed.file not in files:
            problems.add(CkptError(f"{native.name!r} is placed in {placed.file!r}, which is not a file of the target"))
            continue
        strides = contiguous_strides(native.shape) if placed.quantised is None else placed.quantised.strides
        maps = (native.row.via.inverse(),) if native.row.via else ()
        checksum = checksums[placed.file].around(placed.offset)
        encoded = None
        if placed.quantised is None:
            extents[placed.file].add(placed.offset, elements * placed.dtype.size, native.name)
        else:
            encoded = _encoded(placed, target, checksums, problems)
            for operand in _held(placed).stored:
                stored = operand.stored
                extents[stored.file].add(stored.offset, stored.elements * stored.dtype.size, operand.name)
        tiles = [flat_tile(piece.tile, strides) for piece in native.pieces]
        woven = (
            {}
            if placed.quantised
            else strands(list(zip(native.pieces, tiles, strict=True)), target.moved, placed.dtype.size)
        )
        for number, (piece, tile) in enumerate(zip(native.pieces, tiles, strict=True)):
            offset = placed.offset if placed.quantised is None else 0
            held = None if placed.quantised is None else _held(placed)
            block = StoredPart(placed.file, placed.dtype, offset, tile, quantised=held)
            write = Write(block, maps, native.row.copy, checksum, encoded, woven.get(number))
            found.setdefault(piece.parameter, []).append(write)
    for taken in extents.values():
        for problem in taken.problems():
            problems.add(problem)
    return found


def _encoded(
    placed: Placement,
    target: Target,
    checksums: Mapping[str, _InOrder],
    problems: Problems,
) -> Encoded | None:
    """What is needed to encode a tensor that is stored as codes and scales."""
    native, held = placed.native, _held(placed)
    if native.padding or native.row.via or native.row.copy:
        problems.add(CkptError(f"{native.name!r} has padding, a value map or a twin, and can't be quantised"))
        return None
    strides = contiguous_strides(native.shape) if placed.quantised is None else placed.quantised.strides
    encoded = native.pieces if placed.kept is None else ()
    return Encoded(
        held,
        tuple((target.moved[piece.parameter], flat_tile(piece.tile, strides)) for piece in encoded),
        tuple(checksums[operand.stored.file].around(operand.stored.offset) for operand in held.stored),
        placed.kept,
    )


def _held(placed: Placement) -> Quantised:
    assert placed.quantised is not None and placed.quantised.quantised is not None
    return placed.quantised.quantised


class _InOrder:
    """The checksums of a file in the order of their starts, to be found by a byte that they are of."""

    def __init__(self, file: OutputFile) -> None:
        self._checksums = sorted(file.checksums, key=lambda one: one.start)
        self._starts = [one.start for one in self._checksums]
        self._whole = file.whole

    def around(self, offset: int) -> Checksum:
        """The checksum whose bytes hold the one at `offset`, or else that of the whole file."""
        number = bisect.bisect_right(self._starts, offset) - 1
        within = number >= 0 and offset < self._checksums[number].stop
        return self._checksums[number] if within else self._whole


def _chunk_elements(assembly: LazyParameter, deliveries: tuple[Write, ...], budget: int) -> int:
    """Elements per step: few, so that they stay in the cache, unless an axis is transposed, when many keep the runs long."""
    last = len(assembly.parameter.shape) - 1

    written = (delivery.block for delivery in deliveries if not delivery.left)
    turned = any(_is_turned(block.tile.links, last) for block in (*assembly.value_blocks, *written))
    elements = max(1, (budget if turned else min(budget, _CHUNK)) // _bytes_at_once(assembly, deliveries))
    # Rows that are encoded together are best moved together.
    units = [one.encoded.bytes_of_unit // 4 for one in deliveries if one.encoded is not None]
    if units and (unit := max(units)) * 4 <= budget:
        elements = max(unit, elements // unit * unit)
    return elements


@functools.lru_cache(1 << 10)
def _is_turned(links: tuple[Link, ...], last: int) -> bool:
    """Whether elements that lie side by side are not side by side on the `last` axis."""
    fastest = min((link for link in links if link.size > 1), key=lambda link: link.stride, default=None)
    return fastest is not None and fastest.axis != last


def _bytes_at_once(assembly: LazyParameter, deliveries: Iterable[Write]) -> int:
    """The bytes that a buffer has for each element that is moved: those of its own values, and of the tensors that are written with it."""
    moved = assembly, *others_of(delivery.strand for delivery in deliveries).values()
    return sum(max(4, one.dtype.size) for one in moved)


def _bytes_to_merge(assemblies: Iterable[LazyParameter]) -> int:
    """The bytes that the factors of an adapter take while they are multiplied, for each transfer: as many whatever is moved at a time."""
    return max((one.merged.working_bytes for one in assemblies if one.merged), default=0)


def _bytes_to_encode(deliveries: Iterable[Write]) -> int:
    """The least bytes of a buffer for rows that are encoded together. They are as many whatever is moved at a time, and take one buffer more as float32."""
    groups = (one.encoded.bytes_of_group for one in deliveries if one.encoded is not None)
    return max(groups, default=0) * (_BUFFERS + 1) // _BUFFERS


def _dequantised(transfers: list[Transfer], stands_for: Callable[[str], int]) -> Iterator[Loss]:
    """Codes and scales of the source in whose place their numbers are written, how these are rounded, and what lies beside them."""
    tensors, rounded, beside = Counter[str](), Counter[DType](), dict[str, set[str]]()
    for transfer in transfers:
        kept = {one.encoded.kept for one in transfer.deliveries if one.encoded is not None}
        blocks = [one for one in transfer.assembly.value_blocks if one.quantised is not None]
        gone = [held for block in blocks if (held := block.quantised) is not None and held not in kept]
        if gone:
            tensors[gone[0].what] += stands_for(transfer.name)
            if transfer.assembly.dtype != FP32 and not all(held.exact for held in gone):
                rounded[transfer.assembly.dtype] += stands_for(transfer.name)
        for operand in (one for held in gone for one in held.beside):
            beside.setdefault(operand.name.rpartition(".")[2], set()).add(operand.name)
    for what, count in tensors.items():
        yield Loss(
            "dropped",
            f"quantisation of {plural(count, 'tensor')}",
            f"{what}: their values are written, and not their codes",
        )
    for dtype, count in rounded.items():
        yield Loss(
            "rounded",
            plural(count, "tensor"),
            f"products of codes and scales, to {dtype}; --dtype fp32 keeps them",
        )
    for ending, names in sorted(beside.items()):
        yield Loss(
            "dropped",
            f"*.{ending}: {plural(len(names), 'tensor')}",
            "it lies beside codes, and no weight depends on it",
        )


def _rounding(transfers: list[Transfer], stands_for: Callable[[str], int]) -> list[Loss]:
    """What is rounded: values that a rewrite computes, to float32, and those that are stored in a narrower dtype."""
    rounded: Counter[str] = Counter()
    for transfer in transfers:
        assembly = transfer.assembly
        if (arithmetic := _arithmetic(assembly)) and assembly.bits > FP32.bits:
            rounded[f"computed in float32: {arithmetic}"] += stands_for(transfer.name)
        elif assembly.dtype.bits >= FP32.bits and (sums := _sums(transfer)):
            rounded[f"computed in float32: {sums}"] += stands_for(transfer.name)
        whole = [d for d in transfer.deliveries if d.encoded is None and _holds(d.block.dtype, assembly)]
        if sum(d.block.tile.elements for d in whole) >= assembly.parameter.elements:
            continue  # what is narrower lies beside the values themselves
        if any(d.encoded is not None and d.encoded.kept is None for d in transfer.deliveries):
            rounded[f"{_value_dtype(assembly)} values stored as codes and scales"] += stands_for(transfer.name)
        plain = [d for d in transfer.deliveries if d.encoded is None]
        for stored in {d.block.dtype for d in plain if not _holds(d.block.dtype, assembly)}:
            rounded[f"{_value_dtype(assembly)} values stored as {stored}"] += stands_for(transfer.name)
    return [Loss("rounded", plural(count, "tensor"), reason) for reason, count in rounded.items()]


def _sums(transfer: Transfer) -> str:
    """What is added on the way to the file, in words: of a float32 value it takes the last bits, of a narrower one hardly any."""
    return ", ".join(sorted({str(step) for one in transfer.deliveries for step in one.maps if isinstance(step, Add)}))


def _arithmetic(assembly: LazyParameter) -> str:
    """What is done to the values of a tensor, in words; a product with a power of two is not worth one."""
    done = ["sums of rows"] if assembly.added else []
    for step in assembly.maps:
        if not isinstance(step, Scale):
            done.append(str(step))
        elif significant_bits(step.factor):
            done.append(f"times {step.factor:.9g}")
    return ", ".join([*done, *["times another tensor"] * bool(assembly.factors)])


def _value_dtype(assembly: LazyParameter) -> DType:
    """The narrowest dtype that is known to hold the values: a product with a power of two has that of its other factor."""
    if assembly.float32 and assembly.dtype.size > FP32.size:
        return FP32
    return assembly.dtype if assembly.bits == assembly.dtype.bits else assembly.value_dtype


def _holds(stored: DType, assembly: LazyParameter) -> bool:
    """Whether every value of a tensor is a value of a dtype."""
    if assembly.fill is not None:
        return significant_bits(assembly.fill) <= stored.bits
    value = _value_dtype(assembly)
    return stored == value or stored.size > value.size
