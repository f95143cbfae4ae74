"""There and back: a small model, or an adapter of one, written in a format with values in it, and read again.

`tracer` asks where a format puts every element, and moves none. This one moves them, and asks whether the values come back as they were, from files
with a header, an index, a config and a receipt. Both ways are the format's own, so a mistake that they share is not seen here: the
declared sentences that the tracer holds against show it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt_core import numpy as np
from ckpt_core.api import read_checkpoint, target_of
from ckpt_core.architecture import Architecture, Parameter
from ckpt_core.checkpoint import Adapter, Checkpoint
from ckpt_core.engine.plan import make_plan
from ckpt_core.engine.run import run_plan
from ckpt_core.plugins.discovery import Plugin
from ckpt_core.plugins.request import WriteRequest
from ckpt_core.plugins.values import typed_options
from ckpt_core.storage import safetensors
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.dtypes import DType, encode
from ckpt_core.tensors.assembly import LazyParameter
from ckpt_core.tensors.source import SourceFiles
from ckpt_core.verify.holes import of_one_file

_FILE = "tensors.safetensors"


def there_and_back(
    plugin: Plugin, architecture: Architecture, dtype: DType, adapter: Adapter | None = None
) -> list[str]:
    """What did not come back as it was, a tensor each; nothing where all is well.

    Raises what the format raises if it can't hold the model, or can't read what it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="ckpt-roundtrip-") as folder:
        source = _with_values(os.path.join(folder, "source"), architecture, dtype, adapter)
        out = os.path.join(folder, "out" + plugin.info.ending)
        options = typed_options(plugin.info, dict(plugin.info.bare), "write")
        target = target_of(plugin, source, WriteRequest(options, destination=out))
        run_plan(make_plan(source, target), out, sync=False)
        back = read_checkpoint(out, format=plugin.name, alone=adapter is not None)
        if adapter is not None and (back.adapter is None or back.adapter.settings != adapter.settings):
            return ["what is done with the adapter's tensors is not what it was"]
        return [*_changed(target.tensors, source.files, back)]


def _with_values(folder: str, architecture: Architecture, dtype: DType, adapter: Adapter | None) -> Checkpoint:
    """A checkpoint whose tensors lie in one file, with values that depend on their names alone."""
    bare = Checkpoint("ir", folder, architecture, {}, [], adapter=adapter)
    known = bare.parameters
    plan = safetensors.plan_file({name: (dtype, parameter.shape) for name, parameter in known.items()}, {})
    os.mkdir(folder)
    path = os.path.join(folder, _FILE)
    with open(path, "wb") as file:
        file.write(plan.header)
        for name, parameter in known.items():
            file.seek(plan.offsets[name])
            file.write(_values(parameter, dtype).tobytes())
    tensors = {name: of_one_file(parameter, dtype, path, plan.offsets[name]) for name, parameter in known.items()}
    return replace(bare, tensors=tensors, files=[FileState.of(path)])


def _values(parameter: Parameter, dtype: DType) -> np.ndarray:
    """Numbers of the size that weights have; rows of padding are zero."""
    seed = int.from_bytes(hashlib.sha256(parameter.name.encode()).digest()[:8], "little")
    values = encode(np.random.default_rng(seed).standard_normal(parameter.shape, dtype=np.float32), dtype)
    if parameter.true_rows is not None:
        values[parameter.true_rows :] = 0
    return np.ascontiguousarray(values)


def _changed(written: Mapping[str, LazyParameter], files: Sequence[FileState], back: Checkpoint) -> Iterator[str]:
    for name in sorted(written.keys() ^ back.tensors.keys()):
        yield f"{name} is {'not read' if name in written else 'read, and was not written'}"
    here, there = SourceFiles(files), SourceFiles(back.files)
    try:
        for name in sorted(written.keys() & back.tensors.keys()):
            one, two = written[name], back.tensors[name]
            if not np.array_equal(_whole(one, here), _whole(two, there)):
                yield f"{name} is read with other values than were written"
    finally:
        here.close()
        there.close()


def _whole(held: LazyParameter, files: SourceFiles) -> np.ndarray:
    """All values of a tensor, without rows of padding."""
    return files.floats(held, tuple((0, size) for size in held.parameter.true_shape))
