"""What was called so before there were rooms (`tensors.assembly`, `tensors.source`), for programs outside that measure plans by these names."""

from ckpt_core.tensors.source import SourceFiles as Source

__all__ = ["Source"]
