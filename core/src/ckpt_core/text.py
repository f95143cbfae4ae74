"""Text from strangers, made fit for a terminal, a log and a page."""

from __future__ import annotations

LONGEST = 1000
"""Characters of the longest piece of text that is shown. A name of a megabyte would bury everything beside it."""

_TAIL = 200


def printable(text: str, longest: int = LONGEST) -> str:
    """`text` on one line, its middle left out where it is too long, and what has no shape spelled out: control
    characters (a terminal obeys them), newlines, direction marks, bytes of a file name that are not UTF-8.

    >>> printable("a\\x1b[2J\\nb")
    'a\\\\x1b[2J\\\\nb'
    >>> printable("x" * 5000, 300)[98:-198]
    'xx[4,700 characters left out]xx'
    """
    if len(text) > longest:
        left_out = len(text) - longest
        text = f"{text[: longest - _TAIL]}[{left_out:,} characters left out]{text[-_TAIL:]}"
    return text if text.isprintable() else spelled_out(text)


def spelled_out(text: str) -> str:
    """`text` with an escape for each character that has no shape, all of it."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def plural(count: int, noun: str, many: str = "") -> str:
    """So many of something; `many` is the plural where that is not the noun with an s.

    >>> plural(3000, "file"), plural(1, "file"), plural(2, "loss", "losses")
    ('3,000 files', '1 file', '2 losses')
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"
