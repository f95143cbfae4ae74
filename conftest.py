"""Shared by all tests: a quiet, offline transformers, how hypothesis runs, and what Python does not do here."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("ckpt", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ckpt")

# A process of tests holds millions of objects that live to its end (torch, transformers, 13,000 tests). With Python's own
# thresholds it looks through them all again and again: a fifth of the time of the suite.
gc.set_threshold(50_000, 20, 50)


# Thousands of small conversions wait for a disk to have them, which no test can see. Tests of syncing look at the calls, and programs
# that tests start do sync.
os.fsync = lambda descriptor: None


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.collect()
    gc.freeze()
