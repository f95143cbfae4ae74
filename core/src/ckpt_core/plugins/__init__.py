"""Formats as plugins: their hooks, how they are found, what they are asked, and how their own framework judges."""

from ckpt_core.plugins.hookspecs import GROUP, SDK, hookimpl
from ckpt_core.plugins.request import FormatInfo, Option, ReadRequest, WriteRequest
from ckpt_core.plugins.tables import FamilyTables

__all__ = ["GROUP", "SDK", "FamilyTables", "FormatInfo", "Option", "ReadRequest", "WriteRequest", "hookimpl"]
