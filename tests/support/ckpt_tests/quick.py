"""What a process of tests does not do, as a plugin of pytest: look for cycles a thousand times, and wait for disks.

A process of tests holds millions of objects that live to its end (torch, transformers, 13,000 tests). With Python's own thresholds
it looks through them all again and again: a fifth of the time of the suite. And thousands of small conversions would wait for a disk to
have them, which no test can see: tests of syncing look at the calls, and programs that tests start do sync.
"""

from __future__ import annotations

import gc
import os

import pytest

gc.set_threshold(50_000, 20, 50)
os.fsync = lambda descriptor: None


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.collect()
    gc.freeze()
