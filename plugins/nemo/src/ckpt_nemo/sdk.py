"""What NeMo 2 is told of a model: what a plugin imports that writes something beside it, such as an adapter."""

from __future__ import annotations

from ckpt_nemo.nemo2.files import WEIGHTS
from ckpt_nemo.nemo2.write import PREFIX, Context

__all__ = ["PREFIX", "WEIGHTS", "Context"]
