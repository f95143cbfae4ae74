"""Formats as plugins: their hooks, how they are found, what they are asked, and how their own framework judges."""

from ckpt_core.plugins.hookspecs import GROUP, SDK, hookimpl
from ckpt_core.plugins.request import FormatInfo, Option, ReadRequest, WriteRequest

__all__ = ["GROUP", "SDK", "FormatInfo", "Option", "ReadRequest", "WriteRequest", "hookimpl"]
