"""ckpt: model checkpoints from any training framework to any other, exactly, in bounded memory."""

from ckpt_core.version import VERSION as __version__

__all__ = ["__version__", "convert", "fingerprint", "open_checkpoint"]


def __getattr__(name: str):
    """Load the Python API on first use: `import ckpt_core` costs nothing."""
    if name in ("convert", "fingerprint", "open_checkpoint"):
        from ckpt_core import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
