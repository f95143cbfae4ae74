"""How Megatron-LM is started with a checkpoint: the command line that says what `args` say.

`launch-arguments.json` has, for each argument and version of Megatron-LM (by its core's), the flag, what it takes, its
default, and whether `--use-checkpoint-args` restores it (training/checkpointing.py, `_set_arg`). It is made and checked by
tests/real/megatron_arguments.py, from the sources of the versions.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from ckpt_core.sdk import Target, WriteRequest, documents, launches
from ckpt_megatron.args.yarn import ARGUMENTS
from ckpt_megatron.config import GPT, MLA
from ckpt_megatron.files import FSDP_DTENSOR
from ckpt_megatron.layout import DIVISIBLE
from ckpt_megatron.optimizer.progress import CONTINUED

VERSIONS = ("0.13", "0.14", "0.15", "0.16", "0.17", "0.18", "0.19")
_FILE = "launch-arguments.json"

_LOADING = ("load", "ckpt_step", "ckpt_format", "auto_detect_ckpt_format", "use_checkpoint_args")
_FRESH = ("no_load_optim", "no_load_rng", "finetune")
# What a run is told that goes on from the state of a training; the curve of its schedule lies there only where Megatron-LM once said it.
_CONTINUED = tuple(key for key in CONTINUED if key != "no_save_rng")
_RANKS = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "sequence_parallel",
    "num_layers_per_virtual_pipeline_stage",
    "num_virtual_stages_per_pipeline_rank",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
)
_TOKENS = ("tokenizer_type", "tokenizer_model", "vocab_size", "padded_vocab_size", DIVISIBLE)
_RUNNING = (
    "transformer_impl",
    "moe_grouped_gemm",
    "bf16",
    "fp16",
    "attention_dropout",
    "hidden_dropout",
    "apply_query_key_layer_scaling",
    "init_method_std",
)
# One of two names has a flag, depending on the version; the other says the same, or nothing that Megatron asks for.
_SAID_BY_ANOTHER = {
    "norm_epsilon": "layernorm_epsilon",
    "layernorm_epsilon": "norm_epsilon",
    "apply_layernorm_1p": "layernorm_zero_centered_gamma",
    "layernorm_zero_centered_gamma": "apply_layernorm_1p",
    "disable_bias_linear": "add_bias_linear",
    "orig_vocab_size": "vocab_size",
    "padded_vocab_size": DIVISIBLE,  # 0.13 counts the rows itself
    "use_rotary_position_embeddings": "position_embedding_type",
    "add_position_embedding": "position_embedding_type",
}
# Megatron-LM asks its tokenizer for these.
_OF_TOKENIZER = {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"}
# What the code of a version does that has no such flag: the classes' defaults (transformer_config.py).
_BUILT_IN: dict[str, object] = {
    "window_size": None,
    "window_attn_skip_freq": None,
    "softmax_type": "vanilla",
    "quick_geglu": False,
    "moe_shared_expert_gate": False,
    "use_legacy_models": False,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    # 0.13 always has yarn with latent attention, which with a factor of 1 is usual rotary positions
    "rope_type": "yarn",
    **dict.fromkeys(key for key in ARGUMENTS.keys if key.startswith("yarn_")),
}
# Arguments that the parser has and nobody passes on: gpt_builder (0.15 to 0.19, model_provider before) gives GPTModel
# `rope_scaling` without its factor, which stays 8.
_UNHEARD = {"rope_scaling_factor": 8.0}
_OF_FSDP = (
    "Megatron-FSDP is asked for with --use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params"
    " --use-distributed-optimizer --bf16, as 0.19 has them."
)
_CLIP = 1.0  # the default of --clip-grad
_EOD_COUNTED = "0.17"  # until then the NullTokenizer has one token more than it is told of

MODEL = tuple(sorted((GPT.keys | MLA.keys) - {*_TOKENS, *_RUNNING, "orig_vocab_size"} - _OF_TOKENIZER))
NAMES = (*_LOADING, *_FRESH, *_CONTINUED, *_RANKS, *_TOKENS, *_RUNNING, *MODEL)


@functools.cache
def _table() -> Mapping[str, list[dict[str, Any]]]:
    body = documents.parse_json(resources.files(__package__).joinpath(_FILE).read_bytes(), _FILE)
    assert isinstance(body, dict) and tuple(body["versions"]) == VERSIONS
    return body["arguments"]


def line_of(name: str, version: str) -> Mapping[str, Any]:
    """What the command line of a version has for an argument; nothing if it has no such argument."""
    number = VERSIONS.index(version)
    for line in _table().get(name, []):
        until = VERSIONS.index(line["until"]) if "until" in line else len(VERSIONS)
        if VERSIONS.index(line["since"]) <= number <= until:
            return line
    return {}


def launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    """The command of pretrain_gpt.py for the args of a checkpoint that is written; without a version in the request, that
    of the newest which has an argument for everything.
    """
    asked = request.options.get("megatron_version")
    resumed = resumed or target.training is not None
    versions = [asked] if asked else VERSIONS
    possible = [_launch(target, request.destination, resumed, version) for version in versions]
    return next((launch for launch in reversed(possible) if not launch.unsaid), possible[-1])


def _launch(target: Target, destination: str, resumed: bool, version: str) -> launches.Launch:
    args, folder = target.config, destination or "."
    step = re.fullmatch(r"iter_(\d{7})|release", os.path.basename(folder))
    said: dict[str, Any] = {"load": os.path.dirname(folder) if step else folder}
    said |= {"ckpt_step": int(step[1])} if step and step[1] else {}
    said |= {"ckpt_format": args["ckpt_format"], "auto_detect_ckpt_format": True, "use_checkpoint_args": True}
    if not resumed:
        said |= {"no_load_optim": True, "no_load_rng": True, "finetune": not args["iteration"]}
    else:
        said |= {"no_load_rng": bool(args.get("no_save_rng"))}
        said |= {name: bool(args.get(name)) for name in _CONTINUED}
    said |= {name: args.get(name) for name in _RANKS} | _tokens(args, version)
    said |= {name: args[name] for name in (*_RUNNING, *MODEL) if name in args}
    if args["expert_tensor_parallel_size"] == args["tensor_model_parallel_size"]:
        del said["expert_tensor_parallel_size"]  # without it, it is that
    if args["swiglu"]:
        del said["bias_gelu_fusion"]  # core_transformer_config_from_args looks at bias_swiglu_fusion instead
    latent = bool(args.get("multi_latent_attention"))
    # For fsdp_dtensor Megatron takes no argument from the checkpoint (checkpointing.py, _load_base_checkpoint).
    takes = args["ckpt_format"] != FSDP_DTENSOR
    found = [one for name, value in said.items() if (one := _argument(name, value, version, latent, takes)) is not None]
    ranks = args["tensor_model_parallel_size"] * args["pipeline_model_parallel_size"]
    ranks *= args["expert_model_parallel_size"]
    return launches.Launch(
        f"Megatron-LM {version}",
        (*_environment(args), "torchrun", f"--nproc-per-node={ranks}", "pretrain_gpt.py"),
        tuple(one for one in found if one.words or not one.silent),
        unsaid=tuple(one for one in found if one.silent and not one.words),
        fix="choose another version with -o megatron_version=",
        notes=(*_notes(args, resumed), *_stepping(target)),
    )


def _environment(args: Mapping[str, Any]) -> tuple[str, ...]:
    """Words before the program. On GPUs before Blackwell, validate_args refuses tensor parallel ranks without this variable."""
    return ("env", "CUDA_DEVICE_MAX_CONNECTIONS=1") if args["tensor_model_parallel_size"] > 1 else ()


def _tokens(args: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The tokenizer and the rows of the embedding. Without a tokenizer, the one that has as many tokens and no words."""
    said = {DIVISIBLE: args[DIVISIBLE], "padded_vocab_size": args["padded_vocab_size"]}
    if args.get("tokenizer_model"):
        return {name: args[name] for name in ("tokenizer_type", "tokenizer_model")} | said
    counted = VERSIONS.index(version) <= VERSIONS.index(_EOD_COUNTED)
    return {"tokenizer_type": "NullTokenizer", "vocab_size": args["vocab_size"] - counted} | said


def _notes(args: Mapping[str, Any], resumed: bool) -> tuple[str, ...]:
    notes = ["Data, batch sizes and the schedule are yours to add."]
    if resumed and args.get("override_opt_param_scheduler"):
        notes.append(
            "The checkpoint has the position of the schedule alone: --lr, --min-lr, its warmup, decay and --weight-decay are yours."
        )
    if args["ckpt_format"] == FSDP_DTENSOR:
        notes.append(_OF_FSDP)
    if not args.get("tokenizer_model"):
        notes.append("NullTokenizer stands for your tokenizer, which has as many tokens.")
    return tuple(notes)


def _stepping(target: Target) -> Iterator[str]:
    """What a run that goes on must be told of its optimizer's steps: a loader takes no clipping from the files, and the weight decay with the curve alone."""
    args, training = target.config, target.training
    if training is None:
        return
    told = []
    if args.get("override_opt_param_scheduler"):
        told.append(f"--weight-decay {max(group.weight_decay for group in training.groups):g}")
    if training.clip_grad not in (None, _CLIP):
        told.append(f"--clip-grad {training.clip_grad:g}")
    if told:
        yield f"The run goes on as it was with {' '.join(told)}, which Megatron-LM does not take from the checkpoint."


def _argument(name: str, value: Any, version: str, latent: bool, takes: bool) -> launches.Argument | None:
    """An argument as a version has it, which may take it from the checkpoint (`takes`); None where another one says it, or there is nothing to say."""
    line, model = line_of(name, version), name in MODEL
    if name in _UNHEARD:
        return launches.Argument(name, value, (), _UNHEARD[name])
    if not line.get("flag"):
        other = _SAID_BY_ANOTHER.get(name)
        # All but those of `_BUILT_IN` are written at the one value that they may have.
        default = _BUILT_IN.get(name, value)
        if default == value or name == "rope_type" or (other and line_of(other, version).get("flag")):
            return None
        return launches.Argument(name, value, (), default, takes and bool(line.get("taken")))
    default = line["default"]
    if name == "rope_type":
        default = "yarn" if latent else "rope"  # of the config classes, where there is none on the command line
    if name == ARGUMENTS.names["truncate"]:
        default = ARGUMENTS.nulls["truncate"]  # which argument_utils.py takes for the parser's null
    words = tuple(_words(line, value, default))
    return launches.Argument(
        name, value, words, launches.UNKNOWN if name == "load" else default, takes and bool(line.get("taken")), model
    )


def _words(line: Mapping[str, Any], value: Any, default: Any) -> Iterator[str]:
    """The words that give an argument its value; none for the default, or for a value that the flag does not take."""
    flag, takes = line["flag"], line["takes"]
    if isinstance(takes, bool):
        if bool(value) is takes and value != default:
            yield flag
    elif value is not None and value != default:
        if takes == "pattern" and isinstance(value, list | tuple):
            yield from (flag, pattern_text(value))
        elif takes == "tuple":
            yield from (flag, ",".join(map(str, value)))
        elif takes != "int" or value == int(value):
            yield from (flag, str(int(value) if takes == "int" else value))


def pattern_text(values: list[int] | tuple[int, ...]) -> str:
    """A list of 0 and 1 as moe_freq_type reads it.

    >>> pattern_text([0, 1, 1, 1, 0])
    '[0]*1+[1]*3+[0]*1'
    """
    return "+".join(f"[{value}]*{len(list(run))}" for value, run in itertools.groupby(values))
