"""ckpt: model checkpoints from any training framework to any other, exactly, in bounded memory."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ckpt_core.api import convert, fingerprint, launch_of, open_checkpoint, plan_conversion
    from ckpt_core.architecture import Architecture
    from ckpt_core.engine.plan import Plan
    from ckpt_core.engine.run import Progress
    from ckpt_core.errors import CkptError, FormatError, ProblemsFound, Refusal, UsageError, WorkerError
    from ckpt_core.launch import Launch
    from ckpt_core.opened import LazyTensor, OpenCheckpoint
    from ckpt_core.receipt import Receipt

# Where each public name is: `import ckpt_core` loads none of them.
_HOMES = {
    "api": ("convert", "fingerprint", "launch_of", "open_checkpoint", "plan_conversion"),
    "architecture": ("Architecture",),
    "engine.plan": ("Plan",),
    "engine.run": ("Progress",),
    "errors": ("CkptError", "FormatError", "ProblemsFound", "Refusal", "UsageError", "WorkerError"),
    "launch": ("Launch",),
    "opened": ("LazyTensor", "OpenCheckpoint"),
    "receipt": ("Receipt",),
}

__all__ = [
    "Architecture",
    "CkptError",
    "FormatError",
    "Launch",
    "LazyTensor",
    "OpenCheckpoint",
    "Plan",
    "ProblemsFound",
    "Progress",
    "Receipt",
    "Refusal",
    "UsageError",
    "WorkerError",
    "__version__",
    "convert",
    "fingerprint",
    "launch_of",
    "open_checkpoint",
    "plan_conversion",
]

if not TYPE_CHECKING:  # a type checker knows the names above, and no others

    def __getattr__(name: str) -> object:
        """Load a public name on first use."""
        from importlib import import_module

        for module, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
