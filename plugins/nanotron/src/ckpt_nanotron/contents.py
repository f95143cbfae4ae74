"""What a nanotron checkpoint holds beside the model, and what becomes of it (nanotron/serialize, 0.1 to main)."""

from __future__ import annotations

import os

from ckpt_core.sdk import documents, ledgers, torch_files
from ckpt_nanotron.files import METADATA, optimizer_files

# config.yaml, and its section model
RUN_SECTIONS = ledgers.Contents({"model": "architecture", "*": ledgers.SETTINGS})
RUN_MODEL = ledgers.Contents(
    {"model_config": "architecture", "init_method": "scale of attention", "*": ledgers.SETTINGS}
)

# checkpoint_metadata.json
_METADATA = ledgers.Contents(
    {
        "version": "version of the files",
        "tp": "parallel layout",
        "dp": "parallel layout",
        "cp": "parallel layout",
        "metas": ledgers.PROGRESS,
        "custom_metas": ledgers.PROGRESS,
    }
)

# optimizer/optimizer_pp-0-of-2_tp-0-of-2.pt: of the masters, the copies that are read are the weights
_OPTIMIZER = ledgers.Contents({"gradient_accumulator": "weights", "*": ledgers.OPTIMIZER})

_FOLDERS = {"optimizer": ledgers.OPTIMIZER, "lr_scheduler": ledgers.SCHEDULE, "random": ledgers.RANDOM}


def enter_training(ledger: ledgers.Ledger, step: str, masters_read: bool) -> None:
    """The state of the training: optimizer, schedule, random generators, and how far it got."""
    read = optimizer_files(step).values() if masters_read else ()
    for folder, reason in _FOLDERS.items():
        ledger.left_whole(reason, os.path.join(step, folder), read)
    for path in read:
        ledger.used("weights", path)
        ledger.contents(path, torch_files.read_torch_file(path), _OPTIMIZER)
    metadata = os.path.join(step, METADATA)
    if os.path.isfile(metadata):
        ledger.used("version of the files", metadata)
        ledger.contents(metadata, documents.read_json_object(metadata), _METADATA)
