"""Hybrid models (core/models/mamba, Bridge's HybridModelProvider): each layer is one block, by a letter of a pattern."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Config,
    Facts,
    Refusal,
    configs,
    custom,
    fact_is,
    ignore,
    key,
    key_is,
    schema,
    values,
)
from ckpt_megatron.args.mlp import EXPERTS, enter_experts, write_experts
from ckpt_megatron.args.norms import ALIKE
from ckpt_megatron.args.router import ROUTER_KEYS, router_of_dense
from ckpt_megatron.transformer_config.config_fields import inert
from ckpt_megatron.transformer_config.delta import no_delta_nets

PATTERN = "hybrid_layer_pattern"
_COUNT, _WIDTH, _EXPERTS, _LATENT = "num_layers", "ffn_hidden_size", "num_moe_experts", "moe_latent_size"
_SHARED = ("moe_shared_expert_intermediate_size", "moe_shared_expert_gate")
_FREQUENCY = "moe_layer_freq"
_WIDTHS = (PATTERN, _COUNT, _WIDTH, _EXPERTS, _LATENT, "moe_ffn_hidden_size", *_SHARED, _FREQUENCY)
# Letters of core's hybrid_layer_allocation.py; others stand for delta nets, latent attention and further predictions.
_MAMBA, _ATTENTION, _DENSE, _SPARSE = "M*-E"
_BLOCKS = {"mamba": _MAMBA, "attention": _ATTENTION, "mlp": _DENSE + _SPARSE}
_EXPECTED = "M (Mamba-2), * (attention), and - (MLP) or E (experts), and | between pipeline stages"


def _read_blocks(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    pattern = config.get(PATTERN)
    # stages of a pipeline may be told apart by marks, which say nothing of the model
    letters = pattern.replace("|", "") if isinstance(pattern, str) else ""
    if {*letters} - {*"".join(_BLOCKS.values())} or not _has_each({*letters}):
        raise CkptError(
            f"key {PATTERN!r} is not a pattern of layers that is supported",
            found=repr(pattern)[:80],
            expected=_EXPECTED,
        )
    if config.get(_COUNT) not in (None, len(letters)):
        raise CkptError(f"key {_COUNT!r} is not the number of blocks", found=f"{config[_COUNT]}, {letters}")
    facts["layers"] = len(letters)
    for path, block in _BLOCKS.items():
        facts[f"{path}?"] = schema.PerLayer(letter in block for letter in letters)
    width = values.checked(_WIDTH, config.get(_WIDTH), values.whole)
    if _SPARSE not in letters:
        facts["mlp.ffn"] = width
        return
    if _DENSE not in letters:
        notes["unused_ffn"] = width
    else:
        facts["mlp.ffn"] = width
        facts["mlp.moe?"] = schema.PerLayer(letter == _SPARSE for letter in letters)
        facts["mlp.ffn?"] = schema.PerLayer(letter == _DENSE for letter in letters)
    enter_experts(config, facts, values.checked(_EXPERTS, config.get(_EXPERTS), values.whole), width)
    if config.get(_LATENT) is not None:
        facts["mlp.moe.latent"] = values.checked(_LATENT, config[_LATENT], values.whole)


def _write_blocks(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    letters = _letters(facts)
    if letters is None:
        raise Refusal(
            "each layer is one block, Mamba-2, attention, or an MLP or experts, and there are some of each",
            found=", ".join(f"{path}? = {facts.present(path)}" for path in _BLOCKS),
        )
    latent = configs.uniform(facts, "mlp.moe.latent")
    config |= {PATTERN: letters, _COUNT: facts["layers"], _WIDTH: configs.uniform(facts, "mlp.ffn")}
    config |= {_EXPERTS: None, _LATENT: latent, "moe_ffn_hidden_size": None, **dict.fromkeys(_SHARED)}
    config |= router_of_dense()
    if facts.present("mlp.moe") is not False:
        config[_EXPERTS] = configs.uniform(facts, "mlp.moe.experts")
        write_experts(facts, notes, config)
    config[_FREQUENCY] = 1  # which nothing looks at: the pattern says which layers have experts


def _letters(facts: Facts) -> str | None:
    """The pattern of a model; None where a layer is not one of these blocks, or a kind of block is missing."""
    present = {path: facts.present(path) for path in ("mamba", "attention", "mlp", "mlp.moe")}

    def block(index: int) -> str:
        has = {path: one[index] if isinstance(one, schema.PerLayer) else one for path, one in present.items()}
        fed = _SPARSE if has["mlp.moe"] else _DENSE
        return _MAMBA * has["mamba"] + _ATTENTION * has["attention"] + fed * has["mlp"]

    found = [block(index) for index in range(facts["layers"])]
    return "".join(found) if all(len(one) == 1 for one in found) and _has_each({*found}) else None


def _has_each(letters: Set[str]) -> bool:
    return all(letters & {*block} for block in _BLOCKS.values())


def hybrid(usual: Config, name: str) -> Config:
    """The table of hybrid models, from that of the usual ones with the same fields."""
    return usual.replace(
        name,
        custom(
            [*_WIDTHS, *ROUTER_KEYS],
            [
                "layers",
                "mamba?",
                "attention?",
                "mlp?",
                "mlp.ffn",
                "mlp.ffn?",
                *EXPERTS,
                "mlp.moe.latent",
            ],
            read=_read_blocks,
            write=_write_blocks,
            uses=["mlp.up_bias"],
            why="each layer is one block: Mamba-2, attention, an MLP or experts; the pattern says which, and so what the widths mean",
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
