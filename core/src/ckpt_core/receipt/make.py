"""Making the receipt of a conversion that is finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from blake3 import blake3

from ckpt_core import __version__
from ckpt_core.addresses import spelled_in
from ckpt_core.architecture import Parameter, to_json
from ckpt_core.checkpoint import Checkpoint, Target
from ckpt_core.ledger import Loss
from ckpt_core.receipt.checksum import with_checksum
from ckpt_core.receipt.receipt import Receipt
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.bytes.stored import read_small
from ckpt_core.tensors.digest import Digests, fingerprint
from ckpt_core.training import Training
from ckpt_core.training import to_json as training_json

_WHOLE_FILE_DIGEST = 1 << 20


def make_receipt(
    source: Checkpoint,
    target: Target,
    file: str,
    *,
    plan: str,
    options: Mapping[str, Any],
    losses: Iterable[Loss],
    tensors: Mapping[str, Digests],
    crcs: Mapping[str, int],
    documents: Mapping[str, str],
) -> Receipt:
    """The receipt of a finished conversion, to be written to `file`. It has no time and no host: the same conversion gives
    the same receipt.

    `plan` is the hash of the plan, `tensors` are the digests of all canonical tensors. Every file beside it has a digest:
    the CRC-32 of data files, which adds up from what was written (`crcs`), and the BLAKE3 of all others (`documents`).
    """
    known = source.provenance
    parameters = {name: tensor.parameter for name, tensor in target.tensors.items()}
    body = {
        "ckpt": __version__,
        "plan": plan,
        "fingerprint": fingerprint(
            (name, parameter.true_shape, tensors[name].digest) for name, parameter in parameters.items()
        ),
        "source": {
            "format": source.format,
            "path": source.path,
            "parallel": source.parallel,
            "evidence": list(known.evidence),
            "files": [_state(state) for state in sorted(source.files, key=lambda state: state.path)],
            "ledger": source.ledger.to_json(source.path),
        },
        "target": {
            "format": target.format,
            "parallel": target.parallel,
            "decisions": target.decisions,
            **({} if target.launch is None else {"launch": target.launch.to_json()}),
            "hints": {**known.origins, source.format: known.hints},
            "files": {file.path: file.size for file in target.files},
            "crc32": {file.path: f"{crcs[file.path]:08x}" for file in target.files},
            "documents": dict(documents),
        },
        "options": dict(options),
        "losses": [loss.to_json() for loss in losses],
        "architecture": to_json(target.architecture),
        **({} if target.adapter is None else {"adapter": target.adapter.settings}),
        "tensors": _digests(parameters, tensors),
        **({} if target.training is None else {"training": _training(target.training, tensors)}),
    }
    return Receipt(with_checksum(spelled_in(body)), file)


def _digests(parameters: Mapping[str, Parameter], tensors: Mapping[str, Digests]) -> dict[str, object]:
    return {
        name: {
            "shape": list(parameter.true_shape),
            "digest": tensors[name].digest,
            **({"source_digest": before} if (before := tensors[name].source_digest) else {}),
        }
        for name, parameter in parameters.items()
    }


def _training(training: Training, tensors: Mapping[str, Digests]) -> dict[str, object]:
    """The state of the training, with a fingerprint of its own: a model has the same one with and without."""
    parameters = {name: tensor.parameter for name, tensor in training.tensors.items()}
    return {
        "fingerprint": fingerprint(
            (name, parameter.true_shape, tensors[name].digest) for name, parameter in parameters.items()
        ),
        "state": training_json(training),
        "tensors": _digests(parameters, tensors),
    }


def _state(state: FileState) -> dict[str, object]:
    """A file that was read, with its BLAKE3 where it is small."""
    entry: dict[str, object] = {"path": state.path, "bytes": state.size, "mtime_ns": state.mtime_ns}
    if state.remote is not None:
        entry["version"] = state.remote.version
    if state.size <= _WHOLE_FILE_DIGEST:
        entry["blake3"] = blake3(read_small(state.path)).hexdigest()
    return entry
