"""Shared by all tests: a quiet, offline transformers, how hypothesis runs, and what a process of tests does not do."""

from __future__ import annotations

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # tests run on CPUs, everywhere
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import HealthCheck, settings

settings.register_profile("ckpt", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ckpt")

pytest_plugins = ["ckpt_tests.quick", "ckpt_tests.heartbeat", "ckpt_tests.traces"]
