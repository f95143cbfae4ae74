"""How Megatron-Bridge is started with a checkpoint: by a recipe, whose model has to be told what `run_config.yaml` says.

A run builds the model of its own ConfigContainer. Of the checkpoint's run_config.yaml it looks at the ranks, and whether
optimizer and random states were saved (training/checkpointing.py, v0.2 to v0.6); only `load_model_config` reads the model.
"""

from __future__ import annotations

from ckpt_core.sdk import Target, WriteRequest, launches
from ckpt_megatron.bridge.config import table_of
from ckpt_megatron.transformer_config.targets import named
from ckpt_megatron.transformer_config.writing import FUNCTIONS

_RANKS = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size")


def launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    """The overrides of a recipe's config. Those that hold a function can't be said so: the class has them."""
    fields = target.config
    fates = table_of(target.decisions["class"], fields).fates(fields)
    place = request.destination or "."
    key = "checkpoint.load" if resumed else "checkpoint.pretrained_checkpoint"
    arguments = [launches.Argument(key, place, (launches.override(key, place),), model=False)]
    for name, value in sorted(fields.items()):
        said = named(value) if name in FUNCTIONS else value
        plain = name not in FUNCTIONS and not callable(value) and not _is_named(value)
        words = (launches.override(f"model.{name}", value),) if plain else ()
        arguments.append(
            launches.Argument(
                f"model.{name}", said, words, model=name not in _RANKS and fates.get(name, ("left",))[0] == "used"
            )
        )
    ranks = target.parallel["tp"] * target.parallel["pp"] * target.parallel["ep"]
    folder = next(name for name in target.documents if name.endswith("run_config.yaml")).rpartition("/")[0]
    return launches.Launch(
        f"Megatron-Bridge {target.decisions['bridge_version']}",
        ("torchrun", f"--nproc-per-node={ranks}", "run_recipe.py", "--recipe", "YOURS"),
        tuple(arguments),
        notes=(
            f"The recipe's model must be a {target.decisions['class']}, which has the functions that no override says.",
            "A script takes all of them from the checkpoint instead, with load_model_config of"
            f" megatron.bridge.training.model_load_save: cfg.model = load_model_config({place + '/' + folder!r})[0]",
        ),
    )


def _is_named(value: object) -> bool:
    """Whether a field holds something that a yaml names by `_target_`."""
    return isinstance(value, dict) and any(str(key).startswith("_") for key in value)
