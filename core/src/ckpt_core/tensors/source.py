"""Reading canonical tensors: the values of one box at a time, out of files that are what they were when the plan was made."""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType

from blake3 import blake3

from ckpt_core import numpy as np
from ckpt_core.errors import FormatError
from ckpt_core.layout import Tile
from ckpt_core.storage.archive.inflate import Inflated, inflated
from ckpt_core.storage.bytes import crc32
from ckpt_core.storage.bytes.files import FileState, OpenFiles, Use, pread_into
from ckpt_core.storage.bytes.pagecache import ReadOnce
from ckpt_core.storage.bytes.stored import opened
from ckpt_core.storage.bytes.watch import touched
from ckpt_core.storage.dtypes import FP32, DType, decode, encode
from ckpt_core.storage.scratch import place_between, scratch
from ckpt_core.storage.tensor import Quantised, Record
from ckpt_core.tensors.assembly import Factor, LazyParameter, Merged, StoredPart, WeightedRows
from ckpt_core.tensors.box import Box, Loops, loops_of, tile_view
from ckpt_core.tensors.merged import merged_values
from ckpt_core.tensors.pieces import chunks, cuts
from ckpt_core.tensors.quantised import read_numbers, stored_rows
from ckpt_core.tensors.strided import ReadInto, WriteFrom, read_box

_PIECE = 1 << 20


class SourceFiles:
    """Open source files, each checked to be what it was when the plan was made.

    With `drop` what was read is dropped from the kernel's cache.
    """

    def __init__(self, states: Iterable[FileState], drop: bool = False) -> None:
        self._states = {state.path: state for state in states}
        self._files = OpenFiles()
        self.touched = self._files.touched
        self._read_into = ReadOnce().read_into if drop else pread_into
        self._inflated: dict[str, Inflated | None] = {}
        self._norms: dict[str, np.ndarray] = {}
        self._sound: set[Record] = set()

    def __reduce__(self) -> tuple[type[SourceFiles], tuple[list[FileState]]]:
        """To another process the states go alone: it opens the files itself."""
        return SourceFiles, (list(self._states.values()),)

    def remote_states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """What those of these files that lie in a store were when the plan was made."""
        states = (self._states[path] for path in sorted(paths) if path in self._states)
        return tuple(state for state in states if state.remote is not None)

    def seen(self, paths: Iterable[str]) -> str:
        """How this machine knows again what these files are: another text when one of them was touched. Empty if one was touched already
        before it was opened, so that nobody knows what was read."""
        listed = sorted(paths)
        if not self.touched.isdisjoint(listed):
            return ""
        states = (self._states[path] for path in listed if path in self._states)
        return blake3("".join(f"{one.ctime_ns} {one.inode}\n" for one in states).encode()).hexdigest(16)

    def chunks(
        self, assembly: LazyParameter, elements: int, start: int, stop: int, sums: Counter[str], targets: Iterable[int]
    ) -> Iterator[tuple[Box, np.ndarray]]:
        """The canonical values from element `start` to `stop`, box by box (`pieces.chunks`), each as `read` gives it, in this thread's buffer.

        `targets` are the bytes of files to which the first values of the boxes go; there may be more.
        """
        shape = assembly.parameter.shape
        blocks = () if assembly.averaged else assembly.blocks
        cut = [(block, cuts(block.tile, shape, elements, start, stop)) for block in blocks]
        for number, (box, target) in enumerate(zip(chunks(shape, elements, start, stop), targets, strict=False)):
            parts = [(block, loops) for block, of_box in cut for loops in of_box[number]]
            yield box, self.read(assembly, box, transient=True, sums=sums, parts=parts, target=target)

    def read(
        self,
        assembly: LazyParameter,
        box: Box,
        *,
        transient: bool = False,
        sums: Counter[str] | None = None,
        parts: Sequence[tuple[StoredPart, Loops]] | None = None,
        target: int = 0,
    ) -> np.ndarray:
        """The canonical values of `box`, a (start, stop) for each axis: an array of shape (stop - start, ...), C-contiguous, of raw
        elements of `assembly.value_dtype` (bf16 as uint16).

        `transient`: they may lie in this thread's buffer, where its next read replaces them; `target` is the byte of a file that they are
        then written to. `parts` are those of the tensor's own blocks that lie in the box, where they are known. The box's contribution to the
        checksums of the records that it lies in is added to `sums`. `FormatError` where a file changed or is cut off, or
        where replicas differ that must agree.
        """
        shape = tuple(stop - start for start, stop in box)
        if assembly.fill is not None:
            return np.full(shape, assembly.fill, np.float32)
        if assembly.added:
            return self._mapped(assembly, box, self._sum(assembly.added, box))
        if assembly.merged is not None:
            raw = self._merged(assembly.merged, box, sums)
            return self._mapped(assembly, box, decode(raw, assembly.dtype)) if _is_mapped(assembly) else raw
        if transient:
            source = parts[0][0].byte_of(parts[0][1]) if parts else 0
            raw = scratch("raw", shape, assembly.dtype.numpy, place_between(source, target))
        else:
            raw = np.empty(shape, assembly.dtype.numpy)
        if assembly.averaged:
            self._average(assembly, box, raw, sums)
        else:
            self._gather(_parts(assembly.blocks, box) if parts is None else parts, raw, assembly.dtype, sums)
        if assembly.least is not None:
            self._check_least(assembly, assembly.least, raw)
        if assembly.float32 and assembly.dtype.size > FP32.size:
            self._check_float32(assembly, raw)
        for block in assembly.copies:
            for tile in block.within(box):
                self._compare(assembly, block, tile, tile_view(raw, tile, box), sums)
        for block in assembly.rounded:
            for tile in block.within(box):
                self._compare_rounded(assembly, block, tile, tile_view(raw, tile, box), sums)
        if not _is_mapped(assembly):
            return raw
        return self._mapped(assembly, box, decode(raw, assembly.dtype))

    def floats(self, assembly: LazyParameter, box: Box) -> np.ndarray:
        """The same values as float32; they may be those of `read` themselves."""
        return decode(self.read(assembly, box), assembly.value_dtype)

    def _merged(self, merged: Merged, box: Box, sums: Counter[str] | None) -> np.ndarray:
        for update in merged.updates:
            for factor in update.factors:
                self._check_records_once(factor.all_blocks)
        # The base counts once for this box: what is read of it besides, for norms, must not count again.
        return merged_values(merged, box, self.read(merged.base, box, sums=sums), self.read, self._norms)

    def _mapped(self, assembly: LazyParameter, box: Box, values: np.ndarray) -> np.ndarray:
        for value_map in assembly.maps:
            values = value_map.apply(values)
        for factor in assembly.factors:
            values = values * self._factor(factor, box)
        return np.ascontiguousarray(values, dtype=np.float32)

    def _factor(self, factor: Factor, box: Box) -> np.ndarray:
        """The float32 values of a factor inside a box of the other tensor, with an axis of one wherever it has none."""
        self._check_records_once(factor.assembly.all_blocks)
        inside = tuple(box[axis] for axis in factor.axes)
        values = self.floats(factor.assembly, inside)
        return values.reshape([stop - start if axis in factor.axes else 1 for axis, (start, stop) in enumerate(box)])

    def _sum(self, terms: Sequence[WeightedRows], box: Box) -> np.ndarray:
        """The float32 rows of `box` of a sum; of each tensor no more is read than the rows between the first and the last that count."""
        (start, stop), *inner = box
        total = np.zeros([stop - start, *(high - low for low, high in inner)], np.float32)
        for term in terms:
            rows, weights = np.array(term.rows[start:stop]), np.array(term.weights[start:stop], np.float32)
            if not rows.size:
                continue
            self._check_records_once(term.assembly.all_blocks)
            first, last = int(rows.min()), int(rows.max()) + 1
            single = len(term.assembly.parameter.axes) < len(box)
            values = self.floats(term.assembly, tuple(inner) if single else ((first, last), *inner))
            values = values[None] if single else values
            for number in range(rows.shape[1]):
                share = weights[:, number].reshape(-1, *[1] * len(inner))
                part = np.zeros_like(total)  # a row that does not count may hold infinities
                total += np.multiply(share, values[rows[:, number] - first], out=part, where=share != 0)
        return total

    def _gather(
        self, parts: Sequence[tuple[StoredPart, Loops]], raw: np.ndarray, dtype: DType, sums: Counter[str] | None
    ) -> None:
        """The elements of a box, in `dtype`, out of the parts of blocks in it; zeros where none is."""
        if sum(math.prod(loops.sizes) for _, loops in parts) != raw.size:
            raw[...] = 0
        for block, loops in parts:
            view = loops.view(raw)
            if block.dtype == dtype:
                self._fill(block, loops.offset, loops.strides, view, sums)
            else:  # a part that is not quantised, of a tensor whose other parts are, and are not rounded
                stored = scratch("narrower", view.shape, block.dtype.numpy)
                self._fill(block, loops.offset, loops.strides, stored, sums)
                view[...] = encode(decode(stored, block.dtype), dtype)

    def _average(self, assembly: LazyParameter, box: Box, mean: np.ndarray, sums: Counter[str] | None) -> None:
        ranks = (assembly.blocks, *assembly.averaged)
        mean[...] = 0
        for blocks in ranks:
            stored = scratch("stored", mean.shape, blocks[0].dtype.numpy)
            self._gather(_parts(blocks, box), stored, blocks[0].dtype, sums)
            mean += decode(stored, blocks[0].dtype)
        mean /= np.float32(len(ranks))

    def _fill(
        self, block: StoredPart, first: int, strides: Sequence[int], view: np.ndarray, sums: Counter[str] | None
    ) -> None:
        """Read elements of a block from the one with the number `first` on into a view with an axis for each of the loops with these `strides`."""
        offset = block.offset + first * block.dtype.size
        if block.quantised is not None:
            self._check_operands(block.quantised)
            numbers = functools.partial(read_numbers, block.quantised, block.dtype, self._reading)
            read_box(numbers, offset, strides, view)
            return
        add = None if sums is None or block.record is None else _adder(block.record, sums)
        with self._reading(block.path) as read:
            read_box(read, offset, strides, view, add)

    def stored(self, quantised: Quantised, matrix: int, first: int, rows: int) -> list[np.ndarray]:
        """What is stored of `rows` rows of a matrix from row `first` on: raw elements [stored rows, width]. What lies beside the numbers
        comes with the first row of all."""
        self._check_operands(quantised)
        found = []
        for operand in quantised.operands:
            with self._reading(operand.stored.file) as read:
                found.append(stored_rows(operand, 0, quantised.matrices, matrix, first, rows, read).copy())
        for one in quantised.beside if (matrix, first) == (0, 0) else ():
            with self._reading(one.stored.file) as read:
                found.append(stored_rows(one, 0, 1, 0, 0, 1, read).copy())
        return found

    def _reading(self, path: str) -> contextlib.AbstractContextManager[ReadInto]:
        """How to read a file (`with`): its own bytes, or, of a tar in gzip, the inflated ones."""
        state = self._states.get(path)
        if path not in self._inflated:
            self._inflated[path] = inflated(path, state)
        if (contents := self._inflated[path]) is not None:
            return contextlib.nullcontext(contents.read_into)
        if state is not None and state.remote is not None:
            return contextlib.nullcontext(opened(path, state).read_into)
        return _Reading(self._files.descriptor(path, state), self._read_into, path)

    def _compare(
        self, assembly: LazyParameter, block: StoredPart, tile: Tile, view: np.ndarray, sums: Counter[str] | None
    ) -> None:
        copy = scratch("copy", view.shape, block.dtype.numpy)
        self._fill(block, tile.native_base[0], [link.stride for link in tile.links], copy, sums)
        if block.dtype != assembly.dtype or not np.array_equal(_bits(copy), _bits(view)):
            self._check_records((block, *assembly.blocks))
            raise FormatError(
                f"two copies of {assembly.parameter.name} differ",
                file=block.path,
                found=_difference(copy, block.dtype, view, assembly.dtype),
                expected=f"the values in {'another tensor of the same file' if block.path == assembly.blocks[0].path else assembly.blocks[0].path}",
                fix="checkpoint and config say they are one tensor (a tied head, a replicated parameter): find out which copy "
                "is right, or whether the config is another model's",
            )

    def _compare_rounded(
        self, assembly: LazyParameter, block: StoredPart, tile: Tile, view: np.ndarray, sums: Counter[str] | None
    ) -> None:
        copy = scratch("copy", view.shape, block.dtype.numpy)
        self._fill(block, tile.native_base[0], [link.stride for link in tile.links], copy, sums)
        rounded = encode(decode(np.asarray(view, order="C"), assembly.dtype), block.dtype)
        if not np.array_equal(_bits(rounded), _bits(copy)):
            self._check_records((block, *assembly.blocks))
            raise FormatError(
                f"{assembly.parameter.name} in {assembly.dtype} does not round to its copy in {block.dtype}",
                file=assembly.blocks[0].path,
                expected=f"the values in {block.path}, before they were rounded",
                fix="one of them was changed after they were saved, or they are misread: read the copy alone, with --weights model",
            )

    def _check_least(self, assembly: LazyParameter, least: float, raw: np.ndarray) -> None:
        values = decode(raw, assembly.dtype)
        if not (values >= least).all():  # nor is a NaN a mean of squares
            self._check_records(assembly.blocks)
            what = "not at least 0" if least == 0 else "no numbers"
            raise FormatError(
                f"{assembly.parameter.name} has values that are {what}",
                file=assembly.blocks[0].path,
                found=f"{float(values[~(values >= least)][0]):g}",
                expected="a mean of squares" if least == 0 else "a mean of gradients",
                fix="the file is damaged, or it is of another kind than its reader takes it for; --training-state drop leaves it behind",
            )

    def _check_float32(self, assembly: LazyParameter, raw: np.ndarray) -> None:
        if not np.array_equal(decode(raw, assembly.dtype), raw, equal_nan=True):
            self._check_records(assembly.blocks)
            raise FormatError(
                f"{assembly.parameter.name} has values that float32 does not hold",
                file=assembly.blocks[0].path,
                found=f"{assembly.dtype}",
                expected="values of float32, in whatever dtype they are stored",
                fix="they would be rounded, and the run would not go on as it was; --training-state drop leaves it behind",
            )

    def _check_records(self, blocks: Iterable[StoredPart]) -> None:
        """Of values that contradict each other, say which are damaged, where a checksum tells."""
        for record in {block.record for block in blocks if block.record is not None}:
            self.check_record(record)

    def _check_records_once(self, blocks: Iterable[StoredPart]) -> None:
        """Check the records of what is read again and again, before it is read first."""
        for record in {block.record for block in blocks if block.record is not None} - self._sound:
            self.check_record(record)
            self._sound.add(record)

    def _check_operands(self, quantised: Quantised) -> None:
        """Check the records of what numbers are computed of, as those of what is read again and again."""
        for record in (operand.stored.record for operand in quantised.stored):
            if record is not None and record not in self._sound:
                self.check_record(record)
                self._sound.add(record)

    def check_record(self, record: Record) -> None:
        """Read a record for its checksum alone; `FormatError` if it is damaged."""
        crc, end = 0, record.offset + record.size
        with self._reading(record.file) as read:
            for start in range(record.offset, end, _PIECE):
                piece = bytearray(min(_PIECE, end - start))
                read(memoryview(piece), start)
                crc = crc32.crc32(piece, crc)
        record.check(crc)

    def recheck(self) -> None:
        """Raise `FormatError` if any source file changed since the plan was made; `touched` then has those that were touched."""
        self.touched.update(path for path, state in self._states.items() if not state.recheck())

    def check_untouched(self) -> None:
        """Raise `FormatError` if any source file changed since, and `TouchedSource` if one was touched: for whoever can do all of it again."""
        self.recheck()
        if self.touched:
            raise touched(min(self.touched))

    def close(self) -> None:
        self._files.close()


class _Reading:
    """How to read a file while its descriptor is in use. It is a class for the reason that `storage.bytes.files` gives."""

    __slots__ = ("_path", "_read_into", "_use")

    def __init__(self, use: Use, read_into: Callable[..., None], path: str) -> None:
        self._use, self._read_into, self._path = use, read_into, path

    def __enter__(self) -> ReadInto:
        return functools.partial(self._read_into, self._use.__enter__(), path=self._path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._use.__exit__(kind, error, trace)


def _parts(blocks: Iterable[StoredPart], box: Box) -> list[tuple[StoredPart, Loops]]:
    """What lies in a box of blocks that cover a tensor."""
    return [(block, loops) for block in blocks for loops in loops_of(block.tile, box)]


def _is_mapped(assembly: LazyParameter) -> bool:
    return bool(assembly.maps or assembly.factors)


def _difference(copy: np.ndarray, dtype: DType, view: np.ndarray, other: DType) -> str:
    if dtype != other:
        return f"{dtype}, and {other}"
    return f"{np.count_nonzero(_bits(copy) != _bits(view)):,} of {view.size:,} elements are others"


def _adder(record: Record, sums: Counter[str]) -> WriteFrom:
    """Adds bytes at an offset of the file to the sum of the record that they are of."""

    key, end = record.key, record.offset + record.size

    def add(view: memoryview, offset: int) -> None:
        behind = end - offset - len(view)
        sums[key] ^= crc32.shifted(crc32.remainder(view), behind)

    return add


def _bits(array: np.ndarray) -> np.ndarray:
    """The elements as whole numbers of the same bits, by which a NaN equals itself, and -0 not 0."""
    return array.view(f"u{array.itemsize}")
