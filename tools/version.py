"""The version of all distributions, from one place: `core/src/ckpt_core/__init__.py`.

`python tools/version.py` says where another one stands; `python tools/version.py 0.2.0` writes it everywhere.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = ROOT / "core/src/ckpt_core/__init__.py"


def places() -> list[Path]:
    """Every file that says the version."""
    return [
        HOME,
        *sorted(ROOT.glob("*/pyproject.toml")),
        *sorted(ROOT.glob("*/*/pyproject.toml")),
        ROOT / "CITATION.cff",
    ]


def stamped(text: str, version: str) -> str:
    """A text of ours with the version in it, where it says one: its own, that of a requirement, or the bounds of one.

    >>> print(stamped('version = "0.1.0"\\n  "ckpt-core[s3]==0.1.0", "ckpt-hf>=0.1,<0.2", "ray>=2.40"', "0.2.1"))
    version = "0.2.1"
      "ckpt-core[s3]==0.2.1", "ckpt-hf>=0.2,<0.3", "ray>=2.40"
    """
    major, minor, _ = version.split(".")
    forms: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (r'(?m)^((?:version|__version__) = )"[\d.]+"', lambda one: f'{one[1]}"{version}"'),
        (r"(?m)^(version: )[\d.]+$", lambda one: one[1] + version),
        (r'("ckpt-[\w-]+(?:\[[\w,]+\])?==)[\d.]+"', lambda one: f'{one[1]}{version}"'),
        (
            r'("ckpt-[\w-]+(?:\[[\w,]+\])?>=)[\d.]+,<[\d.]+"',
            lambda one: f'{one[1]}{major}.{minor},<{major}.{int(minor) + 1}"',
        ),
    ]
    for pattern, form in forms:
        text = re.sub(pattern, form, text)
    return text


def known() -> str:
    found = re.search(r'^__version__ = "([\d.]+)"', HOME.read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def main(arguments: list[str]) -> int:
    version = arguments[0] if arguments else known()
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        print(f"{version} is no version: three numbers, as 0.2.0")
        return 2
    stale = [path for path in places() if stamped(path.read_text(), version) != path.read_text()]
    for path in stale:
        print(path.relative_to(ROOT))
        if arguments:
            path.write_text(stamped(path.read_text(), version))
    print(f"{len(stale)} files {'now say' if arguments else 'do not say'} {version}, of {len(places())}")
    return int(bool(stale) and not arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
