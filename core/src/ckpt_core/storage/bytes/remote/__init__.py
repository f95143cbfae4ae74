"""Checkpoints that lie elsewhere, read by ranges: `hf://`, `s3://`, `gs://`, `az://`, `https://`.

An address is opened as a folder of stand-ins (`view`): what a format looks at with the means of the operating system, names,
folders and sizes, is there; the bytes come from the store, range by range (`ranges`), whenever `storage.bytes` is asked
for them. Stores differ in how they list and how they answer for a range: `hub`, `buckets`, `web`. `s3://` and `az://` are written to as well (`writable`).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.storage.bytes.remote.view import cache, found, localised, object_at, stand_in
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            ".view": "cache found localised object_at stand_in",
        },
    )

__all__ = ["cache", "found", "localised", "object_at", "stand_in"]
