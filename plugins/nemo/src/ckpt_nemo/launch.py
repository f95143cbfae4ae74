"""How NeMo 1 is started with a checkpoint: by Hydra overrides of the script that goes on with a model of its kind.

Which keys a script takes from the archive and which from its own config differ by the kind (examples of NeMo 1.23). A GPT
that takes a newer NeMo is started by another script: NeMo 2.0 has no megatron_gpt_continue_training.py any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from os.path import basename, dirname
from typing import Any

from ckpt_core.sdk import Config, Target, WriteRequest, launches, schema
from ckpt_megatron.sdk import DIVISIBLE
from ckpt_nemo.container.lightning import HPARAMS
from ckpt_nemo.container.places import FOLDER, SUFFIX
from ckpt_nemo.container.tokenizer import SECTION
from ckpt_nemo.gpt import config as gpt
from ckpt_nemo.gpt.versions import newer
from ckpt_nemo.kinds import KINDS
from ckpt_nemo.vit import config as vit

_RANKS = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size")


@schema.dataclass(frozen=True)
class _Script:
    """A script of a NeMo, the key that names the archive, and which of the model's keys are those of the script's own
    config, with the defaults there; `all_own`: every key is. `running` are keys of its own that say with what the model
    runs. `trained`: it reads a `.ckpt` too.
    """

    name: str
    archive: str
    own: Mapping[str, Any] = field(default_factory=dict)
    all_own: bool = False
    running: tuple[str, ...] = ()
    trained: bool = False
    release: str = "1.23"


# _modify_config of megatron_gpt_continue_training.py puts these over the archive's config.
_GPT = {
    "encoder_seq_length": 512,
    "max_position_embeddings": 512,
    "seq_len_interpolation_factor": None,
    "use_flash_attention": False,
    "megatron_amp_O2": False,
}
_RUNNING = (
    "mcore_gpt",
    "transformer_engine",
    "megatron_amp_O2",
    "hidden_dropout",
    "attention_dropout",
    DIVISIBLE,
    "override_vocab_size",
    SECTION,
)
_SCRIPTS = {
    "gpt": _Script("megatron_gpt_continue_training.py", "restore_from_path", _GPT, trained=True),
    "t5": _Script("megatron_t5_seq2seq_finetune.py", "model.restore_from_path", trained=True),
    # it restores with override_config_path=cfg.model
    "vit": _Script("megatron_vit_classification_finetune.py", "model.restore_from_path", all_own=True),
}


def launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    """The command for the config of an archive, or of a checkpoint in the middle of training."""
    kind, config = _kind(target), target.config
    script, place = _script(kind, target), request.destination or "."
    trained = target.decisions["container"] == "ckpt"
    source = _trained(target, place) if trained and script.trained else {script.archive: place}
    arguments = [
        launches.Argument(key, value, (launches.override(key, value),), model=False) for key, value in source.items()
    ]
    arguments += [_own(name, config[name]) for name in _RANKS if config.get(name) is not None]
    arguments += [_own(name, config[name]) for name in script.running if config.get(name) is not None]
    fates = _table(kind, config).fates(config) if kind != "t5" else {}  # whose keys are nested, and all taken
    for key, value in config.items():
        if key in _RANKS or fates.get(key, ("used",))[0] != "used":
            continue
        own = script.all_own or key in script.own
        default = script.own.get(key, launches.UNKNOWN) if own else launches.UNKNOWN
        words = (launches.override(f"++model.{key}", value),) if own and value != default else ()
        arguments.append(launches.Argument(f"model.{key}", value, words, default, taken=not own))
    ranks = target.parallel["tp"] * target.parallel["pp"]
    program = ("torchrun", f"--nproc-per-node={ranks}", script.name, f"trainer.devices={ranks}")
    unread = trained and not script.trained
    return launches.Launch(
        f"NeMo {script.release}",
        program,
        tuple(arguments),
        unsaid=(launches.Argument("container", "ckpt", default="nemo"),) if unread else (),
        fix="write an archive, with -o container=nemo" if unread else None,
        notes=("Data, precision and the optimizer are yours to add.",),
    )


def _script(kind: str, target: Target) -> _Script:
    """What starts a kind of model, in NeMo 1.23 where that computes it."""
    version = str(target.decisions.get("nemo_version", ""))
    if kind != "gpt" or not newer(version, (2, 0)):
        return _SCRIPTS[kind]
    # merge_cfg_with puts every key of the script's config over the archive's (nlp_adapter_mixins.py, v2.0.0)
    release = ".".join(version.split(".")[:2])
    return _Script(
        "megatron_gpt_pretraining.py", "model.restore_from_path", all_own=True, running=_RUNNING, release=release
    )


def _kind(target: Target) -> str:
    name = str(target.config["target"]).rpartition(".")[2]
    return next(kind.module for kind in KINDS if name in kind.targets)


def _table(kind: str, config: Mapping[str, Any]) -> Config:
    return vit.VIT if kind == "vit" else gpt.MCORE if config.get("mcore_gpt") else gpt.LEGACY


def _trained(target: Target, place: str) -> dict[str, Any]:
    """The keys that say where a `.ckpt` is: at `place` is the run, its folder of checkpoints, or one of them."""
    within = next(file.path for file in target.files if file.path.startswith(f"{FOLDER}/"))
    # a distributed one is a folder, without the suffix
    name = basename(within) if within.endswith(SUFFIX) else within.split("/")[1]
    folder = place if basename(place) == FOLDER else f"{place}/{FOLDER}"
    if basename(place) == name:
        folder = dirname(place)
    prefix = "++model.pretrained_checkpoint"
    return {
        f"{prefix}.checkpoint_dir": folder,
        f"{prefix}.checkpoint_name": name,
        f"{prefix}.hparams_file": f"{dirname(folder)}/{HPARAMS}",
    }


def _own(name: str, value: Any) -> launches.Argument:
    return launches.Argument(f"model.{name}", value, (launches.override(f"++model.{name}", value),), model=False)
