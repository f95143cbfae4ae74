"""Recipes of fp8: named, never run."""

import enum


class Format(enum.Enum):
    E4M3 = 1
    HYBRID = 2


class Recipe:
    def __init__(self, *args, **kwargs):
        pass


class DelayedScaling(Recipe):
    pass


class Float8CurrentScaling(Recipe):
    pass


class MXFP8BlockScaling(Recipe):
    pass


class Float8BlockScaling(Recipe):
    pass


class NVFP4BlockScaling(Recipe):
    pass
