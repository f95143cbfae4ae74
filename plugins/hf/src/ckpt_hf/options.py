"""The option of this format that its reader asks for and its writer names."""

from __future__ import annotations

from ckpt_core.sdk import Option

PART = Option(
    "part",
    "of a model that sees: language takes the language model out, and leaves the vision tower and the projector",
    ("whole", "language"),
    "whole",
    side="read",
)
"""The option that asks for a part of a model."""
