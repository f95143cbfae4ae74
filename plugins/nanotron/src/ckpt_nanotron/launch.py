"""How nanotron is started with a checkpoint: by a yaml, from which it takes all, and nothing from the checkpoint's own configs.

`run_train.py` never opens model_config.json (trainer.py): a key that the yaml lacks has the default of its dataclass.
"""

from __future__ import annotations

from ckpt_core.sdk import Target, WriteRequest, launches
from ckpt_nanotron.config import MODELS
from ckpt_nanotron.files import TRAINING_CONFIG


def launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    """The yaml of a run that starts from the weights."""
    (path,) = (name for name in target.documents if name.endswith(TRAINING_CONFIG))
    (table,) = (model.config for model in MODELS if model.config.name == target.decisions["model"])
    fates = table.fates(target.config)
    ranks = target.parallel["tp"] * target.parallel["pp"]
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
            "The weights are read from model.init_method.path. The run's own state is not restored.",
        ),
    )
