"""Classes that are only asked for with isinstance."""

from ..anything import classes

__getattr__ = classes()
