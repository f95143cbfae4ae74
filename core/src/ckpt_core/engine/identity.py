"""What tells a plan from another, line by line, for its hash.

A journal holds the hash of its plan, and a conversion is resumed only with the same. So these lines stay as they are: those of blocks and
checksums are what `str` says of the objects, written out here because a plan of 671B has 90,000 of them, made of few kinds of loops, dtypes and
schemes, each of which is spelt once.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from blake3 import blake3

from ckpt_core import __version__
from ckpt_core.architecture import to_json
from ckpt_core.storage.bytes.output import Checksum
from ckpt_core.storage.dtypes import BY_NAME
from ckpt_core.storage.tensor import Operand, Quantised, Scheme, StoredTensor
from ckpt_core.tensors.assembly import StoredPart
from ckpt_core.tensors.pieces import size_rule
from ckpt_core.training import to_json as training_json

if TYPE_CHECKING:
    from ckpt_core.checkpoint import Checkpoint, Target
    from ckpt_core.engine.pieces import Transfer


END = "\0"
"""What a line ends with."""


def identity(source: Checkpoint, target: Target, transfers: Iterable[Transfer]) -> Iterator[str]:
    """The lines, some of them together: the sources' states, the architecture, every placement and document."""
    yield __version__
    yield size_rule()
    yield json.dumps(to_json(target.architecture), sort_keys=True)
    if target.training is not None:
        yield json.dumps(training_json(target.training), sort_keys=True)
    if target.adapter is not None:
        yield json.dumps(target.adapter.settings, sort_keys=True)
    for state in sorted(source.files, key=lambda state: state.path):
        version = "" if state.remote is None else f" {state.remote.version}"
        yield f"{state.path} {state.size} {state.mtime_ns}{version}"
    for file in target.files:
        literals = blake3()
        for _, data in file.literals:
            literals.update(data)
        yield f"{file.path} {file.size} {literals.hexdigest()}"
        yield from map(str, file.excerpts)
    words = Words()
    for transfer in transfers:
        yield END.join(_of_transfer(transfer, words))
    for path, data in sorted(target.documents.items()):
        yield f"{path} {blake3(data).hexdigest()}"
    for path, sidecar in sorted(target.sidecars.items()):
        yield f"{path} {sidecar.path} {sidecar.offset} {sidecar.size}"


def _of_transfer(transfer: Transfer, words: Words) -> Iterator[str]:
    yield transfer.name
    for delivery in transfer.deliveries:
        yield f"{words.block(delivery.block)} {delivery.maps} {words.checksum(delivery.checksum)}"
        if delivery.strand is not None:
            yield f"in turns, {delivery.tensors} tensors at once"
    assembly = transfer.assembly
    yield f"{assembly.dtype} {assembly.maps} {assembly.factors} {assembly.fill} {assembly.added}"
    yield from map(words.block, assembly.all_blocks)
    if assembly.merged is not None:
        yield f"{assembly.merged.dtype} {assembly.merged.updates}"


class Words:
    """The texts of the parts of a plan: each is what `str` says of the object."""

    def __init__(self) -> None:
        self._scheme: tuple[Scheme | None, str] = None, ""  # the last one: mostly all weights have the same

    def block(self, one: StoredPart) -> str:
        tile = one.tile
        return (
            f"StoredPart(path={one.path!r}, dtype={_DTYPES[one.dtype.name]}, offset={one.offset!r}, "
            f"tile=Tile(links={_links(tile.links)}, canonical_base={tile.canonical_base!r}, native_base={tile.native_base!r}), "
            f"quantised={self._quantised(one.quantised)})"
        )

    def checksum(self, one: Checksum) -> str:
        return f"Checksum(start={one.start!r}, length={one.length!r}, positions={one.positions!r})"

    def _quantised(self, one: Quantised | None) -> str:
        if one is None:
            return "None"
        if one.scheme is not self._scheme[0]:
            self._scheme = one.scheme, repr(one.scheme)
        return (
            f"Quantised(scheme={self._scheme[1]}, operands={self._operands(one.operands)}, matrices={one.matrices!r}, "
            f"rows={one.rows!r}, columns={one.columns!r}, beside={self._operands(one.beside)}, what={one.what!r}, exact={one.exact!r})"
        )

    def _operands(self, operands: tuple[Operand, ...]) -> str:
        inside = ", ".join(map(self._operand, operands))
        return f"({inside},)" if len(operands) == 1 else f"({inside})"

    def _operand(self, one: Operand) -> str:
        return (
            f"Operand(name={one.name!r}, stored={self._stored(one.stored)}, width={one.width!r}, rows={one.rows!r}, "
            f"stored_rows={one.stored_rows!r}, scale={one.scale!r})"
        )

    def _stored(self, one: StoredTensor) -> str:
        return (
            f"StoredTensor(file={one.file!r}, dtype={_DTYPES[one.dtype.name]}, shape={one.shape!r}, offset={one.offset!r}, "
            f"strides={one.strides!r}, record={one.record!r}, quantised={self._quantised(one.quantised)})"
        )


_DTYPES = {name: repr(dtype) for name, dtype in BY_NAME.items()}
_links = functools.lru_cache(1 << 10)(repr)
