"""What a format plugin may use: hooks, requests, and the finding of other formats."""

from ckpt_core.plugins.hookspecs import GROUP, SDK, hookimpl
from ckpt_core.plugins.request import FormatInfo, Option, ReadRequest, WriteRequest

__all__ = ["GROUP", "SDK", "FormatInfo", "Option", "ReadRequest", "WriteRequest", "hookimpl"]
