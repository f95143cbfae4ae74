"""What FSDP saved, as tensors by name: what a plugin imports that knows what else than a model lies in them.

Whoever only asks where a checkpoint lies (`places`) gets an answer without the models of transformers being imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt_fsdp.files import place, places

if TYPE_CHECKING:
    from ckpt_fsdp.read import config_beside, described, stored_at
    from ckpt_fsdp.stored import SavedTensors

__all__ = ["SavedTensors", "config_beside", "described", "place", "places", "stored_at"]

if not TYPE_CHECKING:  # a type checker knows the names above, and no others

    def __getattr__(name: str) -> object:
        """Load what reads on first use."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ckpt_fsdp import read, stored

        return stored.SavedTensors if name == "SavedTensors" else getattr(read, name)
