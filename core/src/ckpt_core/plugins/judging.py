"""One rank of a framework that judges a checkpoint: `python -P -m ckpt_core.plugins.judging MODULE FOLDER RANK`.

MODULE is a plugin's, and has three names: `framework()` says which one this is ("megatron-core 0.16.1"), `logits(asked)`
loads the files of a `Case` by the framework's own code and computes on the rank that holds them, and `CLASSES` are the
(module, name) pairs that a pickle of its checkpoints may name. At any other the framework is stopped, whichever code
unpickles: it reads pickles that we would not. (Python tells of a class that `pickle.Unpickler.find_class` finds; every
unpickler of torch, Megatron-Core 0.19 and neuronx-distributed ends there.)

FOLDER has the request (`asked.json`, `inputs.npz`) and gets the answer (`answer-RANK.json`, `logits.npy`).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Collection
from pathlib import Path

from ckpt_core import numpy as np
from ckpt_core.plugins.judgement import CannotRun, Case, FilesRefused, said


def allow_only(classes: Collection[tuple[str, str]]) -> list[str]:
    """Let every unpickler of this process fail at a class that is not one of these; nothing can lift that again.

    Gives the list into which such a class is put: a framework may make an error of its own of the failure.
    """
    stopped: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        if event == "pickle.find_class" and arguments not in classes:
            stopped.append(".".join(map(str, arguments)))
            raise CannotRun(stopped[0])

    sys.addaudithook(hook)
    return stopped


def main(module_name: str, folder: str, number: str) -> int:
    """Ask, and write the answer."""
    asked, rank = json.loads(Path(folder, "asked.json").read_text()), int(number)
    with np.load(os.path.join(folder, "inputs.npz"), allow_pickle=False) as stored:
        inputs = dict(stored)
    answer: dict[str, str] = {}
    stopped: list[str] = []
    try:
        module = importlib.import_module(module_name)
        answer["framework"] = module.framework()
        stopped = allow_only(module.CLASSES)
        logits = module.logits(Case(asked["path"], inputs, asked["ranks"], rank, asked["world"], folder))
        if logits is not None:
            np.save(os.path.join(folder, "logits.npy"), np.asarray(logits, np.float32))
    except FilesRefused as problem:
        answer["refused"] = str(problem)
    except CannotRun as problem:
        answer["cannot"] = str(problem)
    except Exception as problem:
        answer["cannot"] = said(problem)
    if stopped:
        answer = {"framework": answer["framework"], "cannot": f"a pickle names {stopped[0]}, which is not made here"}
    Path(folder, f"answer-{rank}.json").write_text(json.dumps(answer))
    sys.stdout.flush()
    # no exit handlers of the framework's: they may wait for ranks that are gone
    os._exit(1 if "cannot" in answer or "refused" in answer else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
