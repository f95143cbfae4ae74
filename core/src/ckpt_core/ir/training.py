"""The state of a training in a folder of the intermediate representation."""

from __future__ import annotations

import os

from ckpt_core.description import RankTensors, SavedTraining
from ckpt_core.errors import FormatError
from ckpt_core.ir.weights import indexed
from ckpt_core.ledger import OPTIMIZER, PROGRESS, Ledger
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.documents import read_json_object
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.training import KINDS, MASTER, Kind, from_json, named

FOLDER = "training"
TRAINING, TRAINING_INDEX = f"{FOLDER}/training.json", f"{FOLDER}/tensors.index.json"


def training_in(path: str) -> SavedTraining | None:
    """The state of the training in a folder; None where there is none."""
    file = os.path.join(path, TRAINING)
    if not os.path.isfile(file):
        return None
    state = from_json(read_json_object(file), file)
    tensors, files = indexed(path, TRAINING_INDEX)
    by_kind: dict[Kind, dict[str, StoredTensor]] = {kind: {} for kind in KINDS if kind != MASTER or state.own_masters}
    for name, tensor in tensors.items():
        kind = next((kind for kind in by_kind if name.startswith(named(kind, ""))), None)
        if kind is None:
            raise FormatError(f"tensor {name!r} is not of a training", file=tensor.file)
        by_kind[kind][name.removeprefix(named(kind, ""))] = tensor
    ledger, index = Ledger(), os.path.join(path, TRAINING_INDEX)
    ledger.carried(PROGRESS.what, file)
    ledger.used("where each moment lies", index)
    for state_of_file in files:
        ledger.carried(OPTIMIZER.what, state_of_file.path)
    return SavedTraining(
        state=state,
        ranks={kind: [RankTensors({}, found, path)] for kind, found in by_kind.items()},
        where=path,
        files=[FileState.of(file), *files],
        ledger=ledger,
        rounds=False,  # the weights are stored in fp32, whatever they were rounded to
    )


def enter_left(ledger: Ledger, path: str) -> None:
    """Enter the files of a training, which stay behind unless its state is wanted."""
    for name in (TRAINING, TRAINING_INDEX):
        if os.path.isfile(file := os.path.join(path, name)):
            ledger.left(PROGRESS, file)
    import glob

    for file in sorted(glob.glob(os.path.join(glob.escape(path), FOLDER, "*.safetensors"))):
        ledger.left(OPTIMIZER, file, size=os.path.getsize(file))
