"""What reading one pickle may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one pickle may cost. The defaults are far above every real checkpoint."""

    opcodes: int = 200_000_000
    memo: int = 50_000_000
    stack: int = 10_000_000
    """Values on the stack at one time (a tuple or a batch of items lies there whole)."""
    marks: int = 1_000
    """Groups open at the same time."""
    objects: int = 50_000_000
    """Containers made in all; a set, or the object of a class, counts as 4."""
    string: int = 1 << 31
    """Bytes of one text or byte string."""
    line: int = 1 << 20
    """Bytes of one line of the text opcodes (protocol 0)."""
    name: int = 512
    """Characters of the name of a global."""
    integer: int = 1_024
    """Bytes of one integer."""
    depth: int = 500
    """Containers inside each other in the result."""
    walk: int = 500_000_000
    """Values that a walk of the result visits, shared ones again each time."""
    walk_per_byte: int = 100
    """Such values for each byte of the pickle, beyond the first million."""
    made: int = 16 << 20
    """Bytes that makers may create beyond four times the bytes read so far."""
