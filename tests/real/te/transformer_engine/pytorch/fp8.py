"""fp8, which is off."""

import contextlib

from . import fp8_autocast

__all__ = ["FP8GlobalStateManager", "fp8_autocast", "fp8_model_init"]


def fp8_model_init(*args, **kwargs):
    return contextlib.nullcontext()


class FP8GlobalStateManager:
    @staticmethod
    def is_fp8_enabled():
        return False

    @staticmethod
    def reset():
        pass
