"""Console blocks of the documentation, run for real: `python docs/console.py --write [PAGE ...]` writes what they print now.

Without `--write` it only names the pages that show something else. A block of language `console` holds commands after `$ ` and
what they print. All blocks of a page run in one temporary folder, in which `tests` and `tools` are the repository's, and see all
formats of the repository, as a reader does who installed ckpt, whatever else is installed. What differs from run to run (times,
hashes of plans) is compared by its form alone, and what memory a command took within a quarter.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FORMATS = ",".join(
    ["ir"]
    + [
        name
        for file in sorted((ROOT / "plugins").glob("*/pyproject.toml"))
        for name in tomllib.loads(file.read_text())["project"]["entry-points"]["ckpt.formats"]
    ]
)
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "```console" in page.read_text()]
_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
_SLOW = re.compile(r"^[a-z ]+ \.\.\.\n", re.MULTILINE)  # what is said because a machine is slow
_VARIABLE = [
    (re.compile(r"[\d.]+ s, [\d.]+ [kMG]?B/s"), "0.1 s, 1 MB/s"),
    (re.compile(r"^(memory +)\d+ MiB at the peak", re.MULTILINE), r"\g<1>30 MiB at the peak"),
    (re.compile(r"transformers \d+(\.\d+)+"), "transformers 5.0.0"),
    (re.compile(r"^(plan +)[0-9a-f]{64}$", re.MULTILINE), r"\g<1>" + "0" * 64),
]


def normalised(text: str) -> str:
    """A page with everything that differs from run to run made equal."""
    for pattern, form in _VARIABLE:
        text = pattern.sub(form, text)
    return text


def memories(text: str) -> list[int]:
    """What memory the commands of a page took, in MiB."""
    return [int(number) for number in re.findall(r"^memory +(\d+) MiB at the peak", text, re.MULTILINE)]


def renewed(page: str) -> str:
    """A page with what its commands print now, each in a process of its own, where that is another than the page shows."""
    now = iter(_BLOCK.findall(executed(page)))

    def newer(block: re.Match[str]) -> str:
        shown, printed = block[1], next(now)
        alike = normalised(shown) == normalised(printed) and all(
            abs(one - other) * 4 <= other for one, other in zip(memories(shown), memories(printed), strict=True)
        )
        return block[0] if alike else f"```console\n{printed}```"

    return _BLOCK.sub(newer, page)


def executed(page: str, programs: str = "") -> str:
    """A page with the output of each of its commands as it is now; `programs` is a folder for the front of their PATH.

    What memory a command took is true only without `programs`: a fork of a process that imported much begins with all of that.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tests", "tools"):
            os.symlink(ROOT / name, os.path.join(folder, name))
        return _BLOCK.sub(lambda block: f"```console\n{_run_all(block[1], folder, programs)}```", page)


def _run_all(block: str, folder: str, programs: str) -> str:
    lines: list[str] = []
    for line in block.splitlines():
        if lines and lines[-1].endswith("\\") and (lines[-1].startswith("$ ") or lines[-1].startswith("    ")):
            lines.append(line)  # a command goes on
        elif line.startswith("$ "):
            lines.append(line)
    printed, command = [], ""
    for line in lines:
        printed.append(line)
        command += line.removeprefix("$ ") if not command else "\n" + line
        if not line.endswith("\\"):
            printed += _run(command, folder, programs).splitlines()
            command = ""
    return "\n".join(printed) + "\n"


def _run(command: str, folder: str, programs: str) -> str:
    """What a command prints: stdout, and where it fails stderr too."""
    path = os.pathsep.join([*filter(None, [programs]), os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "CKPT_PLUGINS": FORMATS, "COLUMNS": "120", "NO_COLOR": "1"}
    for goldens in (
        "CKPT_GOLDENS",
        "CKPT_GOLDENS_2026",
    ):  # the pages show the checkpoints that come with the repository
        environment.pop(goldens, None)
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    return done.stdout + (_SLOW.sub("", done.stderr) if done.returncode else "")


def main(arguments: list[str]) -> int:
    """Compare, or write, the pages given, or all."""
    stale = 0
    for page in [Path(name).resolve() for name in arguments if name != "--write"] or PAGES:
        text = page.read_text()
        new = renewed(text)
        if new != text:
            stale += 1
            print("written:" if "--write" in arguments else "stale:", page.relative_to(ROOT), flush=True)
            if "--write" in arguments:
                page.write_text(new)
    print(f"{stale} pages showed something else than their commands print")
    return int(bool(stale) and "--write" not in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
