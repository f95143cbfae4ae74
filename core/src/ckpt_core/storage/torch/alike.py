"""Torch files of one tensor each that are alike but for its values: the next is told from the last.

A distributed checkpoint has tens of thousands, of a few shapes. All that is looked at when one is read is kept with what it says: the
headers of its members, the directory, the pickle. A file of the same length that has the same bytes at these places says the same, of a tensor
that lies as far behind its beginning. What may differ are checksums of members that are not read, where both places that tell one tell the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import BinaryIO

from ckpt_core.lean import dataclass
from ckpt_core.storage.archive.inflate import holds_tar_in_gzip
from ckpt_core.storage.archive.zipdir import Directory, Member
from ckpt_core.storage.bytes.remote import object_at
from ckpt_core.storage.bytes.stored import StoredFile, open_file
from ckpt_core.storage.pickle.limits import Limits
from ckpt_core.storage.tensor import Record, StoredTensor

_MOST_LENGTHS = 1 << 7  # with the two below: what is kept takes 16 MiB at most
_MOST_OF_A_LENGTH = 8
_MOST_BYTES = 1 << 14
_SUM = 4  # bytes of a CRC-32


@dataclass(frozen=True, slots=True)
class _Form:
    """What files of one length look like at their two ends, which have `head` and `tail` bytes. In both together, `fixed` are the
    places whose bytes are `same`, `sums` the pairs of places of equal checksums, and `sum_at` that of the tensor's.

    `tensor` is that of the file that was read, which began at byte `start`.
    """

    head: int
    tail: int
    fixed: tuple[slice, ...]
    same: bytes
    sums: tuple[tuple[slice, slice], ...]
    sum_at: slice
    tensor: StoredTensor
    start: int

    def tensor_in(self, file: str, start: int, ends: bytes) -> StoredTensor | None:
        """The tensor of a torch file that looks so, from byte `start` of a file on; None for one that does not."""
        if b"".join(map(ends.__getitem__, self.fixed)) != self.same or any(ends[a] != ends[b] for a, b in self.sums):
            return None
        alike, moved, record = self.tensor, start - self.start, self.tensor.record
        if record is not None:
            crc = int.from_bytes(ends[self.sum_at], "little")
            if not crc:  # torch can be told to write no checksums: then there is no record
                return None
            record = Record(file, record.name, record.offset + moved, record.size, crc)
        return StoredTensor(file, alike.dtype, alike.shape, alike.offset + moved, alike.strides, record)


_FORMS: dict[tuple[int, Limits], list[_Form]] = {}


def known(path: str, start: int, length: int, limits: Limits) -> StoredTensor | None:
    """The tensor in a torch file that looks like one that was read; None where none does. Bytes of a store are asked for by whoever reads it all."""
    forms = _FORMS.get((length, limits))
    if not forms or object_at(path) is not None:
        return None
    with open_file(path) as file:
        if not 0 <= start <= start + length <= file.size or holds_tar_in_gzip(file):
            return None
        ends, of = b"", None
        for form in forms:
            if of != (form.head, form.tail):
                ends, of = _ends(file, start, length, form.head, form.tail), (form.head, form.tail)
            if (found := form.tensor_in(file.path, start, ends)) is not None:
                return found
    return None


def _ends(file: StoredFile, start: int, length: int, head: int, tail: int) -> bytes:
    return file.pread(head, start) + file.pread(tail, start + length - tail)


def remember(
    tensor: StoredTensor,
    storage: Member,
    stream: BinaryIO,
    directory: Directory,
    read: Iterable[Member],
    start: int,
    length: int,
    limits: Limits,
) -> None:
    """Note what a torch file in `length` bytes from `start` of another looks like, which holds this tensor alone, in a member. `read` are
    those whose content was read.
    """
    forms = _FORMS.get((length, limits), [])
    if len(forms) >= _MOST_OF_A_LENGTH or len(_FORMS) >= _MOST_LENGTHS:
        return
    read = list(read)
    places = [*directory.looked_at, *((member.offset, member.size) for member in read)]
    head = max((at + count for at, count in places if at < storage.offset), default=start) - start
    tail = start + length - min((at for at, _ in places if at >= storage.offset + storage.size), default=start + length)
    if head > storage.offset - start or head + tail > min(_MOST_BYTES, length):
        return  # something was looked at that lies within the tensor
    stream.seek(start)
    ends = stream.read(head)
    stream.seek(start + length - tail)
    ends += stream.read(tail)

    def inside(at: int) -> int:
        return at - start if at < storage.offset else at - (start + length - tail) + head

    def sum_at(at: int) -> slice:
        return slice(inside(at), inside(at) + _SUM)

    told = {member.name for member in (*read, *(() if tensor.record else (storage,)))}
    pairs = [(sum_at(own), sum_at(other)) for name, (own, other) in directory.sums.items() if name not in told]
    alone = [
        other for own, other in pairs if not any(ends[own]) and any(ends[other])
    ]  # the member's own sum follows its data
    pairs = [(own, other) for own, other in pairs if ends[own] == ends[other]]
    fixed = bytearray(head + tail)
    for at, count in places:
        fixed[inside(at) : inside(at) + count] = b"\1" * count
    for place in (*alone, *(place for pair in pairs for place in pair)):
        fixed[place] = bytes(_SUM)
    slices = tuple(slice(*match.span()) for match in re.finditer(b"\1+", fixed))
    same = b"".join(ends[one] for one in slices)
    form = _Form(head, tail, slices, same, tuple(pairs), sum_at(directory.sums[storage.name][1]), tensor, start)
    _FORMS[length, limits] = [form, *forms]
