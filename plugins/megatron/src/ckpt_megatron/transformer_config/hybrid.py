"""Hybrid models (core/models/mamba, Bridge's HybridModelProvider): each layer is one block, by a letter of a pattern."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Config,
    Facts,
    Refusal,
    configs,
    decided,
    fact_is,
    ignore,
    key,
    key_is,
    schema,
    values,
)
from ckpt_megatron.args.norms import ALIKE
from ckpt_megatron.args.router import ROUTER_KEYS
from ckpt_megatron.transformer_config.config_fields import inert
from ckpt_megatron.transformer_config.delta import no_delta_nets

PATTERN = "hybrid_layer_pattern"
_COUNT, _WIDTH = "num_layers", "ffn_hidden_size"
# Letters of core's hybrid_layer_allocation.py; others stand for delta nets, latent attention, experts and further predictions.
_BLOCKS = {"mamba": "M", "attention": "*", "mlp": "-"}
_EXPECTED = "M (Mamba-2), * (attention) and - (MLP), and | between pipeline stages"


def _read_blocks(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    pattern = config.get(PATTERN)
    # stages of a pipeline may be told apart by marks, which say nothing of the model
    letters = pattern.replace("|", "") if isinstance(pattern, str) else ""
    if {*letters} != {*_BLOCKS.values()}:
        raise CkptError(
            f"key {PATTERN!r} is not a pattern of layers that is supported",
            found=repr(pattern)[:80],
            expected=_EXPECTED,
        )
    if config.get(_COUNT) not in (None, len(letters)):
        raise CkptError(f"key {_COUNT!r} is not the number of blocks", found=f"{config[_COUNT]}, {letters}")
    facts["layers"] = len(letters)
    for path, letter in _BLOCKS.items():
        facts[f"{path}?"] = schema.PerLayer(one == letter for one in letters)
    facts["mlp.ffn"] = values.checked(_WIDTH, config.get(_WIDTH), values.whole)


def _letters(facts: Facts) -> str | None:
    """The pattern of a model; None where a layer is not one of these blocks."""
    present = [facts.present(path) for path in _BLOCKS]
    by_layer = [one if isinstance(one, schema.PerLayer) else (one,) * facts["layers"] for one in present]
    found = [
        "".join(letter * has for letter, has in zip(_BLOCKS.values(), each, strict=True))
        for each in zip(*by_layer, strict=True)
    ]
    return "".join(found) if all(len(block) == 1 for block in found) else None


def hybrid(usual: Config, name: str) -> Config:
    """The table of hybrid models, from that of the usual ones with the same fields."""
    fields = (PATTERN, _COUNT, _WIDTH)
    return usual.replace(
        name,
        decided(
            fields,
            ["layers", "mamba?", "attention?", "mlp?", "mlp.ffn"],
            read=_read_blocks,
            values={
                fields: [
                    (
                        configs.Said(_letters, "a letter for each layer"),
                        configs.value_of("layers"),
                        configs.value_of("mlp.ffn"),
                    )
                ]
            },
            why="each layer is one block: Mamba-2, attention or an MLP; the model has some of each",
        ),
        no_delta_nets(),
        key_is("is_hybrid_model", True, or_absent=True),
        *(inert(name) for name in ("hybrid_override_pattern", "mtp_hybrid_override_pattern", "hybrid_stack_spec")),
        inert("mtp_num_layers", 0),
        ignore("mtp_use_repeated_layer", why="of layers that predict further tokens, which this model does not have"),
        ignore("mamba_chunk_size", why="how to run it, not what it computes"),
        key("mamba_num_heads", "mamba.heads"),
        key("mamba_head_dim", "mamba.head_dim", default=64),
        key("mamba_num_groups", "mamba.groups", "mamba.norm_groups", default=8),
        key("mamba_state_dim", "mamba.state", default=128),
        # core/ssm/mamba_mixer.py has these in its code: arguments of the mixer, for which there are no fields
        fact_is("mamba.conv", 4),
        fact_is("mamba.conv_bias", True),
        fact_is("mamba.gated_norm.kind", "rms"),
        fact_is("mamba.gated_norm.eps", 1e-5),
        # one flag gives a bias to every linear layer, those of the mixers among them
        configs.fact_as("mamba.bias", "mlp.up_bias"),
        configs.all_agree("attention.norm", "mamba.norm", why=ALIKE),
        ignore(
            *ROUTER_KEYS,
            "num_moe_experts",
            "moe_layer_freq",
            "moe_ffn_hidden_size",
            "moe_shared_expert_intermediate_size",
            "moe_shared_expert_gate",
            why="of experts, which this model does not have",
        ),
    )


def refuse_unwritten_hybrid(version: str, newest: str, names: str) -> None:
    """`Refusal` for a version of Bridge, or modules, of whose hybrid models nothing is known."""
    if version != newest:
        raise Refusal(
            "models with Mamba-2 blocks are written for the newest Bridge alone",
            found=f"bridge_version = {version}, mamba",
            fix=f"-o bridge_version={newest}",
        )
    if names != "te":
        raise Refusal(
            "Mamba-2 blocks are made of TransformerEngine's modules", found="names = local, mamba", fix="-o names=te"
        )
