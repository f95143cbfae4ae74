"""How nanotron is started with a checkpoint: by a yaml, from which it takes all, and nothing from the checkpoint's own configs.

`run_train.py` never opens model_config.json (trainer.py): a key that the yaml lacks has the default of its dataclass.
"""

from __future__ import annotations

import math
import os

from ckpt_core.sdk import Target, WriteRequest, disk, documents, launches
from ckpt_nanotron.config import MODELS
from ckpt_nanotron.files import TRAINING_CONFIG, find_step


def launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    """The yaml of a run that starts from the weights, or goes on with the state of its training: then the one that lies there."""
    place = request.destination or "."
    (path,) = (name for name in target.documents if name.endswith(TRAINING_CONFIG))
    file, document = f"{place}/{path}", target.documents[path]
    own = os.path.join(find_step(place), TRAINING_CONFIG) if resumed and os.path.isdir(place) else ""
    ranks = math.prod(target.parallel.values())
    if os.path.isfile(own):
        file, document = own, disk.read_small(own)
        said = documents.parse_yaml(document, file)
        sizes = said.get("parallelism") if isinstance(said, dict) else None
        ranks = math.prod(sizes[name] for name in ("tp", "pp", "dp")) if isinstance(sizes, dict) else 1
    (table,) = (model.config for model in MODELS if model.config.name == target.decisions["model"])
    fates = table.fates(target.config)
    return launches.Launch(
        f"nanotron {target.decisions['target']}",
        ("torchrun", f"--nproc-per-node={ranks}", "run_train.py", "--config-file", file),
        tuple(
            launches.Argument(f"model.model_config.{key}", value, model=fates[key][0] == "used")
            for key, value in target.config.items()
        ),
        document=document.decode("utf-8", "replace"),
        notes=(
            "Data, batch, learning rate and steps in it are examples.",
            *_notes(place, resumed or target.training is not None, str(target.decisions["target"])),
        ),
    )


def _notes(place: str, resumed: bool, release: str) -> tuple[str, ...]:
    """What nanotron reads besides, and what it does of its own (0.4: trainer.py builds LambdaLR, whose constructor sets the rate of step 0, after it
    loaded the optimizer; main loads the optimizer after it)."""
    if not resumed:
        return ("The weights are read from model.init_method.path. The run's own state is not restored.",)
    goes_on = f"The run goes on where checkpoints.resume_checkpoint_path is {place}: weights, optimizer, schedule and counters."
    if release != "0.4":
        return (goes_on,)
    return (
        goes_on,
        "Release 0.4 makes the first step after a resume with the learning rate that the curve has at step 0, which is 0 with a linear warmup; "
        "the curve that is written where none is known has one value.",
    )
