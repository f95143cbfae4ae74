"""A stand-in for TransformerEngine on a CPU, in plain torch: names, shapes and extra states of the real one, fp32 maths.

It has only what a forward pass and a checkpoint need. $TE_STANDIN_VERSION says which version it claims to be (2.6.0).
"""

from . import common, pytorch
from .pytorch.version import NAME as __version__

__all__ = ["__version__", "common", "pytorch"]
