"""How NeMo 1 is started with a checkpoint: by Hydra overrides of the script that goes on with a model of its kind.

Which keys a script takes from the archive and which from its own config differ by the kind (NeMo 1.23, examples).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpt_core.checkpoint import Target
from ckpt_core.launch import UNKNOWN, Argument, Launch, override
from ckpt_core.layout import Config
from ckpt_core.plugins import WriteRequest
from ckpt_nemo.container.lightning import FOLDER, HPARAMS, SUFFIX
from ckpt_nemo.container.writing import STEP
from ckpt_nemo.gpt import config as gpt
from ckpt_nemo.kinds import KINDS
from ckpt_nemo.vit import config as vit

_RANKS = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size")


@dataclass(frozen=True)
class _Script:
    """A script, the key that names the archive, and which of the model's keys are those of the script's own config,
    with the defaults there; `all_own`: every key is.
    """

    name: str
    archive: str
    own: Mapping[str, Any] = field(default_factory=dict)
    all_own: bool = False


# _modify_config of megatron_gpt_continue_training.py puts these over the archive's config.
_GPT = {
    "encoder_seq_length": 512,
    "max_position_embeddings": 512,
    "seq_len_interpolation_factor": None,
    "use_flash_attention": False,
    "megatron_amp_O2": False,
}
_SCRIPTS = {
    "gpt": _Script("megatron_gpt_continue_training.py", "restore_from_path", _GPT),
    "t5": _Script("megatron_t5_seq2seq_finetune.py", "model.restore_from_path"),
    # it restores with override_config_path=cfg.model
    "vit": _Script("megatron_vit_classification_finetune.py", "model.restore_from_path", all_own=True),
}


def launch(target: Target, request: WriteRequest, resumed: bool) -> Launch:
    """The command for the config of an archive, or of a checkpoint in the middle of training."""
    kind, config = _kind(target), target.config
    script, place = _SCRIPTS[kind], request.destination or "."
    arguments = [Argument(key, value, (override(key, value),), model=False) for key, value in _source(target, place)]
    arguments += [_rank(name, config) for name in _RANKS if config.get(name) is not None]
    fates = _table(kind, config).fates(config) if kind != "t5" else {}  # whose keys are nested, and all taken
    for key, value in config.items():
        if key in _RANKS or fates.get(key, ("used",))[0] != "used":
            continue
        own = script.all_own or key in script.own
        default = script.own.get(key, UNKNOWN) if own else UNKNOWN
        words = (override(f"++model.{key}", value),) if own and value != default else ()
        arguments.append(Argument(f"model.{key}", value, words, default, taken=not own))
    ranks = target.parallel["tp"] * target.parallel["pp"]
    program = ("torchrun", f"--nproc-per-node={ranks}", script.name, f"trainer.devices={ranks}")
    return Launch(
        "NeMo 1.23", program, tuple(arguments), notes=("Data, precision and the optimizer are yours to add.",)
    )


def _kind(target: Target) -> str:
    name = str(target.config["target"]).rpartition(".")[2]
    return next(kind.module for kind in KINDS if name in kind.targets)


def _table(kind: str, config: Mapping[str, Any]) -> Config:
    return vit.VIT if kind == "vit" else gpt.MCORE if config.get("mcore_gpt") else gpt.LEGACY


def _source(target: Target, place: str) -> list[tuple[str, Any]]:
    """The keys that say where the weights are."""
    kind, container = _kind(target), target.decisions["container"]
    if container != "ckpt" or kind != "gpt":
        return [(_SCRIPTS[kind].archive, place)]
    prefix = "+model.pretrained_checkpoint"
    return [
        (f"{prefix}.checkpoint_dir", f"{place}/{FOLDER}"),
        (f"{prefix}.checkpoint_name", f"{STEP}{SUFFIX}"),
        (f"{prefix}.hparams_file", f"{place}/{HPARAMS}"),
    ]


def _rank(name: str, config: Mapping[str, Any]) -> Argument:
    size = config[name]
    return Argument(f"model.{name}", size, (override(f"++model.{name}", size),), model=False)
