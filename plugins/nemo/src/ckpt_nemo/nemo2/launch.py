"""How NeMo 2 is started with a checkpoint: by a recipe, whose model has to be told what `context/io.json` says.

`AutoResume` with a `RestoreConfig` loads weights into the model of the recipe; it looks at no config of the checkpoint
(lightning/resume.py, v2.0 to v2.4). Only `io.load_context` reads it.
"""

from __future__ import annotations

from ckpt_core.sdk import Target, WriteRequest, launches
from ckpt_megatron.sdk import fiddle, transformer_config
from ckpt_nemo.nemo2.config import Classes, table_of

_RANKS = {
    "tensor_model_parallel_size": "tp",
    "pipeline_model_parallel_size": "pp",
    "expert_model_parallel_size": "ep",
}


def launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    """The overrides of a recipe, as nemo_run reads them: names and values of Python."""
    place = request.destination or "."
    key = "resume.restore_config.path"
    arguments = [launches.Argument(key, place, (f"{key}={place!r}",), model=False)]
    classes = Classes(target.decisions["config"], target.decisions["model"])
    fates = table_of(classes, target.config).fates(target.config)
    for name, value in sorted(target.config.items()):
        if name in _RANKS:
            continue
        path, functional = f"model.config.{name}", name in transformer_config.FUNCTIONS
        said = transformer_config.named(value) if functional else fiddle.plain_of(value)
        words = (f"{path}={said!r}",) if said is value or isinstance(said, list | tuple) else ()
        model = fates.get(name, ("left",))[0] == "used"
        arguments.append(launches.Argument(path, said, () if functional else words, model=model))
    for name, short in _RANKS.items():
        path, size = f"trainer.strategy.{name}", target.parallel[short]
        arguments.append(launches.Argument(path, size, (f"{path}={size}",), model=False))
    return launches.Launch(
        "NeMo 2",
        ("nemo", "llm", "finetune", "--factory", "YOURS"),
        tuple(arguments),
        notes=(
            f"The recipe's model must be a {target.decisions['model']} of a {target.decisions['config']},"
            " which have the functions that no override says.",
            f"A script takes all of them from the checkpoint instead: model = nemo.lightning.io.load_context({place!r}).model",
        ),
    )
