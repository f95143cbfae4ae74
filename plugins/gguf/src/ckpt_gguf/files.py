"""The files of a model in GGUF: one, or several parts, and what may lie beside them.

model.gguf                                              metadata, and all tensors
model-00001-of-00003.gguf ... -00003-of-00003.gguf      metadata in the first part, tensors in any
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from ckpt_core.sdk import FormatError, disk, schema
from ckpt_gguf.container import Entry, Header, read_header
from ckpt_gguf.places import SUFFIX, in_folder

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


@schema.dataclass(frozen=True)
class Files:
    """The parts of a model. `metadata` is that of the first; `tensors` are those of all."""

    headers: Sequence[Header]
    tensors: dict[str, Entry]

    @property
    def metadata(self) -> dict[str, Any]:
        return self.headers[0].metadata

    @property
    def first(self) -> str:
        """The file with the metadata."""
        return self.headers[0].state.path

    @property
    def states(self) -> list[disk.FileState]:
        return [header.state for header in self.headers]


def find_parts(path: str) -> list[str]:
    """The files of the model at `path`: a file, a part of several, or a folder that holds one model."""
    if os.path.isdir(path):
        names = in_folder(path)
        models = {match["stem"] if (match := _PART.fullmatch(name)) else name for name in names}
        if len(models) != 1:
            raise FormatError(
                "the folder holds several models" if models else "there is no GGUF file here",
                file=path,
                found=", ".join(names)[:200] or None,
                fix="give one of these files" if models else "give the file",
            )
        path = os.path.join(path, names[0])
    match = _PART.fullmatch(os.path.basename(path))
    if match is None:
        return [path]
    folder, count = os.path.dirname(path), int(match["count"])
    if not 0 < count < 10_000:
        raise FormatError("no model has so many parts", file=path, found=count)
    parts = [
        os.path.join(folder, f"{match['stem']}-{number:05d}-of-{count:05d}{SUFFIX}") for number in range(1, count + 1)
    ]
    missing = [part for part in parts if not os.path.isfile(part)]
    if missing:
        raise FormatError(
            "a part of the model is missing",
            file=missing[0],
            found=f"{count - len(missing)} of {count} parts",
            fix="put all parts into one folder",
        )
    return parts


def read_files(path: str) -> Files:
    """All parts of a model, from their headers. `FormatError` where they are not the parts of one."""
    parts = find_parts(path)
    headers = [read_header(part) for part in parts]
    tensors: dict[str, Entry] = {}
    for number, header in enumerate(headers):
        said = header.metadata.get(_NUMBER, number), header.metadata.get(_COUNT, len(parts) if number else 0)
        if said not in ((number, len(parts)), (0, 0)):
            raise FormatError(
                "the file says that it is another part",
                file=header.state.path,
                found=f"{_NUMBER} = {said[0]}, {_COUNT} = {said[1]}",
                expected=f"{number} and {len(parts)}",
                fix=None if len(parts) > 1 else "keep the names that the parts were split under",
            )
        for name, entry in header.tensors.items():
            if name in tensors:
                raise FormatError(
                    f"tensor {name!r} lies in two parts", file=entry.file, found=f"also in {tensors[name].file}"
                )
            tensors[name] = entry
    counted = headers[0].metadata.get(_TENSORS)
    if counted is not None and counted != len(tensors):
        raise FormatError(
            f"{_TENSORS} counts other tensors", file=headers[0].state.path, found=len(tensors), expected=counted
        )
    return Files(headers, tensors)
