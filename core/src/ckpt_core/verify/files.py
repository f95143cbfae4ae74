"""Every file of an output against its receipt: those that differ, those that are missing, those that were added.

A data file is read whole for its CRC-32, any other for its BLAKE3; a receipt that is older than the CRC has only the size
of a data file. What tools leave in a folder by themselves is named and no difference; every other file that is not in the
receipt is one, for a loader may take it up (transformers does so with an `adapter_config.json`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field
from functools import partial

from blake3 import blake3

from ckpt_core.engine.run import Listener, Progress
from ckpt_core.errors import FormatError
from ckpt_core.lean import dataclass
from ckpt_core.receipt import Receipt
from ckpt_core.receipt.places import RECEIPT, receipt_path
from ckpt_core.storage.bytes import crc32
from ckpt_core.storage.bytes.files import naming
from ckpt_core.storage.bytes.stored import open_stream

_PIECE = 1 << 20
_READERS = 4

# What tools leave in a folder by themselves, and no framework loads. `.metadata` and `.zarray` are not here: they are data.
_OF_TOOLS = {
    ".cache": "huggingface_hub",  # where it downloads to a folder
    ".git": "git",
    ".gitattributes": "git",
    ".gitignore": "git",
    ".DS_Store": "the Finder of macOS",
    "Thumbs.db": "the Explorer of Windows",
    ".ipynb_checkpoints": "Jupyter",
}


@dataclass
class FilesVerdict:
    """What became of the files of an output: (path, what is wrong), and what can't be called wrong or right."""

    broken: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def check_files(recorded: Receipt, output: str, listener: Listener | None = None) -> FilesVerdict:
    """Check every file of a folder, or a single file; reads all of them once."""
    verdict = FilesVerdict()
    checks = [
        *((path, partial(_data_problem, recorded, path)) for path in recorded.files),
        *((path, partial(_document_problem, digest)) for path, digest in recorded.documents.items()),
    ]
    places = {path: _place(output, path) for path, _ in checks}
    total = sum(os.path.getsize(place) for place in places.values() if os.path.isfile(place))

    def problem(check: tuple[str, Callable[[str], str | None]]) -> str | None:
        place = places[check[0]]
        return check[1](place) if os.path.isfile(place) else "missing"

    done = 0
    with ThreadPoolExecutor(_READERS, "check") as pool:
        for (path, _), found in zip(checks, pool.map(problem, checks), strict=True):
            if found is not None:
                verdict.broken.append((path, found))
            elif listener is not None:
                done += os.path.getsize(places[path])
                listener(Progress(done, total, path))
    if os.path.isdir(output):
        _note_added(output, places.keys() | {RECEIPT}, verdict)
    unread = len(recorded.files.keys() - recorded.crcs.keys())
    if unread:
        verdict.remarks.append(
            f"the receipt is of an older version, with only the sizes of {unread} data files: what is neither a tensor nor a "
            "document (padding, optimizer states, headers) could not be checked"
        )
    verdict.broken.sort()
    return verdict


def _place(output: str, path: str) -> str:
    """Where a recorded file is; a single file may have been renamed."""
    if os.path.isabs(path) or ".." in path.split("/"):
        raise FormatError("the receipt names a file outside its folder", file=receipt_path(output), found=path)
    return os.path.join(output, path) if os.path.isdir(output) else output


def _data_problem(recorded: Receipt, path: str, place: str) -> str | None:
    size, actual = recorded.files[path], os.path.getsize(place)
    if actual != size:
        return f"{actual} bytes instead of {size}"
    if path not in recorded.crcs:
        return None
    with open_stream(place) as file:
        crc = f"{crc32.of_range(file, 0, size):08x}"
    return None if crc == recorded.crcs[path] else f"changed: CRC-32 {crc} instead of {recorded.crcs[path]}"


def _document_problem(expected: str, place: str) -> str | None:
    digest = blake3()
    with naming(place), open_stream(place) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return None if digest.hexdigest() == expected else "changed"


def _note_added(output: str, known: set[str], verdict: FilesVerdict) -> None:
    left: Counter[str] = Counter()
    for path in _walked(output):
        tool = next((part for part in path.split("/") if part in _OF_TOOLS), None)
        if path not in known and tool is None:
            verdict.broken.append((path, "added: it is not in the receipt"))
        elif path not in known and tool is not None:
            left[tool] += 1
    verdict.remarks += [
        f"{tool} was added ({count} {'file' if count == 1 else 'files'}): {_OF_TOOLS[tool]} leaves it, and no framework loads it"
        for tool, count in sorted(left.items())
    ]


def _walked(folder: str) -> Iterator[str]:
    """The path of every file below a folder, links to folders among them: they are not followed."""
    for parent, folders, files in os.walk(folder):
        inside = os.path.relpath(parent, folder)
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in sorted(files + links):
            yield name if inside == "." else f"{inside}/{name}"
