"""The ledger of a source: every file of it and every key in its files, and what became of each.

    used      iter_0000100/mp_rank_00/model_optim_rng.pt: args         architecture
    carried   tokenizer/tokenizer.json                                 companion
    left      iter_0000100/mp_rank_00/model_optim_rng.pt: optimizer    optimizer state, 9.6 MB: ...

A reader enters what it knows; `closed` walks the source and enters whatever is not there yet as left. So nothing of a
source is dropped in silence: what is left becomes a typed `Loss` of the conversion, grouped by what it is.
"""

from __future__ import annotations

import fnmatch
import functools
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from ckpt_core.lazily import hints_in
from ckpt_core.lean import dataclass
from ckpt_core.sizes import size_text
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.text import plural

if TYPE_CHECKING:
    from ckpt_core.storage.archive.extent import Extent
    from ckpt_core.storage.archive.tree import Tree
else:
    hints_in(
        __name__,
        {
            "ckpt_core.storage.archive.extent": "Extent",
            "ckpt_core.storage.archive.tree": "Tree",
        },
    )

__all__ = [
    "ASKED",
    "LOADER",
    "MASTERS",
    "OPTIMIZER",
    "PROGRESS",
    "PROVENANCE",
    "RANDOM",
    "SCALER",
    "SCHEDULE",
    "SETTINGS",
    "UNKNOWN_FILE",
    "UNKNOWN_KEY",
    "Contents",
    "Entry",
    "Fate",
    "Ledger",
    "Loss",
    "Reason",
    "place_text",
    "tensor_bytes",
]

Fate = Literal["used", "carried", "left"]

_MOST_COUNTED = 100_000  # files of a folder that belongs to something else
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Loss:
    """Something of the source that the target does not have.

    `kind` is one of `dropped` (an item left behind), `rounded` (values in a narrower dtype), `unsaid`
    (a setting the target cannot record) or `assumed` (a reading that the files do not prove).
    """

    kind: str
    subject: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject} ({self.reason})"

    def to_json(self) -> dict[str, str]:
        return {"kind": self.kind, "subject": self.subject, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Reason:
    """What a thing that is left behind is, and why it is left."""

    what: str
    why: str


_ANEW = "weights alone are converted, so training starts anew from them"

OPTIMIZER = Reason("optimizer state", _ANEW)
SCHEDULE = Reason("learning rate schedule", _ANEW)
PROGRESS = Reason("iteration and consumed samples", _ANEW)
RANDOM = Reason("states of random generators", _ANEW)
LOADER = Reason("state of the data loader", _ANEW)
SCALER = Reason("loss scale", _ANEW)
# Why these are left where the state of a training is taken along.
_NOT_CONTINUED = {
    RANDOM.what: "dropout masks and the order of data after the switch are new; with dropout 0 nothing changes",
    LOADER.what: "a loader of data is told how many samples to skip",
}
_ELSEWHERE = "what goes along of the training does not depend on it"
SETTINGS = Reason("settings of the run", "they say how it was trained, and change no output of the model")
PROVENANCE = Reason(SETTINGS.what, "it says who wrote the files and when, and nothing of the model")
MASTERS = Reason("fp32 master weights", "--weights master reads them, in place of the rounded ones")
ASKED = Reason("keys that were left out", "as -o ignore_keys asks")
UNKNOWN_KEY = Reason("entries that the reader does not know", "it did not look at them")
UNKNOWN_FILE = Reason("files that the reader does not know", "it did not look at them")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the source (`key` is empty) or one key in it. `bytes` is its size where that is known, else 0."""

    file: str
    key: str
    fate: Fate
    what: str
    why: str = ""
    bytes: int = 0
    files: int = 1


@dataclass(frozen=True, slots=True)
class Contents:
    """What the keys of a file are, as a table: a pattern, and either what it is used for or the reason why it is left.

    CONTENTS = Contents({
        "model*": "weights",
        "args": "architecture",
        "optimizer": OPTIMIZER,
    })

    The first pattern that fits decides. A key that no pattern fits is left, as unknown.
    """

    rows: Mapping[str, str | Reason]

    def of(self, key: str) -> str | Reason:
        """What a key is used for, or why it is left."""
        match = _first_of(tuple(self.rows)).match(key)
        return UNKNOWN_KEY if match is None or match.lastindex is None else [*self.rows.values()][match.lastindex - 1]


@functools.cache
def _first_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """The patterns as one, a group for each. A distributed checkpoint has 30,000 keys."""
    return re.compile("|".join(f"({fnmatch.translate(pattern)})" for pattern in patterns) or "(?!)")


class Ledger:
    """What became of every file and key of a source. Entering a place again replaces what was said of it."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def sorted(self) -> list[Entry]:
        """The entries by file and key, whatever order they were found in."""
        return [self._entries[place] for place in sorted(self._entries)]

    def __contains__(self, file: str) -> bool:
        return (os.path.abspath(file), "") in self._entries

    def _enter(
        self, file: str, keys: Iterable[str], fate: Fate, what: str, why: str, size: int, files: int = 1
    ) -> None:
        file = os.path.abspath(file)
        for key in keys or ("",):
            self._entries[file, key] = Entry(file, key, fate, what, why, size, files)

    def used(self, what: str, file: str, *keys: str, size: int = 0) -> None:
        """A file, or keys in it, that the reading rests on."""
        self._enter(file, keys, "used", what, "", size)

    def carried(self, what: str, file: str, *keys: str, size: int = 0) -> None:
        """A file, or keys in it, that goes along with the model as it is."""
        self._enter(file, keys, "carried", what, "", size)

    def left(self, reason: Reason, file: str, *keys: str, size: int = 0, files: int = 1) -> None:
        """A file, or keys in it, that stays behind. `size` in bytes; `files`: how many, where `file` is a folder."""
        self._enter(file, keys, "left", reason.what, reason.why, size, files)

    def left_whole(self, reason: Reason, place: str, but: Collection[str] = ()) -> None:
        """A file, or a folder with all that lies in it, that stays behind without the files `but`; nothing where there is none.

        A folder is one entry, unless one of those files lies in it. Links are left as links.
        """
        place, others = os.path.abspath(place), {os.path.abspath(file) for file in but}
        if os.path.lexists(place) and place not in others:
            above = {folder for other in others for folder in _folders_of(other)}
            for path, size, count in _whole(place, others, above):
                self.left(reason, path, size=size, files=count)

    def contents(self, file: str, content: Mapping[Any, Any], table: Contents, section: str = "") -> None:
        """Every key of an unpickled or parsed file, as a table says; keys without a value have nothing to lose.

        `section` is where in the file `content` stands.
        """
        for key, value in content.items():
            row, place = table.of(str(key)), _joined(section, str(key))
            if isinstance(row, str):
                self.used(row, file, place)
            elif _is_empty(value):
                self.used("nothing, as it is empty", file, place)
            else:
                self.left(row, file, place, size=tensor_bytes(value))

    def config(self, file: str, fates: Mapping[str, tuple[Fate, str]], section: str = "") -> None:
        """Every key of a config, as its table says (`Config.fates`)."""
        for key, (fate, why) in fates.items():
            left = UNKNOWN_KEY if why == UNKNOWN_KEY.why else SETTINGS
            what = left.what if fate == "left" else "settings"
            self._enter(file, [_joined(section, key)], fate, what, why, 0)

    def asked(self, file: str, keys: Iterable[str]) -> None:
        """Keys that the user wants left out, with -o ignore_keys."""
        for key in keys:
            self.left(ASKED, file, key)

    def read_masters(self) -> None:
        """The fp32 masters were read, in place of the weights: they are not left."""
        for entry in list(self):
            if entry.what == MASTERS.what:
                self.used("weights", entry.file, *filter(None, [entry.key]))

    def joined(self, other: Iterable[Entry]) -> None:
        """Enter what another ledger says: that of a checkpoint which is read along with this one."""
        for entry in other:
            self._entries.setdefault((entry.file, entry.key), entry)

    def with_training(self, other: Iterable[Entry], masters: bool) -> Ledger:
        """A ledger of a source whose state of a training is taken along, its `masters` too: what `other` says of a place stands, and what is
        left of a training is left for another reason. This one stays as it is."""
        whole = Ledger()
        whole._entries = {**self._entries, **{(entry.file, entry.key): entry for entry in other}}
        for place, entry in whole._entries.items():
            if entry.fate == "left" and entry.what == MASTERS.what and masters:
                whole._entries[place] = replace(entry, fate="carried", why="")
            elif entry.fate == "left" and entry.why == _ANEW:
                whole._entries[place] = replace(entry, why=_NOT_CONTINUED.get(entry.what, _ELSEWHERE))
        return whole

    def with_carried(self, sections: Mapping[str, str]) -> Ledger:
        """A ledger of a source of which sections of files (file -> key) stand in the output as they are. This one stays as it is."""
        whole = Ledger()
        whole._entries = {
            place: replace(entry, fate="carried", what="settings", why="")
            if entry.file in sections and f"{entry.key}.".startswith(f"{sections[entry.file]}.")
            else entry
            for place, entry in self._entries.items()
        }
        return whole

    def without_training(self, why: str) -> Ledger | None:
        """A ledger that says of an optimizer why it stays behind, where it could have been taken along; None if it has no optimizer."""
        whole = Ledger()
        whole._entries = {
            place: replace(entry, why=f"training starts anew: {why}") if _is_optimizer(entry) else entry
            for place, entry in self._entries.items()
        }
        return whole if any(map(_is_optimizer, self)) else None

    def archive(self, tree: Tree, companions: Iterable[Extent]) -> None:
        """Enter the files of an archive, or of a folder that takes the place of one, that the reader did not."""
        carried = set(companions)
        for name in sorted(tree.files):
            place = tree.place(name)
            if tree[name] in carried:
                self.carried("companion", place, size=tree[name].size)
            elif place not in self:
                self.left(UNKNOWN_FILE, place, size=tree[name].size)

    def closed(self, path: str, files: Collection[str], companions: Collection[str], receipt: str) -> Ledger:
        """A ledger with what the reader did not enter: `files` that were read, `companions` that go along, and our own receipt.

        Then whatever else lies below `path` is left, with folders that hold nothing known as one entry. Links to
        folders are not followed. `receipt` is how names of receipts end.
        """
        whole = Ledger()
        whole._entries = dict(self._entries)
        for file in companions:
            if file not in whole:
                whole.carried("companion", file)
        for file in files:
            if file not in whole:
                whole.used("read", file)
        if not os.path.isdir(path):
            return whole
        places = {entry.file for entry in whole}
        above = {folder for place in places for folder in _folders_of(place)}
        for place, size, count in _others(os.path.abspath(path), places, above):
            if place.endswith(receipt):
                whole.used("receipt", place)
            else:
                whole.left(UNKNOWN_FILE, place, size=size, files=count)
        return whole

    def losses(self, root: str) -> list[Loss]:
        """What is left, one loss for each kind of thing, the largest first; places as they are called below `root`."""
        found: dict[str, list[Entry]] = {}
        for entry in self.sorted():
            if entry.fate == "left":
                found.setdefault(entry.what, []).append(entry)
        groups = sorted(found.items(), key=lambda group: -sum(entry.bytes for entry in group[1]))
        return [Loss("dropped", _subject(what, entries, root), _reason(entries)) for what, entries in groups]

    def to_json(self, root: str) -> list[dict[str, object]]:
        """Groups of one fate and reason with their places; of whole files that are used only how many there are."""
        groups: dict[tuple[Fate, str, str], list[Entry]] = {}
        for entry in self.sorted():
            groups.setdefault((entry.fate, entry.what, entry.why), []).append(entry)
        return [_group_json(entries, root) for entries in groups.values()]


def _is_optimizer(entry: Entry) -> bool:
    return entry.fate == "left" and entry.what == OPTIMIZER.what


def _group_json(entries: list[Entry], root: str) -> dict[str, object]:
    first = entries[0]
    counted = first.fate == "used" and not any(entry.key for entry in entries)
    places: dict[str, list[str]] = {}
    for entry in entries:
        places.setdefault(place_text(entry.file, root), []).extend([entry.key] if entry.key else [])
    return {
        "fate": first.fate,
        "what": first.what,
        **({"why": first.why} if first.why else {}),
        **({"bytes": total} if (total := sum(entry.bytes for entry in entries)) else {}),
        **({"files": len(entries)} if counted else {"places": {file: sorted(keys) for file, keys in places.items()}}),
    }


def place_text(file: str, root: str) -> str:
    """A file as it is called below the source, or by its whole path if it lies elsewhere."""
    base = os.path.abspath(root)
    base = base if os.path.isdir(base) else os.path.dirname(base)
    return os.path.relpath(file, base) if file.startswith(base + os.sep) else file


def _subject(what: str, entries: list[Entry], root: str) -> str:
    """`optimizer state, 9.6 MB: a.pt: optimizer, and in 3 more files`."""
    size = sum(entry.bytes for entry in entries)
    keys = list(dict.fromkeys(entry.key for entry in entries if entry.key))
    if what == SETTINGS.what and len(keys) > _MOST_NAMED:
        keys = [f"{len(keys)} keys"]
    files = list(dict.fromkeys(entry.file for entry in entries if entry.key))
    parts = (
        [_some([_file_text(entry, root) for entry in entries if not entry.key])] if len(files) < len(entries) else []
    )
    if keys:
        more = f", and in {len(files) - 1:,} more file{'s' * (len(files) > 2)}" if len(files) > 1 else ""
        parts.append(f"{place_text(files[0], root)}: {_some(keys)}{more}")
    return f"{what}{f', {size_text(size)}' if size else ''}: {'; '.join(filter(None, parts))}"


def _reason(entries: list[Entry]) -> str:
    reasons = list(dict.fromkeys(entry.why for entry in entries))
    if entries[0].what == SETTINGS.what:
        return "they change no output of the model; ckpt inspect --json names each"
    return (
        reasons[0] if len(reasons) == 1 else f"{reasons[0]}; in the ledger: {plural(len(reasons) - 1, 'more reason')}"
    )


def _file_text(entry: Entry, root: str) -> str:
    place = place_text(entry.file, root)
    return f"{place} with {entry.files:,} files" if entry.files > 1 else place


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _joined(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, list | tuple | dict | set | str) and not value)


def tensor_bytes(value: object) -> int:
    """The bytes of all tensors in a nest of dicts, lists and stand-ins."""
    from ckpt_core.storage.chunks.tensor import Blob, ChunkedTensor
    from ckpt_core.storage.pickle.opaque import Opaque

    total, pending, seen = 0, [value], set()
    while pending:
        item = pending.pop()
        if isinstance(item, StoredTensor | ChunkedTensor):
            total += math.prod(item.shape) * item.dtype.size
        elif isinstance(item, Blob):
            total += item.length
        elif isinstance(item, dict | list | tuple | Opaque) and id(item) not in seen:
            seen.add(id(item))
            if isinstance(item, dict):
                pending += item.values()
            elif isinstance(item, Opaque):
                pending += [*item.fields().values(), *item.items, *(inner for _, inner in item.entries)]
            else:
                pending += item
    return total


def _folders_of(place: str) -> Iterator[str]:
    folder = os.path.dirname(place)
    while folder not in ("", os.sep):
        yield folder
        folder = os.path.dirname(folder)


def _others(path: str, places: Collection[str], above: Collection[str]) -> Iterator[tuple[str, int, int]]:
    """(path, bytes, files) of whatever below a folder is in no place: files, and folders without any place in them."""
    for name in sorted(os.listdir(path)):
        inner = os.path.join(path, name)
        if inner not in places:
            yield from _whole(inner, places, above)


def _whole(place: str, places: Collection[str], above: Collection[str]) -> Iterator[tuple[str, int, int]]:
    """(path, bytes, files) of a file or a folder, or of what is in it and in no place. A link is not followed."""
    if os.path.islink(place) or not os.path.isdir(place):
        yield place, os.lstat(place).st_size, 1
    elif place in above:
        yield from _others(place, places, above)
    else:
        yield place, *_weight(place)


def _weight(folder: str) -> tuple[int, int]:
    """The bytes and the number of files below a folder, of the first `_MOST_COUNTED` at most."""
    size = count = 0
    for inside, _, names in os.walk(folder):
        for name in names:
            size += os.lstat(os.path.join(inside, name)).st_size
            count += 1
            if count == _MOST_COUNTED:
                return size, count
    return size, count
