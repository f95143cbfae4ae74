"""Every canonical parameter under its own name, with its own axes: the table writes itself."""

from __future__ import annotations

from ckpt_core.architecture import Architecture, parameters
from ckpt_core.layout import Table, row


def table(architecture: Architecture) -> Table:
    """One row per parameter; the sentence is the parameter's axes."""
    return Table(
        rows=[
            row(name, " ".join(axis.name for axis in p.axes) or "()", name)
            for name, p in parameters(architecture).items()
        ]
    )
