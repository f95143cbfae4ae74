"""The lines of a job's yaml that must agree with the files, for a user to merge into theirs.

A job that is told otherwise stops with "Missing keys", or, with `peft`, trains random weights without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import schema
from ckpt_nxdt.weights import Arrangement

FRAGMENT = "nxdt.yaml"

# qkv_linear and fuse_qkv, whose defaults are False and True
_QKV = {"split": (False, False), "linear": (True, False), "fused": (True, True), "coalesced": (False, True)}


@schema.dataclass(frozen=True, slots=True)
class Ranks:
    """The parallel layout that is written. `copies` of every key-value head lie on ranks of their own; `stages` gives
    the pipeline rank of every layer; `cuts` are those that a user asked for."""

    tp: int
    pp: int
    ep: int
    vpp: int
    copies: int
    stages: tuple[int, ...]
    cuts: tuple[int, ...] = ()

    @property
    def parallel(self) -> dict[str, int]:
        """The layout, without expert ranks and virtual stages where there are none."""
        more = {name: size for name, size in (("ep", self.ep), ("vpp", self.vpp)) if size > 1}
        return {"tp": self.tp, "pp": self.pp} | more


def job_lines(
    folder: str,
    config_file: str,
    config: Mapping[str, Any],
    arrangement: Arrangement,
    ranks: Ranks,
    multiple: int,
    resumes: bool = False,
) -> dict[str, Any]:
    """The lines of `FRAGMENT`; `folder` and `config_file` are where the output will lie, `config` the model's config.json. `resumes`: the job goes on with
    the optimizer that lies there, which is zero-1's."""
    strategy: dict[str, Any] = {
        "tensor_model_parallel_size": ranks.tp,
        "pipeline_model_parallel_size": ranks.pp,
        "virtual_pipeline_model_parallel_size": ranks.vpp,
    }
    strategy |= {"expert_model_parallel_size": ranks.ep} if ranks.ep > 1 else {}
    strategy |= {"zero1": True} if resumes else {}
    model: dict[str, Any] = {"weight_init_only": not resumes, "use_cpu_initialization": False}
    # the checkpoint's zero-1 is what nlp_overrides.py, `_is_checkpoint_using_zero1_optimizer`, takes from the config of the model
    model |= {"wrap_with_zero": True} if resumes else {}
    if arrangement.style == "hf":
        strategy |= {"kv_replicator": ranks.copies} if ranks.copies > 1 else {}
        linear, fused = _QKV[arrangement.qkv]
        model |= {"model_config": config_file, "qkv_linear": linear, "fuse_qkv": fused}
        model |= {"rope_theta": config["rope_theta"], "max_position_embeddings": config["max_position_embeddings"]}
    else:
        model |= _megatron(config, multiple)
    prefix = "model.layers." if arrangement.style == "hf" else "language_model.encoder.layers."
    model["pipeline_cuts"] = [f"{prefix}{cut}" for cut in ranks.cuts] or None
    return {
        "model_source": arrangement.style,
        "exp_manager": {"resume_from_checkpoint": folder},
        "distributed_strategy": strategy,
        "model": model,
    }


def _megatron(config: Mapping[str, Any], multiple: int) -> dict[str, Any]:
    """The architecture as the megatron style has it: its defaults are not those of a Llama."""
    groups, heads = config["num_key_value_heads"], config["num_attention_heads"]
    scaling = config["rope_scaling"]
    found: dict[str, Any] = {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": heads,
        "num_kv_heads": None if groups == heads else groups,
        "max_position_embeddings": config["max_position_embeddings"],
        "normalization": "rmsnorm",
        "layernorm_epsilon": config["rms_norm_eps"],
        "position_embedding_type": "rope",
        "position_freq_base": config["rope_theta"],
        "rotary_percentage": 1,
        "activation": "swiglu",
        "has_bias": False,
        "share_embeddings_and_output_weights": False,
        "transformer_block_type": "pre_ln",
        "make_vocab_size_divisible_by": multiple,
    }
    if scaling is not None:
        # The misspelled key is the one that NxDT reads (megatron_gpt_model.py).
        found["positition_interpolation_factor"] = scaling["factor"]
    if "num_local_experts" in config:
        experts, chosen = config["num_local_experts"], config["num_experts_per_tok"]
        found["moe"] = {"num_experts": experts, "top_k": chosen, "normalize_top_k_affinities": True}
    return found
