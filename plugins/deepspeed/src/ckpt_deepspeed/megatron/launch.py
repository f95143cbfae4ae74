"""How Megatron-DeepSpeed is started with a checkpoint: by a command line, of which a checkpoint restores nothing.

Of the args in a checkpoint, `check_checkpoint_args` compares a few with the command line (megatron/checkpointing.py);
all others are those of the command line or their defaults (megatron/arguments.py, bigscience 8387ae1).
"""

from __future__ import annotations

from typing import Any

from ckpt_core.sdk import Target, WriteRequest, launches

_POSITIONS = {1: "rotary", 2: "absolute", 3: "alibi"}

# argument: flag, its default, and for a switch the value that the flag gives
_MODEL: dict[str, tuple[str, Any, Any]] = {
    "num_layers": ("--num-layers", None, None),
    "hidden_size": ("--hidden-size", None, None),
    "num_attention_heads": ("--num-attention-heads", None, None),
    "kv_channels": ("--kv-channels", None, None),
    "ffn_hidden_size": ("--ffn-hidden-size", None, None),
    "max_position_embeddings": ("--max-position-embeddings", None, None),
    "seq_length": ("--seq-length", None, None),
    "position_embedding_type": ("--position-embedding-type", "absolute", None),
    "layernorm_epsilon": ("--layernorm-epsilon", 1e-5, None),
    "glu_activation": ("--glu-activation", None, None),
    "bias_gelu_fusion": ("--no-bias-gelu-fusion", True, False),
    "openai_gelu": ("--openai-gelu", False, True),
    "embed_layernorm": ("--embed-layernorm", False, True),
    "apply_residual_connection_post_layernorm": ("--apply-residual-connection-post-layernorm", False, True),
    "attention_dropout": ("--attention-dropout", 0.1, None),
    "hidden_dropout": ("--hidden-dropout", 0.1, None),
}
_RUNNING: dict[str, tuple[str, Any, Any]] = {
    "init_method_std": ("--init-method-std", 0.02, None),
    "tensor_model_parallel_size": ("--tensor-model-parallel-size", 1, None),
    "pipeline_model_parallel_size": ("--pipeline-model-parallel-size", 1, None),
    "make_vocab_size_divisible_by": ("--make-vocab-size-divisible-by", 128, None),
    "bf16": ("--bf16", False, True),
    "fp16": ("--fp16", False, True),
}


def launch(target: Target, request: WriteRequest, resumed: bool) -> launches.Launch:
    """The command of pretrain_gpt.py for the args of a checkpoint that is written."""
    args, place = target.config, request.destination or "."
    arguments = [launches.Argument("load", place, ("--load", place), model=False)]
    if target.decisions["universal"]:
        arguments.append(
            launches.Argument("universal_checkpoint", True, ("--universal-checkpoint",), False, model=False)
        )
    elif not resumed:
        for flag in ("--no-load-optim", "--no-load-rng"):
            arguments.append(launches.Argument(flag[2:].replace("-", "_"), True, (flag,), model=False))
    for table, model in ((_RUNNING, False), (_MODEL, True)):
        for name, (flag, default, switch) in table.items():
            if name in args:
                arguments.append(_argument(name, args[name], flag, default, switch, model))
    ranks = target.parallel["tp"] * target.parallel["pp"]
    return launches.Launch(
        "Megatron-DeepSpeed",
        ("deepspeed", f"--num_gpus={ranks}", "pretrain_gpt.py"),
        tuple(arguments),
        notes=(
            "Tokenizer (--tokenizer-type PretrainedFromHF --tokenizer-name-or-path), data, batch, schedule and --deepspeed"
            " with its config are yours to add.",
            "A DeepSpeed config with zero_optimization.stage 1 or above: with stage 0 and bf16 the weights are overwritten.",
        ),
    )


def _argument(name: str, value: Any, flag: str, default: Any, switch: Any, model: bool) -> launches.Argument:
    if name == "position_embedding_type":
        value = _POSITIONS[value.args[0]]
    if switch is not None:
        words: tuple[str, ...] = (flag,) if value == switch else ()
    else:
        words = () if value is None or value == default else (flag, str(value))
    return launches.Argument(
        name, value, words, launches.UNKNOWN if default is None and value is not None else default, model=model
    )
