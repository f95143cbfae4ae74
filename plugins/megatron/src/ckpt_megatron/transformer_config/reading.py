"""What a checkpoint that a config class describes is read with, in NeMo 2 as in Megatron-Bridge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Architecture, Facts, FormatError, architecture_of, layouts
from ckpt_megatron.found import FolderContents
from ckpt_megatron.layout import DIVISIBLE

EMBEDDING = "embedding.word_embeddings.weight"
"""The tensor whose rows are the padded vocabulary."""
RANKS = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "ep": "expert_model_parallel_size",
    "vpp": "virtual_pipeline_model_parallel_size",
}
"""The fields that say how many ranks there are, by the names that `ckpt` has for these numbers."""


def refuse_adapters(found: FolderContents, fix: str) -> None:
    """Refuse the weights of a LoRA training, which are not a whole model."""
    adapters = sorted(name for name in found.names if ".adapter." in name or ".to_wrap." in name)
    if adapters:
        raise FormatError("the weights are those of a LoRA training", file=found.folder, found=adapters[0], fix=fix)


def described(
    facts: Facts, notes: dict[str, Any], found: FolderContents, file: str
) -> tuple[Architecture, dict[str, layouts.Value]]:
    """The architecture, and the choices of the tables that the fields make. Layers of multi-token prediction that the fields count and
    the files do not have are not a part of it.
    """
    if not found.predicts:
        facts = Facts({path: value for path, value in facts.items() if not path.startswith("predictors.")})
    # Since core 0.14 a router has a bias where linear layers have one; before it had none.
    if any(name.endswith(".mlp.router.bias") for name in found.names):
        facts["mlp.moe.router.bias"] = True
    choices: dict[str, layouts.Value] = {"rotary_interleaved": bool(notes.pop("interleaved", False))}
    if facts.present("latent_attention.indexer") is not False:
        choices["index_interleaved"] = bool(notes.pop("index_interleaved", False))
    return architecture_of(facts, file), choices


def parallel(fields: Mapping[str, Any]) -> dict[str, int]:
    """The ranks that wrote the checkpoint."""
    sizes = {name: fields.get(key) for name, key in RANKS.items()}
    return {name: size for name, size in sizes.items() if type(size) is int and (size > 1 or name != "vpp")}


def layout_hints(fields: Mapping[str, Any], facts: Facts, found: FolderContents) -> dict[str, Any]:
    """The choices by which the same tensors can be written again."""
    numbered = isinstance(fields.get("moe_layer_freq"), list)
    hints: dict[str, Any] = {"names": _names(facts, found), "layers": "numbered" if numbered else "stacked"}
    if isinstance(fields.get(DIVISIBLE), int):
        hints[DIVISIBLE] = fields[DIVISIBLE]
    return hints


def _names(facts: Facts, found: FolderContents) -> str:
    """Whose modules gave the tensors their names. Only before experts and in latent attention do the keys differ."""
    stored = set(found.shares[0].names.values())
    if facts.present("mlp.moe") is not False:
        return "te" if any(".pre_mlp_layernorm." in name for name in stored) else "local"
    if facts.present("latent_attention.indexer") is not False:
        return "te"  # whose norms on latents are modules of their own, too
    if facts.present("latent_attention") is not False:
        return "local" if any(".kv_layernorm." in name for name in stored) else "te"
    return "te"
