"""ckpt: model checkpoints from any training framework to any other, exactly, in bounded memory."""

__version__ = "0.1.0"

__all__ = ["__version__", "convert", "fingerprint", "open_checkpoint"]


def __getattr__(name: str):
    """Load the Python API on first use: `import ckpt_core` costs nothing."""
    if name in ("convert", "fingerprint", "open_checkpoint"):
        from ckpt_core import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
