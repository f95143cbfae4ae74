"""What a Neuron checkpoint holds beside the model, and what becomes of it (NxD's trainer/checkpoint.py, SDK 2.14 to 2.26)."""

from __future__ import annotations

import os

from ckpt_core.sdk import ledgers, torch_files
from ckpt_nxdt.files import FolderContents
from ckpt_nxdt.job import FRAGMENT
from ckpt_nxdt.places import BEGUN, DONE, root_of
from ckpt_nxdt.places import OPTIMIZER as FOLDER
from ckpt_nxdt.xser import read_xser

USER_CONTENT, SCHEDULER = "user_content.pt", "scheduler.pt"

# optim/dp_rank_*.pt
_OPTIMIZER = ledgers.Contents(
    {"sharded_master_weights": "weights", "shape_info": "which master is whose", "*": ledgers.OPTIMIZER}
)

# model/dp_rank_*.pt.info.pt, by the number of the tensor
_INFO = ledgers.Contents({"[0-9]*": "where each tensor lies"})

_FILES = {USER_CONTENT: ledgers.PROGRESS, SCHEDULER: ledgers.SCHEDULE, FRAGMENT: ledgers.SETTINGS}


def enter_training(ledger: ledgers.Ledger, contents: FolderContents, read: set[str]) -> None:
    """The marks of the job, and the state of its training; of the files `read`, those of the optimizer hold masters that are the weights."""
    root = root_of(contents.folder)
    for name in (BEGUN, DONE):
        if os.path.isfile(mark := os.path.join(root, name)):
            ledger.used("whether the checkpoint is complete", mark)
    for name, reason in _FILES.items():
        if os.path.isfile(file := os.path.join(root, name)):
            ledger.left(reason, file, size=os.path.getsize(file))
    for rank in contents.files:
        if os.path.isfile(info := f"{rank.path}.info.pt"):
            ledger.used("where each tensor lies", info)
            ledger.contents(info, torch_files.read_torch_file(info), _INFO)
    optimizer = os.path.join(root, FOLDER)
    ledger.left_whole(ledgers.OPTIMIZER, optimizer, read)
    for file in sorted(read):
        of_masters = file.startswith(optimizer + os.sep) and ".tensors" not in os.path.dirname(file)
        if of_masters and isinstance(content := read_xser(file), dict):
            ledger.contents(file, content, _OPTIMIZER)
