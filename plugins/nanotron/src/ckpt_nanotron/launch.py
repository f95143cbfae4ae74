"""How nanotron is started with a checkpoint: by a yaml, from which it takes all, and nothing from the checkpoint's own configs.

`run_train.py` never opens model_config.json (trainer.py): a key that the yaml lacks has the default of its dataclass.
"""

from __future__ import annotations

from ckpt_core.sdk import Target, WriteRequest, launches
from ckpt_nanotron.config import MODELS
from ckpt_nanotron.files import TRAINING_CONFIG


def launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    """The yaml of a run that starts from the weights, or goes on with the state of its training."""
    (path,) = (name for name in target.documents if name.endswith(TRAINING_CONFIG))
    (table,) = (model.config for model in MODELS if model.config.name == target.decisions["model"])
    fates = table.fates(target.config)
    ranks = target.parallel["tp"] * target.parallel["pp"] * target.parallel.get("dp", 1)
    place = request.destination or "."
    return launches.Launch(
        f"nanotron {target.decisions['target']}",
        ("torchrun", f"--nproc-per-node={ranks}", "run_train.py", "--config-file", f"{place}/{path}"),
        tuple(
            launches.Argument(f"model.model_config.{key}", value, model=fates[key][0] == "used")
            for key, value in target.config.items()
        ),
        document=target.documents[path].decode(),
        notes=(
            "Data, batch, learning rate and steps in it are examples.",
            *_notes(target),
        ),
    )


def _notes(target: Target) -> tuple[str, ...]:
    """What nanotron reads besides, and what it does of its own (0.4: trainer.py builds LambdaLR, whose constructor sets the rate of step 0, after it
    loaded the optimizer)."""
    if target.training is None:
        return ("The weights are read from model.init_method.path. The run's own state is not restored.",)
    return (
        "The run goes on from checkpoints.resume_checkpoint_path: weights, optimizer, schedule and counters.",
        "Release 0.4 makes the first step after a resume with the learning rate that the curve has at step 0, which is 0 with a linear warmup; "
        "the curve that is written where none is known has one value.",
    )
