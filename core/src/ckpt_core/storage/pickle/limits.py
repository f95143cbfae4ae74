"""What reading one pickle may cost.

Memory is what a hostile pickle wants: one byte of it makes an empty set of 216. So whatever an opcode makes is
charged in bytes, and the sum may grow with the pickle, up to a ceiling. The largest honest pickles are the
`.metadata` of distributed checkpoints: 30 MB for a hundred thousand tensors, and ten times as much in memory.
"""

from __future__ import annotations

from ckpt_core.lean import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one pickle may cost. The defaults are far above every real checkpoint."""

    opcodes: int = 200_000_000
    memory: int = 400 << 20
    """Bytes of everything that the pickle makes, and of the walk over it."""
    memory_per_byte: int = 30
    """Such bytes for each byte of the pickle, beyond `memory_free`."""
    memory_free: int = 16 << 20
    stack: int = 4_000_000
    """Values on the stack at one time (a tuple or a batch of items lies there whole)."""
    marks: int = 1_000
    """Groups open at the same time."""
    string: int = 192 << 20
    """Bytes of one text or byte string, which is held twice while it is read."""
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
