"""What FSDP saved, as tensors by name: what a plugin imports that knows what else than a model lies in them."""

from __future__ import annotations

from ckpt_fsdp.files import place, places
from ckpt_fsdp.read import config_beside, described, stored_at
from ckpt_fsdp.stored import SavedTensors

__all__ = ["SavedTensors", "config_beside", "described", "place", "places", "stored_at"]
