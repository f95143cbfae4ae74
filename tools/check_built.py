"""What is in built wheels and sdists: one version, the licence, authors, addresses, and a long description of their own."""

from __future__ import annotations

import email
import sys
import tarfile
import zipfile
from pathlib import Path

NEEDED = (
    "License-Expression",
    "Author",
    "Project-URL",
    "Classifier",
    "Keywords",
    "Requires-Python",
    "Description-Content-Type",
)


def files_in(path: Path) -> dict[str, bytes]:
    """The texts of an archive that say what it is, by their names."""
    wanted = ("METADATA", "PKG-INFO", "LICENSE")
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist() if name.endswith(wanted)}
    with tarfile.open(path) as archive:
        found = (member for member in archive if member.isfile() and member.name.endswith(wanted))
        return {member.name: archive.extractfile(member).read() for member in found}  # type: ignore[union-attr]


def problems(path: Path, licence: bytes) -> list[str]:
    files = files_in(path)
    (said, *_) = [text for name, text in files.items() if name.endswith(("METADATA", "PKG-INFO"))]
    metadata = email.message_from_bytes(said)
    found = [f"no {key}" for key in NEEDED if not metadata[key]]
    found += ["no LICENSE, or another"] * (licence not in files.values())
    found += ["no long description"] * (len(str(metadata.get_payload()).strip()) < 100)
    return found


def main(paths: list[str]) -> int:
    licence = (Path(__file__).parents[1] / "LICENSE").read_bytes()
    wrong = {path: found for path in map(Path, paths) if (found := problems(path, licence))}
    versions = {path.name.removesuffix(".tar.gz").split("-")[1] for path in map(Path, paths)}
    for path, found in wrong.items():
        print(f"{path.name}: {', '.join(found)}")
    if len(versions) != 1:
        print(f"several versions: {', '.join(sorted(versions))}")
    print(f"{len(paths)} archives of version {', '.join(sorted(versions))}")
    return int(bool(wrong) or len(versions) != 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
