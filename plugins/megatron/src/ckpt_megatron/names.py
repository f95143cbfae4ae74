"""What the versions and layer specs of Megatron call one tensor.

The tables in `weights` use one set of names, those of Megatron-Core's local layer spec. TransformerEngine
fuses a norm into the linear after it, and so renames it; torch_dist renames norms and experts once more; the
models before Megatron-Core had other names for everything. All of these are read, whatever the args say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ckpt_core.sdk import schema

# fmt: off
# Before Megatron-Core (and with --use-legacy-models until 0.17). The container was called `transformer` in 2020,
# attention lost its prefix `self_` in v1.0 and v2.0, and norms were renamed in core 0.4 (November 2023).
LEGACY = [
    (r"^language_model\.embedding\.",                         "embedding."),
    (r"^language_model\.(?:encoder|transformer)\.",           "decoder."),
    (r"^language_model\.output_layer\.",                      "output_layer."),
    (r"^word_embeddings_for_head\.",                          "output_layer."),
    (r"^(decoder\.layers\.\d+\.)attention\.",                 r"\1self_attention."),
    (r"^(decoder\.layers\.\d+\.)input_norm\.",                r"\1input_layernorm."),
    (r"^(decoder\.layers\.\d+\.)post_attention_(?:layer)?norm\.", r"\1pre_mlp_layernorm."),
    (r"\.self_attention\.query_key_value\.",                  ".self_attention.linear_qkv."),
    (r"\.self_attention\.dense\.",                            ".self_attention.linear_proj."),
    (r"\.mlp\.dense_h_to_4h\.",                               ".mlp.linear_fc1."),
    (r"\.mlp\.dense_4h_to_h\.",                               ".mlp.linear_fc2."),
    (r"^decoder\.final_norm\.",                               "decoder.final_layernorm."),
]

_OF_MIXERS = {
    "attention": "self_attention.linear_qkv.layer_norm_",
    "delta": "self_attention.in_proj.layer_norm_",
    "mamba": "mixer.in_proj.layer_norm_",
}
# TransformerEngine's fused modules, and torch_dist, whose keys are TransformerEngine's even for local modules.
FUSED_NORMS = [
    *((fused,                                                 "input_layernorm.") for fused in _OF_MIXERS.values()),
    ("self_attention.linear_q_up_proj.layer_norm_",           "self_attention.q_layernorm."),
    ("self_attention.linear_kv_up_proj.layer_norm_",          "self_attention.kv_layernorm."),
    ("mlp.linear_fc1.layer_norm_",                            "pre_mlp_layernorm."),
]

# TEGroupedMLP numbers the tensors of one module instead of having a module per expert.
TE_GROUPED = re.compile(r"\.mlp\.experts\.(linear_fc[12])\.(weight|bias)(\d+)$")
DIST_EXPERTS = ".mlp.experts.experts."

# The final norm of a HybridModel (and of the models before Megatron-Core), and of any other.
_FINAL_OF_HYBRID, _FINAL_NORM = "decoder.final_norm.", "decoder.final_layernorm."

# The block in a layer of multi-token prediction: `transformer_layer` until core 0.16, and in torch_dist to this day.
PREDICTORS = "mtp."
_BLOCK, _BLOCK_SINCE_017 = ".transformer_layer.", ".mtp_model_layer."
# fmt: on

_LEGACY = [(re.compile(pattern), replacement) for pattern, replacement in LEGACY]
_LAYER = re.compile(r"^(decoder\.layers\.)(\d+)(\..*)$")
_EXPERT = re.compile(r"^(.*\.mlp\.experts\.local_experts\.)(\d+)(\..*)$")


def unwrapped(name: str) -> str:
    """A name without the prefixes that wrapped modules (DDP, Float16Module) leave."""
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def plain(name: str) -> str:
    """The name that the tables use for a tensor of any version; indices stay as they are.

    >>> plain("language_model.transformer.layers.3.attention.query_key_value.weight")
    'decoder.layers.3.self_attention.linear_qkv.weight'
    >>> plain("decoder.layers.3.mlp.linear_fc1.layer_norm_weight")
    'decoder.layers.3.pre_mlp_layernorm.weight'
    """
    name = unwrapped(name)
    if name.startswith(("language_model.", "word_embeddings_for_head.")):
        for pattern, replacement in _LEGACY:
            name = pattern.sub(replacement, name)
    if name.startswith(PREDICTORS):
        name = name.replace(_BLOCK_SINCE_017, _BLOCK, 1)
    if name.startswith(_FINAL_OF_HYBRID):
        name = name.replace(_FINAL_OF_HYBRID, _FINAL_NORM, 1)
    for fused, separate in FUSED_NORMS:
        name = name.replace(f".{fused}", f".{separate}")
    return TE_GROUPED.sub(r".mlp.experts.local_experts.\3.\1.\2", name)


def of_module(name: str) -> str:
    """What a model in memory calls a tensor of torch_dist, since core 0.17.

    >>> of_module("mtp.layers.0.transformer_layer.mlp.router.weight")
    'mtp.layers.0.mtp_model_layer.mlp.router.weight'
    """
    return name.replace(_BLOCK, _BLOCK_SINCE_017, 1) if name.startswith(PREDICTORS) else name


def is_fused(name: str) -> bool:
    """Whether only a TransformerEngine module would have this name."""
    return any(f".{fused}" in name for fused, _ in FUSED_NORMS) or TE_GROUPED.search(name) is not None


def layer_of(name: str) -> int | None:
    """The layer index in a name."""
    match = _LAYER.match(name)
    return int(match[2]) if match else None


def expert_of(name: str) -> int | None:
    """The expert index in a name."""
    match = _EXPERT.match(name)
    return int(match[2]) if match else None


def renumbered(name: str, layer: int | None, expert: int | None) -> str:
    """A name with another layer and expert index, where it has one.

    >>> renumbered("decoder.layers.0.mlp.experts.local_experts.1.linear_fc2.weight", 7, 5)
    'decoder.layers.7.mlp.experts.local_experts.5.linear_fc2.weight'
    """
    if layer is not None:
        name = _LAYER.sub(rf"\g<1>{layer}\3", name)
    if expert is not None:
        name = _EXPERT.sub(rf"\g<1>{expert}\3", name)
    return name


def te(name: str, *, latent: bool, moe: bool, grouped: bool, mixer: str = "attention", sparse: bool = False) -> str:
    """What a TransformerEngine model calls a tensor of a layer with latent attention, with experts, or with another `mixer`.

    With latent attention the input norm stays by itself, and before experts the MLP's norm does. `sparse`: some layers have an indexer, which asks for
    what the norms on latents make, so that they stay by themselves, too.
    """
    for fused, separate in FUSED_NORMS:
        if separate == "input_layernorm." and fused != _OF_MIXERS[mixer]:
            continue
        if (separate == "input_layernorm." and latent) or (separate == "pre_mlp_layernorm." and moe):
            continue
        if separate.startswith("self_attention.") and (sparse or not latent):
            continue
        name = name.replace(f".{separate}", f".{fused}")
    if grouped:
        name = re.sub(
            r"\.mlp\.experts\.local_experts\.(\d+)\.(linear_fc[12])\.(weight|bias)$", r".mlp.experts.\2.\3\1", name
        )
    return name


def of_hybrid(name: str) -> str:
    """What a HybridModel calls a tensor outside of its layers.

    >>> of_hybrid("decoder.final_layernorm.weight")
    'decoder.final_norm.weight'
    """
    return name.replace(_FINAL_NORM, _FINAL_OF_HYBRID, 1)


def dist_local(name: str, *, latent: bool) -> str:
    """The torch_dist key of a local module's tensor: `sharded_state_dict_keys_map` of gpt_layer_specs.py."""
    if latent:
        return name
    for fused, separate in FUSED_NORMS:
        if not separate.startswith("self_attention.") and fused not in (_OF_MIXERS["delta"], _OF_MIXERS["mamba"]):
            name = name.replace(f".{separate}", f".{fused}")
    return name


@schema.dataclass(frozen=True)
class LegacySpelling:
    """How one age of the models before Megatron-Core spelled its names. The defaults are those of the last one."""

    container: str = "encoder"
    attention: str = "self_attention"
    norm: str = "norm"

    @classmethod
    def of(cls, names: Iterable[str]) -> LegacySpelling:
        """The spelling in use among stored names."""
        names = list(names)
        return cls(
            "transformer" if any(name.startswith("language_model.transformer.") for name in names) else "encoder",
            "attention" if any(re.search(r"layers\.\d+\.attention\.", name) for name in names) else "self_attention",
            "layernorm" if any(".input_layernorm." in name for name in names) else "norm",
        )

    def name(self, name: str, tied: bool) -> str:
        """The legacy name of a tensor; `tied`: the last stage's head is a copy of the embedding.

        >>> LegacySpelling("transformer", "attention", "layernorm").name("decoder.layers.3.pre_mlp_layernorm.bias", False)
        'language_model.transformer.layers.3.post_attention_layernorm.bias'
        """
        if name.startswith("output_layer.") and tied:
            return name.replace("output_layer.", "word_embeddings_for_head.")
        for modern, legacy in (
            ("decoder.", f"{self.container}."),
            (".self_attention.linear_qkv.", f".{self.attention}.query_key_value."),
            (".self_attention.linear_proj.", f".{self.attention}.dense."),
            (".input_layernorm.", f".input_{self.norm}."),
            (".pre_mlp_layernorm.", f".post_attention_{self.norm}."),
            (".final_layernorm.", f".final_{self.norm}."),
            (".linear_fc1.", ".dense_h_to_4h."),
            (".linear_fc2.", ".dense_4h_to_h."),
        ):
            name = name.replace(modern, legacy)
        return f"language_model.{name}"
