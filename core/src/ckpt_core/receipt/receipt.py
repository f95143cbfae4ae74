"""A receipt, as it is returned by a conversion and as it is read back later."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ckpt_core.architecture import Architecture, from_json
from ckpt_core.errors import CkptError, FormatError
from ckpt_core.lean import dataclass
from ckpt_core.receipt.checksum import read_checked
from ckpt_core.receipt.places import receipt_path
from ckpt_core.storage.documents import read_json_object
from ckpt_core.text import plural

T = TypeVar("T")

_ASKED = {"tp": int, "pp": int, "ep": int, "dtype": str}


def _field(read: Callable[[Any], T]) -> functools.cached_property[T]:
    """A property of a receipt; `FormatError` where the body does not hold it as ckpt writes it."""

    @functools.wraps(read)
    def checked(receipt: Receipt) -> T:
        try:
            return read(receipt)
        except FormatError as problem:
            problem.file = problem.file or receipt.file
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(
                "not a receipt of ckpt", file=receipt.file, found=f"{type(error).__name__}: {error}"
            ) from None

    return functools.cached_property(checked)


@dataclass(frozen=True)
class Receipt:
    """What a conversion says of itself: enough to check its output later, and to find the way back.

    `body` is all of it, as in the file. `file` is where it lies: the name of a receipt that is not written yet.
    `found`: the output was at the destination already, whole, and nothing was done.
    A receipt may come from anyone, so every property is checked when it is asked for.
    """

    body: Mapping[str, Any]
    file: str
    found: bool = False

    @_field
    def fingerprint(self) -> str:
        """The fingerprint of the model as it was written."""
        return str(self.body["fingerprint"])

    @_field
    def digest_version(self) -> int:
        """The version of the fingerprint and of all digests in it.

        `FormatError` for one of a later ckpt, for digests of another version, and for a fingerprint that is not that of the tensors.
        """
        from ckpt_core.tensors.digest import fingerprint, version_of

        version, entries = version_of(self.fingerprint), _mapping(self.body["tensors"])
        for name, entry in self._tensors.items():
            for digest in (entry["digest"], entry.get("source_digest", entry["digest"])):
                if version_of(str(digest)) != version:
                    raise ValueError(f"a digest of {name} of another version than the fingerprint, {digest}")
        found = fingerprint((name, tuple(entry["shape"]), str(entry["digest"])) for name, entry in entries.items())
        if found != self.fingerprint:
            raise FormatError(
                "the receipt's fingerprint is not that of its tensors", found=self.fingerprint, expected=found
            )
        return version

    @_field
    def format(self) -> str:
        """The format of the output."""
        return str(self.body["target"]["format"])

    @_field
    def architecture(self) -> Architecture:
        """The architecture of the output."""
        return from_json(self.body["architecture"], self.file)

    @_field
    def decisions(self) -> Mapping[str, Any]:
        """What its writer decided."""
        return _mapping(self.body["target"]["decisions"])

    @_field
    def hints(self) -> dict[str, dict[str, Any]]:
        """The layout choices of each format that the model went through, by which it can be written again bit for bit."""
        hints = _mapping(self.body["target"].get("hints", {}))
        return {name: choices for name, choices in hints.items() if isinstance(choices, dict)}

    @_field
    def digests(self) -> Mapping[str, str]:
        """The digest of every canonical tensor as it was written."""
        return {name: str(entry["digest"]) for name, entry in self._tensors.items()}

    @_field
    def source_digests(self) -> Mapping[str, str]:
        """The digest of every canonical tensor as it was read: another one where values were changed on the way."""
        return {name: str(entry.get("source_digest", entry["digest"])) for name, entry in self._tensors.items()}

    @_field
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every canonical tensor, without vocabulary padding."""
        return {name: tuple(entry["shape"]) for name, entry in self._tensors.items()}

    @property
    def _tensors(self) -> Mapping[str, Any]:
        """The tensors of the model, and those of its training."""
        training = _mapping(self.body["training"])["tensors"] if self.keeps_training else {}
        return {**_mapping(self.body["tensors"]), **_mapping(training)}

    @property
    def keeps_training(self) -> bool:
        """Whether the state of a training was taken along."""
        return "training" in self.body

    @_field
    def training_state(self) -> str | None:
        """What was asked for of the state of the training: None where nothing was."""
        asked = self.body["options"].get("training_state")
        return None if asked is None else str(asked)

    @_field
    def files(self) -> Mapping[str, int]:
        """The size in bytes of every data file, by its path in the output."""
        return {str(path): int(size) for path, size in self.body["target"]["files"].items()}

    @_field
    def crcs(self) -> Mapping[str, str]:
        """The CRC-32 of every data file, as eight hexadecimal digits; a receipt of an older version has none."""
        return {str(path): str(crc) for path, crc in self.body["target"].get("crc32", {}).items()}

    @_field
    def source_files(self) -> Mapping[str, tuple[int, int]]:
        """The size in bytes and the time of change in nanoseconds of every file that was read, by its path."""
        return {
            str(one["path"]): (int(one["bytes"]), int(one["mtime_ns"])) for one in self.body["source"].get("files", ())
        }

    @_field
    def documents(self) -> Mapping[str, str]:
        """The BLAKE3 of every file that is not a data file."""
        return {str(path): str(digest) for path, digest in self.body["target"]["documents"].items()}

    @_field
    def rewrites(self) -> list[str]:
        """The exact rewrites that the target needed, in words."""
        said = self.decisions.get("rewrites", [])
        return [str(rewrite) for rewrite in (said if isinstance(said, list) else [said])]

    @_field
    def losses(self) -> list[dict[str, str]]:
        """What was lost: `kind`, `subject` and `reason` of each."""
        return [{key: str(text) for key, text in loss.items()} for loss in self.body["losses"]]

    @_field
    def asked(self) -> dict[str, Any]:
        """The ranks and the dtype that were asked for, by the names that `plan_conversion` has for them."""
        given = self.body["options"]
        return {name: kind(value) for name, kind in _ASKED.items() if (value := given.get(name)) is not None}

    @_field
    def options(self) -> dict[str, str]:
        """The options (`-o`) that were given."""
        return {str(key): str(value) for key, value in self.body["options"].get("options", {}).items()}

    @_field
    def weights(self) -> str:
        """Which weights were asked for."""
        return str(self.body["options"].get("weights", "auto"))

    @property
    def count(self) -> int:
        """How many files it is about."""
        return len(self.files) + len(self.documents)

    def check(self) -> Receipt:
        """The receipt itself; `FormatError` if one of its properties is not as ckpt writes it."""
        for name, value in vars(Receipt).items():
            if isinstance(value, functools.cached_property):
                getattr(self, name)
        return self

    def text(self) -> str:
        """The file, as text."""
        return json.dumps(self.body, indent=1) + "\n"

    def __repr__(self) -> str:
        try:
            tensors, losses = len(self.digests), len(self.losses)
            said = f"{self.format}, {plural(tensors, 'tensor')} in {plural(self.count, 'file')}, {plural(losses, 'loss', 'losses')}, {self.fingerprint[:15]}"
        except CkptError as error:
            said = error.problem
        return f"<Receipt {self.file}: {said}{', found' if self.found else ''}>"


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.60} is not an object")
    return value


def read_receipt(file: str, found: bool = False) -> Receipt:
    """The receipt in a file, its checksum checked; `FormatError` if the file is not as it was written."""
    return Receipt(read_checked(file), file, found)


def find_receipt(output: str) -> Receipt | None:
    """The receipt of an output folder or file, all of it checked; None if it has none.

    `FormatError` if what lies there is not a receipt of ckpt, or is not as it was written.
    """
    path = receipt_path(output)
    return read_receipt(path).check() if os.path.lexists(path) else None


def recorded_plan(file: str) -> str | None:
    """The plan that a receipt is about, whatever became of its checksum; None if there is no receipt."""
    try:
        return str(read_json_object(file)["plan"])
    except (FormatError, KeyError):
        return None
