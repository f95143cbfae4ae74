"""Sources that are not here yet: `hf://owner/name[@revision]`.

The hub is reached through huggingface_hub, which is imported only for such a path. Everything else in ckpt
sees the local folder that it returns.
"""

from __future__ import annotations

import re

from ckpt_core.errors import CkptError, UsageError

_HUB = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")

# What no converter reads: other frameworks' copies of the same weights.
_IGNORED = ["*.msgpack", "*.h5", "*.ot", "*.tflite", "*.onnx", "onnx/*", "*.gguf", "original/*"]


def localised(path: str) -> str:
    """A local folder for `path`: itself, or the snapshot of a hub repository."""
    if not path.startswith("hf://"):
        return path
    match = _HUB.fullmatch(path)
    if match is None or {"", ".", ".."} & set((match["revision"] or "main").split("/")):
        raise UsageError("not a hub address", found=path, expected="hf://owner/name or hf://owner/name@revision")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise CkptError("hf:// needs huggingface_hub", file=path, fix='pip install "ckpt-hf[hub]"') from None
    try:
        return snapshot_download(match["repository"], revision=match["revision"], ignore_patterns=_IGNORED)
    except HFValidationError as error:
        raise UsageError("the hub has no such names", file=path, found=str(error).splitlines()[0]) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CkptError("the hub does not give this repository", file=path, found=str(error).splitlines()[0]) from error
