"""Models of Bridge that see: a GPTModel in `language_model`, and before it a tower and a projector.

Their sources are `qwen3_vl_provider.py`, `qwen25_vl_provider.py`, `ministral3_provider.py`, `glm_45v_provider.py` and `gemma3_vl_provider.py` of Megatron-Bridge 0.6. The tower of Qwen3-VL is
made of Megatron's layers; those of Qwen2.5-VL, Gemma 3, Mistral 3 and GLM-4.5V are the modules of transformers, whose config the provider holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    Activation,
    CkptError,
    Config,
    Facts,
    Refusal,
    Table,
    chunked,
    configs,
    decided,
    derived,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    ledgers,
    nested,
    note,
    row,
    rules,
    schema,
    values,
)
from ckpt_megatron import weights
from ckpt_megatron.bridge.classes import EXAONE4, GEMMA3, MODELS, made_by
from ckpt_megatron.transformer_config.config_fields import listed
from ckpt_megatron.transformer_config.positions import positions

PART = "language_model."
"""What the names of the language model's tensors begin with."""
Reader = Callable[[str], chunked.DistributedCheckpoint]
_TRANSFORMERS = "transformers.models"

# What every config class of transformers has besides, in version 4 and 5, and what changes no output of a tower.
_GENERIC = ignore(
    "architectures", "chunk_size_feed_forward", "dtype", "torch_dtype", "id2label", "label2id", "initializer_range", "is_encoder_decoder", "output_hidden_states",
    "output_attentions", "problem_type", "return_dict", "transformers_version", "_name_or_path", "_attn_implementation", "_attn_implementation_autoset",
    "attn_implementation", "add_cross_attention", "is_decoder", "tie_word_embeddings", "tie_encoder_decoder", "torchscript", "use_bfloat16", "pruned_heads",
    "finetuning_task", "task_specific_params", "tf_legacy_loss", "tokenizer_class", "prefix", "cross_attention_hidden_size", "bos_token_id", "eos_token_id",
    "pad_token_id", "sep_token_id", "decoder_start_token_id", "attention_dropout", "_commit_hash", "_output_attentions", "vision_use_head",
    "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "encoder_no_repeat_ngram_size", "remove_invalid_values", "min_length", "max_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "num_return_sequences",
    "return_dict_in_generate", "output_scores", why="of every config of transformers, and not of a tower",
)  # fmt: skip
_NORMS = ("vision.attention.norm", "vision.mlp.norm", "vision.projector.norm")
_BIASES = [
    f"vision.{name}_bias" for name in (*(f"attention.{part}" for part in ("q", "k", "v", "out")), "mlp.up", "mlp.down")
]
_WINDOWS = ("window_size", "fullatt_block_indexes")
_CHUNK = 8  # patches of 14 in 112 pixels, in twos
_ACTIVATIONS = configs.one_of(
    {"silu": Activation.SILU, "gelu_pytorch_tanh": Activation.GELU_TANH, "gelu": Activation.GELU_ERF}
)


def _read_theta(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    rotary = config.get("rope_parameters") or {}
    if rotary.get("rope_type", "axial") != "axial" or rotary.keys() - {"rope_type", "rope_theta"}:
        raise ValueError("its tower turns by row and column alone")
    facts["vision.attention.rotary.theta"] = float(rotary.get("rope_theta", 10000.0))


def _axial(theta: float) -> dict[str, Any]:
    return {"rope_type": "axial", "rope_theta": theta}


def _read_width(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if config.get("out_hidden_size", facts["hidden"]) != facts["hidden"]:
        raise CkptError(
            "the tower makes embeddings of another width than the language model has",
            found=f"out_hidden_size = {config['out_hidden_size']!r}, hidden_size = {facts['hidden']}",
        )


def _read_windows(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    chosen = (~rules.indices()).read(config.get("fullatt_block_indexes", [7, 15, 23, 31]), facts["vision.layers"])
    if chosen is None:
        raise ValueError("no such layers")
    if any(chosen):
        patch, merge = facts["vision.patch"], facts["vision.projector.merge"]
        facts["vision.attention.chunk"] = config.get("window_size", 112) // merge // patch * merge
        if not all(chosen):
            facts["vision.attention.chunk?"] = schema.PerLayer(chosen)


def _read_built_in_windows(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    _read_windows(config, facts, notes)
    patch, merge = facts["vision.patch"], facts["vision.projector.merge"]
    if facts.get("vision.attention.chunk", _CHUNK) != _CHUNK or merge != 2:
        raise ValueError(
            f"Exaone45VisionModel cuts squares of {_CHUNK} patches, which are merged by 2, whatever the config says, and not with patch_size = {patch}, spatial_merge_size = {merge}"
        )


def _pixels(chunk: int, patch: int) -> int:
    return chunk * patch


def _read_merge(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    merge = config.get("spatial_merge_size", 2)
    if merge != facts["vision.projector.merge"]:
        raise CkptError(
            "positions are counted for another merger than the tower has",
            found=f"spatial_merge_size = {merge!r}, and {facts['vision.projector.merge']} in vision_config",
        )


_MERGE = ("vision.image", "vision.patch", "vision.projector.merge")


def _tokens(image: int, patch: int, merge: int) -> int:
    return (image // patch // merge) ** 2


def _read_pooled(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    tokens = values.checked("mm_tokens_per_image", config.get("mm_tokens_per_image", 256), values.whole)
    patches, side = facts["vision.image"] // facts["vision.patch"], math.isqrt(tokens)
    if side * side != tokens or patches % side:
        raise CkptError(
            "key 'mm_tokens_per_image' is not a square into which the patches of an image can be merged",
            found=f"{tokens} tokens of {patches} x {patches} patches",
        )
    facts["vision.projector.merge"] = patches // side


# fmt: off
def _tower(target: str, kind: str, hidden: int, *lines: Any, taps: bool = False, sharing: Any = ()) -> configs.Entry:
    """The section of a tower of Qwen, in the keys of transformers, whose config the class `target` reads. `sharing` says how heads share keys, if
    they do."""
    both = ("projector", "tapped") if taps else ("projector",)
    return nested("vision_config", Config("", _GENERIC).replace("",
        key_is("_target_", f"{_TRANSFORMERS}.{target}", or_absent=True),
        key_is("model_type", kind, kind.removesuffix("_vision"), or_absent=True),
        decided(["out_hidden_size"], [], read=_read_width, values={"out_hidden_size": [configs.value_of("hidden")]}, uses=["hidden"],
                why="the width of the language model"),
        key("depth", "vision.layers", type=values.layers),
        key("hidden_size", "vision.hidden", default=hidden, type=values.whole),
        key("num_heads", "vision.attention.heads", *([] if sharing else ["vision.attention.groups"]), default=16, type=values.whole),
        *sharing,
        derived(None, "vision.attention.head_dim", "hidden_size / num_heads"),
        key("intermediate_size", "vision.mlp.ffn", type=values.whole),
        key("in_channels", "vision.channels", also=["in_chans"], default=3, type=values.whole),
        key("patch_size", "vision.patch", type=values.whole),
        key("temporal_patch_size", "vision.frames", default=2, type=values.whole),
        key("spatial_merge_size", *(f"vision.{one}.merge" for one in both), default=2, type=values.whole),
        derived(None, [f"vision.{one}.ffn" for one in both], "hidden_size * spatial_merge_size ** 2"),
        decided(["rope_parameters"], ["vision.attention.rotary.theta"], read=_read_theta,
                values={"rope_parameters": [configs.LEFT_OUT, configs.value_of("vision.attention.rotary.theta", by=_axial)]}, why="always axial"),
        [fact_is(f"vision.{name}", value) for name, value in {
            "causal": False, "attention.rotary.axial": True,
            **{f"{one}.{name}": value for one in both for name, value in (("activation", Activation.GELU_ERF), ("bias", True))},
        }.items()],
        [fact_is(bias, True) for bias in _BIASES],
    ).replace("", *lines).entries)

def _norms(kind: str, *paths: str, **facts: object) -> list[configs.Entry]:
    return [fact_is(f"{path}.{name}", value) for path in paths for name, value in {"kind": kind, **facts}.items()]

def _deep(package: str, name: str, kind: str, *, taps: bool = True) -> configs.Entry:
    """The tower that is made of Megatron's layers: with the tanh form of GELU, and an epsilon of 1e-6, whatever the config says."""
    tapped = [
        key("deepstack_visual_indexes", "vision.taps", default=[8, 16, 24], via=values.whole_numbers),
        fact_is("vision.tapped.norm_merged", True),
        *_norms("layer", "vision.tapped.norm", eps=1e-6, bias=True),
    ] if taps else [key_is("deepstack_visual_indexes", [], None, or_absent=True, written=False)]
    return _tower(f"{package}.{name}", kind, 1152,
        key_is("hidden_act", "gelu_pytorch_tanh", or_absent=True),
        key_is("rope_parameters", None, _axial(10000.0), or_absent=True, written=False),
        fact_is("vision.attention.rotary.theta", 10000.0),
        fact_is("vision.mlp.activation", Activation.GELU_TANH),
        fact_is("vision.mlp.gated", False),
        fact_is("vision.bias", True),
        _norms("layer", *_NORMS, eps=1e-6, bias=True),
        key("num_position_embeddings", "vision.positions.count", default=2304, type=values.whole),
        *tapped,
        taps=taps,
    )

def _squares(read: Any) -> list[Any]:
    """The layers of a tower that see through squares, as transformers' own says them; `read` is who makes them."""
    chosen = configs.layers_of("vision.attention.chunk", ~rules.indices(), layers="vision.layers")
    return [
        key("hidden_act", "vision.mlp.activation", default="silu", via=_ACTIVATIONS),
        fact_is("vision.mlp.gated", True),
        _norms("rms", *_NORMS, eps=1e-6),
        decided(_WINDOWS, ["vision.attention.chunk", "vision.attention.chunk?"], read=read,
                values={_WINDOWS: [(configs.value_of("vision.attention.chunk", "vision.patch", by=_pixels), chosen), (112, chosen)]},
                uses=["vision.layers", "vision.patch", "vision.projector.merge"],
                why="the side of the squares in pixels, and the layers that see all patches"),
    ]

def _ids(image: int, start: int) -> list[Any]:
    """The ids of tokens that stand for images and videos, and those around them, which follow from `start` on."""
    return [
        key("image_token_id", "vision.token", default=image, type=values.count),
        key("video_token_id", "vision.video_token", default=image + 1, type=values.count),
        note("vision_start_token_id", "vision_start", default=start),
        note("vision_end_token_id", "vision_end", default=start + 1),
    ]

_TOKENS = _ids(151655, 151652)
_RUN: list[Any] = [
    ignore("bos_token_id", "eos_token_id", "hf_text_config", "return_dict", "freeze_language_model", "freeze_vision_model", "freeze_vision_projection",
           "dist_train", "vision_dp_when_cp", "vision_cuda_graph_impl", "vision_cuda_graph_scope", "max_vision_cuda_graph_seq_length",
           "language_max_sequence_length", "apply_rotary_pos_emb_in_fp32", "pretrained_model_name", why="how to run or to train it, or said by other fields"),
    key_is("add_encoder", True, or_absent=True, written=False),
    key_is("add_decoder", True, or_absent=True, written=False),
    key_is("use_hf_vision_model", False, or_absent=True, written=False),
]
_AGAIN = ignore("patch_size", "temporal_patch_size", "in_channels", "num_position_embeddings", "out_hidden_size", "deepstack_visual_indexes",
                why="the tower is made by vision_config")
_SAID_ELSEWHERE = ignore("head_dim", "mlp_only_layers", "decoder_sparse_step", "audio_token_id", why="said by other fields, or of no image")
_MERGED = decided(["spatial_merge_size"], [], read=_read_merge, values={"spatial_merge_size": [configs.value_of("vision.projector.merge")]},
                  uses=["vision.projector.merge"], why="the merger for which positions are counted, which is that of the tower")


def _qwen3(gpt: Config, name: str, tower: configs.Entry, *lines: Any) -> Config:
    said = gpt.replace(f"Megatron-Bridge's {name}", positions("attention", sections=True), tower, *_TOKENS, *_RUN, _AGAIN, _MERGED)
    return said.replace(said.name, *lines)

_QWEN3_VL = "qwen_vl.qwen3_vl_provider.Qwen3VLModelProvider"
_QWEN3_VL_MOE = "qwen_vl.qwen3_vl_provider.Qwen3VLMoEModelProvider"
_QWEN3_5_VL = "qwen_vl.qwen35_vl_provider.Qwen35VLModelProvider"
_QWEN3_5_VL_MOE = "qwen_vl.qwen35_vl_provider.Qwen35VLMoEModelProvider"
_QWEN2_5_VL = "qwen_vl.qwen25_vl_provider.Qwen25VLModelProvider"

_EXAONE4_5 = "exaone.exaone45.exaone45_provider.Exaone45ModelProvider"
_EXAONE4_TEXT = "exaone4.configuration_exaone4.Exaone4Config"
_EXAONE4_5_SPEC = f"{MODELS}.exaone.exaone45.exaone45_provider.exaone_45_transformer_layer_spec"

_GEMMA3_VL = "gemma_vl.gemma3_vl_provider.Gemma3VLModelProvider"
_GEMMA_PROJECTOR = f"{MODELS}.gemma_vl.modeling_gemma3_vl.Gemma3VLMultimodalProjectorConfig"
_SIGLIP_NORMS = ("vision.attention.norm", "vision.mlp.norm", "vision.final_norm")

_SIGLIP = nested("vision_config", Config("", _GENERIC).replace("",
    key_is("_target_", f"{_TRANSFORMERS}.siglip.configuration_siglip.SiglipVisionConfig", or_absent=True),
    key_is("model_type", "siglip_vision_model", or_absent=True),
    key("hidden_size", "vision.hidden", default=768, type=values.whole),
    key("intermediate_size", "vision.mlp.ffn", default=3072, type=values.whole),
    key("num_hidden_layers", "vision.layers", default=12, type=values.layers),
    key("num_attention_heads", "vision.attention.heads", "vision.attention.groups", default=12, type=values.whole),
    derived(None, "vision.attention.head_dim", "hidden_size / num_attention_heads"),
    key("num_channels", "vision.channels", default=3, type=values.whole),
    key("image_size", "vision.image", default=224, type=values.whole),
    key("patch_size", "vision.patch", default=16, type=values.whole),
    derived(None, "vision.positions.count", "(image_size / patch_size) ** 2"),
    key("hidden_act", "vision.mlp.activation", default="gelu_pytorch_tanh", via=_ACTIVATIONS),
    key("layer_norm_eps", *(f"{norm}.eps" for norm in _SIGLIP_NORMS), default=1e-6, type=values.positive),
    _norms("layer", *_SIGLIP_NORMS, bias=True),
    [fact_is(bias, True) for bias in _BIASES],
    [fact_is(f"vision.{name}", value) for name, value in {"causal": False, "bias": True, "mlp.gated": False}.items()],
).entries)

# Bridge imports every model with the sizes of Gemma 3 itself here: images are cut as vision_config says.
_SOFT = nested("vision_projector_config", Config("", ignore(*(field.name for field in listed()[0]), why="of a transformer, and this is a matrix")).replace("",
    key_is("_target_", _GEMMA_PROJECTOR, or_absent=True),
    ignore("image_size", why="said by vision_config", written=lambda facts: facts["vision.image"], uses=["vision.image"]),
    ignore("patch_dim", why="said by vision_config", written=lambda facts: facts["vision.patch"], uses=["vision.patch"]),
    ignore("tokens_per_image", why="said by mm_tokens_per_image", uses=_MERGE, written=lambda facts: _tokens(*(facts[path] for path in _MERGE))),
    ignore("input_size", why="said by vision_config", written=lambda facts: facts["vision.hidden"], uses=["vision.hidden"]),
    ignore("hidden_size", why="that of the language model", written=lambda facts: facts["hidden"], uses=["hidden"]),
    key("layernorm_epsilon", "vision.projector.norm.eps", default=1e-6, type=values.positive),
    _norms("rms", "vision.projector.norm", zero_centred=True),
).entries)

GEMMA3_VL = GEMMA3.replace("Megatron-Bridge's Gemma3VLModelProvider",
    _SIGLIP,
    _SOFT,
    key_is("is_vision_language", True, or_absent=True),
    fact_is("vision.both_ways", True),
    decided(["mm_tokens_per_image"], ["vision.projector.merge"], read=_read_pooled, uses=["vision.image", "vision.patch"],
            values={"mm_tokens_per_image": [configs.value_of(*_MERGE, by=_tokens)]}, why="the square of as many tokens as a row of patches becomes"),
    fact_is("vision.projector.norm_merged", True),
    fact_is("vision.projector.mean", True),
    key("image_token_id", "vision.token", default=262144, type=values.count),
    note("vision_start_token_id", "image_start", default=255999),
    note("vision_end_token_id", "image_end", default=256000),
    *_RUN,
)

_OF_GEMMA3 = [
    Table("", to="vision", rows=[
        row("vision_tower.embeddings.patch_embedding.weight",    "h ch y z", "patches.weight"),
        row("vision_tower.embeddings.patch_embedding.bias",      "h",        "patches.bias"),
        row("vision_tower.embeddings.position_embedding.weight", "p h",      "positions.weight"),
        row("vision_tower.post_layernorm.weight",                "h",        "final_norm.weight"),
        row("vision_tower.post_layernorm.bias",                  "h",        "final_norm.bias"),
        row("multi_modal_projector.mm_soft_embed_norm.weight",   "h",        "projector.norm.weight"),
        row("multi_modal_projector.proj.weight",                 "w h",      "projector.down.weight"),
    ]),
    Table("vision_tower.encoder.layers.{l}", to="vision.layers.{l}", rows=[
        row("layer_norm1.weight",        "h",         "attention.norm.weight"),
        row("layer_norm1.bias",          "h",         "attention.norm.bias"),
        row("self_attn.q_proj.weight",   "(g r d) h", "attention.q.weight"),
        row("self_attn.q_proj.bias",     "(g r d)",   "attention.q.bias"),
        row("self_attn.k_proj.weight",   "(g d) h",   "attention.k.weight"),
        row("self_attn.k_proj.bias",     "(g d)",     "attention.k.bias"),
        row("self_attn.v_proj.weight",   "(g d) h",   "attention.v.weight"),
        row("self_attn.v_proj.bias",     "(g d)",     "attention.v.bias"),
        row("self_attn.out_proj.weight", "h (g r d)", "attention.out.weight"),
        row("self_attn.out_proj.bias",   "h",         "attention.out.bias"),
        row("layer_norm2.weight",        "h",         "mlp.norm.weight"),
        row("layer_norm2.bias",          "h",         "mlp.norm.bias"),
        row("mlp.fc1.weight",            "f h",       "mlp.up.weight"),
        row("mlp.fc1.bias",              "f",         "mlp.up.bias"),
        row("mlp.fc2.weight",            "h f",       "mlp.down.weight"),
        row("mlp.fc2.bias",              "h",         "mlp.down.bias"),
    ]),
]

_MINISTRAL3 = "ministral3.ministral3_provider.Ministral3ModelProvider"
_MINISTRAL3_SPEC = f"{MODELS}.ministral3.ministral3_provider.ministral_layer_spec"
_TEMPERATURE = ("attention.temperature.interval", "attention.temperature.scale")


def _read_width_of_projector(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if config.get("hidden_size") != facts["hidden"]:
        raise CkptError(
            "the projector makes embeddings of another width than the language model has",
            found=f"text_config.hidden_size = {config.get('hidden_size')!r}, hidden_size = {facts['hidden']}",
        )
    facts["vision.projector.ffn"] = facts["hidden"]


def _read_temperature(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    said = config.get("rope_parameters")
    said = said if isinstance(said, dict) else {}
    interval = values.checked("original_max_position_embeddings", said.get("original_max_position_embeddings"), values.whole)
    if values.checked("llama_4_scaling_beta", said.get("llama_4_scaling_beta"), values.number):
        facts.update(dict(zip(_TEMPERATURE, (interval, said["llama_4_scaling_beta"]), strict=True)))


def _growing(interval: int, scale: float, theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, "llama_4_scaling_beta": scale, "original_max_position_embeddings": interval}


def _level(theta: float) -> dict[str, Any]:
    return _growing(1, 0.0, theta)


def _read_pixtral_theta(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    rotary = config.get("rope_parameters") or {}
    if rotary.get("rope_type", "default") not in ("default", "axial") or rotary.keys() - {"rope_type", "rope_theta"}:
        raise ValueError("its tower turns by row and column alone")
    facts["vision.attention.rotary.theta"] = values.checked("rope_theta", rotary.get("rope_theta", 10000.0), values.positive)


def _default(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


_PIXTRAL = nested("vision_config", Config("", _GENERIC).replace("",
    key_is("model_type", "pixtral", or_absent=True),
    key("hidden_size", "vision.hidden", "vision.projector.folded", default=1024, type=values.whole),
    key("intermediate_size", "vision.mlp.ffn", default=4096, type=values.whole),
    key("num_hidden_layers", "vision.layers", default=24, type=values.layers),
    key("num_attention_heads", "vision.attention.heads", "vision.attention.groups", default=16, type=values.whole),
    derived(None, "vision.attention.head_dim", "hidden_size / num_attention_heads"),
    ignore("head_dim", why="the class computes it from the width and the heads"),
    key("num_channels", "vision.channels", default=3, type=values.whole),
    key("patch_size", "vision.patch", default=16, type=values.whole),
    note("image_size", "largest_image", default=1024),
    key("hidden_act", "vision.mlp.activation", default="gelu", via=_ACTIVATIONS),
    # Bridge 0.6 builds on versions 5 of transformers that know no `axial`, which is what it computes
    decided(["rope_parameters"], ["vision.attention.rotary.theta"], read=_read_pixtral_theta,
            values={"rope_parameters": [configs.value_of("vision.attention.rotary.theta", by=_default)]}, why="always axial"),
    _norms("rms", "vision.attention.norm", "vision.mlp.norm", "vision.input_norm", eps=1e-5),
    [fact_is(f"vision.{name}", value) for name, value in {
        "causal": False, "mlp.gated": True, "attention.rotary.axial": True, "attention.rotary.interleaved": True,
    }.items()],
).entries)

def _again(name: str, path: str) -> Any:
    return ignore(name, why="said by other fields", written=lambda facts: facts[path], uses=[path])

# Of the language model Bridge reads here what the projector and the temperature need; the fields of the provider make the rest.
_TEXT = nested("text_config", Config("", _GENERIC).replace("",
    key_is("model_type", "ministral3", "mistral"),
    decided(["hidden_size"], ["vision.projector.ffn"], read=_read_width_of_projector, values={"hidden_size": [configs.value_of("hidden")]},
            uses=["hidden"], why="the projector has the width of the language model"),
    key("rms_norm_eps", "vision.projector.norm.eps", type=values.positive),
    decided(["rope_parameters"], _TEMPERATURE, read=_read_temperature, uses=["attention.rotary.theta"],
            values={"rope_parameters": [configs.value_of(*_TEMPERATURE, "attention.rotary.theta", by=_growing),
                                        configs.value_of("attention.rotary.theta", by=_level)]},
            why="queries grow by llama_4_scaling_beta in steps of original_max_position_embeddings (MinistralTEDotProductAttention); the angles are the provider's"),
    *(_again(name, path) for name, path in (
        ("intermediate_size", "mlp.ffn"), ("num_hidden_layers", "layers"), ("num_attention_heads", "attention.heads"),
        ("num_key_value_heads", "attention.groups"), ("head_dim", "attention.head_dim"), ("vocab_size", "tokens.vocabulary"),
    )),
    ignore("hidden_act", "max_position_embeddings", "sliding_window", "use_cache", why="said by other fields"),
).entries)

_MISTRAL3 = nested("hf_config", Config("", _GENERIC).replace("",
    key_is("_target_", f"{_TRANSFORMERS}.mistral3.configuration_mistral3.Mistral3Config", or_absent=True),
    key_is("model_type", "mistral3", or_absent=True),
    ignore("image_token_index", why="said by image_token_id", written=lambda facts: facts["vision.token"], uses=["vision.token"]),
    _TEXT,
    _PIXTRAL,
    key("spatial_merge_size", "vision.projector.merge", default=2, type=values.whole),
    key("projector_hidden_act", "vision.projector.activation", default="gelu", via=_ACTIVATIONS),
    key("multimodal_projector_bias", "vision.projector.bias", default=False, type=values.flag),
    key_is("vision_feature_layer", -1, or_absent=True, why="the projector reads what comes out of the last layer"),
    _norms("rms", "vision.projector.norm"),
).entries)

_OF_MISTRAL3 = [
    Table("", to="vision", rows=[
        row("vision_tower.patch_conv.weight",   "h ch y z", "patches.weight"),
        row("vision_tower.ln_pre.weight",       "h",        "input_norm.weight"),
        row("multi_modal_projector.norm.weight", "h",       "projector.norm.weight"),
        # as torch unfolds an image: the channel first, then rows and columns
        row("multi_modal_projector.patch_merger.merging_layer.weight", "i (h my mz)", "projector.fold.weight"),
        row("multi_modal_projector.linear_1.weight", "f i", "projector.up.weight"),
        row("multi_modal_projector.linear_1.bias",   "f",   "projector.up.bias"),
        row("multi_modal_projector.linear_2.weight", "w f", "projector.down.weight"),
        row("multi_modal_projector.linear_2.bias",   "w",   "projector.down.bias"),
    ]),
    Table("vision_tower.transformer.layers.{l}", to="vision.layers.{l}", rows=[
        row("attention_norm.weight",         "h",         "attention.norm.weight"),
        row("attention.q_proj.weight",       "(g r d) h", "attention.q.weight"),
        row("attention.k_proj.weight",       "(g d) h",   "attention.k.weight"),
        row("attention.v_proj.weight",       "(g d) h",   "attention.v.weight"),
        row("attention.o_proj.weight",       "h (g r d)", "attention.out.weight"),
        row("ffn_norm.weight",               "h",         "mlp.norm.weight"),
        row("feed_forward.gate_proj.weight", "f h",       "mlp.gate.weight"),
        row("feed_forward.up_proj.weight",   "f h",       "mlp.up.weight"),
        row("feed_forward.down_proj.weight", "h f",       "mlp.down.weight"),
    ]),
]

_GLM4_5V = "glm_vl.glm_45v_provider.GLM45VModelProvider"


def _read_folded(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    _read_width(config, facts, notes)
    facts["vision.projector.folded"] = facts["vision.mlp.ffn"] = facts["hidden"]


def _read_square(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    image = values.checked("image_size", config.get("image_size", 336), values.whole)
    facts["vision.positions.count"] = (image // facts["vision.patch"]) ** 2


def _side(count: int, patch: int) -> int:
    return math.isqrt(count) * patch


_GLM_TOWER = nested("vision_config", Config("", _GENERIC).replace("",
    key_is("_target_", f"{_TRANSFORMERS}.glm4v_moe.configuration_glm4v_moe.Glm4vMoeVisionConfig", or_absent=True),
    key_is("model_type", "glm4v_moe_vision", or_absent=True),
    decided(["out_hidden_size"], ["vision.projector.folded", "vision.mlp.ffn"], read=_read_folded, uses=["hidden"],
            values={"out_hidden_size": [configs.value_of("hidden")]}, why="the width of the language model"),
    key("intermediate_size", "vision.projector.ffn", default=13696, type=values.whole),
    key("depth", "vision.layers", default=24, type=values.layers),
    key("hidden_size", "vision.hidden", default=1536, type=values.whole),
    key("num_heads", "vision.attention.heads", "vision.attention.groups", default=12, type=values.whole),
    derived(None, "vision.attention.head_dim", "hidden_size / num_heads"),
    key("hidden_act", "vision.mlp.activation", "vision.projector.activation", default="silu", via=_ACTIVATIONS),
    key("attention_bias", *(f"vision.attention.{part}_bias" for part in ("q", "k", "v")), default=False, type=values.flag),
    key("in_channels", "vision.channels", default=3, type=values.whole),
    key("patch_size", "vision.patch", default=14, type=values.whole),
    decided(["image_size"], ["vision.positions.count"], read=_read_square, uses=["vision.patch"],
            values={"image_size": [configs.value_of("vision.positions.count", "vision.patch", by=_side)]},
            why="the side of an image that has as many patches as the table of positions"),
    key("temporal_patch_size", "vision.frames", default=2, type=values.whole),
    key("spatial_merge_size", "vision.projector.merge", default=2, type=values.whole),
    key("rms_norm_eps", *(f"vision.{norm}.eps" for norm in ("norm", "attention.norm", "mlp.norm", "final_norm")), default=1e-5, type=values.positive),
    # Bridge 0.6 builds on versions 5 of transformers in which no key says the base (modeling_glm4v.py)
    key_is("rope_parameters", None, _axial(10000.0), _default(10000.0), or_absent=True, written=False),
    fact_is("vision.attention.rotary.theta", 10000.0),
    _norms("rms", "vision.norm", "vision.attention.norm", "vision.mlp.norm", "vision.final_norm"),
    _norms("layer", "vision.projector.refined", eps=1e-5, bias=True),
    [fact_is(f"vision.{name}", value) for name, value in {
        "causal": False, "bias": True, "cubic": True, "mlp.gated": True, "attention.rotary.axial": True,
        "projector.fold_bias": True, "projector.gated": True,
    }.items()],
).entries)

_OF_GLM4_5V = [
    Table("visual", to="vision", rows=[
        row("patch_embed.proj.weight",              "h ch fr y z", "patches.weight"),
        row("patch_embed.proj.bias",                "h",           "patches.bias"),
        row("post_conv_layernorm.weight",           "h",           "norm.weight"),
        row("embeddings.position_embedding.weight", "p h",         "positions.weight"),
        row("post_layernorm.weight",                "h",           "final_norm.weight"),
        row("downsample.weight",                    "i h my mz",   "projector.fold.weight"),
        row("downsample.bias",                      "i",           "projector.fold.bias"),
        row("merger.proj.weight",                   "j i",         "projector.refine.weight"),
        row("merger.post_projection_norm.weight",   "j",           "projector.refined.weight"),
        row("merger.post_projection_norm.bias",     "j",           "projector.refined.bias"),
        row("merger.gate_proj.weight",              "f j",         "projector.gate.weight"),
        row("merger.up_proj.weight",                "f j",         "projector.up.weight"),
        row("merger.down_proj.weight",              "w f",         "projector.down.weight"),
    ]),
    Table("visual.blocks.{l}", to="vision.layers.{l}", rows=[
        row("norm1.weight",         "h",                              "attention.norm.weight"),
        row("attn.qkv.weight",      "(q[g r d] + k[g d] + v[g d]) h", "attention.{part}.weight"),
        row("attn.qkv.bias",        "(q[g r d] + k[g d] + v[g d])",   "attention.{part}.bias"),
        row("attn.proj.weight",     "h (g r d)",                      "attention.out.weight"),
        row("norm2.weight",         "h",                              "mlp.norm.weight"),
        row("mlp.gate_proj.weight", "f h",                            "mlp.gate.weight"),
        row("mlp.up_proj.weight",   "f h",                            "mlp.up.weight"),
        row("mlp.down_proj.weight", "h f",                            "mlp.down.weight"),
    ]),
]

# Megatron's own tower.
_MEGATRON_TOWER = [
    Table("vision_model", to="vision", rows=[
        row("patch_embed.proj.weight",      "h ch fr y z", "patches.weight"),
        row("patch_embed.proj.bias",        "h",           "patches.bias"),
        row("pos_embed.weight",             "p h",         "positions.weight"),
        row("merger.patch_norm.weight",     "h",           "projector.norm.weight"),
        row("merger.patch_norm.bias",       "h",           "projector.norm.bias"),
        row("merger.linear_fc1.weight",     "f (my mz h)", "projector.up.weight"),
        row("merger.linear_fc1.bias",       "f",           "projector.up.bias"),
        row("merger.linear_fc2.weight",     "w f",         "projector.down.weight"),
        row("merger.linear_fc2.bias",       "w",           "projector.down.bias"),
        row("decoder.deepstack_merger_list.patch_norm.weight", "tap (my mz h)",   "taps.norm.weight"),
        row("decoder.deepstack_merger_list.patch_norm.bias",   "tap (my mz h)",   "taps.norm.bias"),
        row("decoder.deepstack_merger_list.linear_fc1.weight", "tap f (my mz h)", "taps.up.weight"),
        row("decoder.deepstack_merger_list.linear_fc1.bias",   "tap f",           "taps.up.bias"),
        row("decoder.deepstack_merger_list.linear_fc2.weight", "tap w f",         "taps.down.weight"),
        row("decoder.deepstack_merger_list.linear_fc2.bias",   "tap w",           "taps.down.bias"),
    ]),
    Table("vision_model.decoder.layers.{l}", to="vision.layers.{l}", rows=[
        row("input_layernorm.weight",            "h",                   "attention.norm.weight"),
        row("input_layernorm.bias",              "h",                   "attention.norm.bias"),
        row("self_attention.linear_qkv.weight",  "(g (q[r] + k + v) d) h", "attention.{part}.weight"),
        row("self_attention.linear_qkv.bias",    "(g (q[r] + k + v) d)",   "attention.{part}.bias"),
        row("self_attention.linear_proj.weight", "h (g r d)",           "attention.out.weight"),
        row("self_attention.linear_proj.bias",   "h",                   "attention.out.bias"),
        row("pre_mlp_layernorm.weight",          "h",                   "mlp.norm.weight"),
        row("pre_mlp_layernorm.bias",            "h",                   "mlp.norm.bias"),
        row("mlp.linear_fc1.weight",             "((gate + up) f) h",   "mlp.{part}.weight", when="mlp.gated"),
        row("mlp.linear_fc1.bias",               "((gate + up) f)",     "mlp.{part}.bias",   when="mlp.gated"),
        row("mlp.linear_fc1.weight",             "f h",                 "mlp.up.weight",     when="!mlp.gated"),
        row("mlp.linear_fc1.bias",               "f",                   "mlp.up.bias",       when="!mlp.gated"),
        row("mlp.linear_fc2.weight",             "h f",                 "mlp.down.weight"),
        row("mlp.linear_fc2.bias",               "h",                   "mlp.down.bias"),
    ]),
]

# Modules of transformers, under the names that they have there.
_OF_QWEN2_5 = [
    Table("visual", to="vision", rows=[
        row("patch_embed.proj.weight", "h ch fr y z", "patches.weight"),
        row("merger.ln_q.weight",      "h",           "projector.norm.weight"),
        row("merger.mlp.0.weight",     "f (my mz h)", "projector.up.weight"),
        row("merger.mlp.0.bias",       "f",           "projector.up.bias"),
        row("merger.mlp.2.weight",     "w f",         "projector.down.weight"),
        row("merger.mlp.2.bias",       "w",           "projector.down.bias"),
    ]),
    Table("visual.blocks.{l}", to="vision.layers.{l}", rows=[
        row("norm1.weight",         "h",                              "attention.norm.weight"),
        row("attn.qkv.weight",      "(q[g r d] + k[g d] + v[g d]) h", "attention.{part}.weight"),
        row("attn.qkv.bias",        "(q[g r d] + k[g d] + v[g d])",   "attention.{part}.bias"),
        row("attn.proj.weight",     "h (g r d)",                      "attention.out.weight"),
        row("attn.proj.bias",       "h",                              "attention.out.bias"),
        row("norm2.weight",         "h",                              "mlp.norm.weight"),
        row("mlp.gate_proj.weight", "f h",                            "mlp.gate.weight"),
        row("mlp.gate_proj.bias",   "f",                              "mlp.gate.bias"),
        row("mlp.up_proj.weight",   "f h",                            "mlp.up.weight"),
        row("mlp.up_proj.bias",     "f",                              "mlp.up.bias"),
        row("mlp.down_proj.weight", "h f",                            "mlp.down.weight"),
        row("mlp.down_proj.bias",   "h",                              "mlp.down.bias"),
    ]),
]
# fmt: on


@schema.dataclass(frozen=True)
class Seeing:
    """A provider class of a model that sees: its dotted name, the table of its fields, and the tables of its tensors."""

    target: str
    config: Config
    tables: layouts.Tables

    @property
    def is_megatron(self) -> bool:
        """Whether its tower is made of Megatron's layers, which tensor parallel ranks share."""
        return any(table.native.startswith("vision_model") for table in self.tables)


def classes_of(gpt: Config) -> tuple[Seeing, ...]:
    """The classes whose language model has the fields of a GPTModelProvider, which `gpt` reads."""
    megatron = weights.TABLES.beside(*_MEGATRON_TOWER)
    package = "qwen3_vl.configuration_qwen3_vl"
    moe = "qwen3_vl_moe.configuration_qwen3_vl_moe"
    dense = _deep(package, "Qwen3VLVisionConfig", "qwen3_vl_vision")
    sparse = _deep(moe, "Qwen3VLMoeVisionConfig", "qwen3_vl_moe_vision")
    flat, flat_sparse = (
        _deep(f"{kind}.configuration_{kind}", f"{name}VisionConfig", f"{kind}_vision", taps=False)
        for kind, name in (("qwen3_5", "Qwen3_5"), ("qwen3_5_moe", "Qwen3_5Moe"))
    )
    qwen2_5 = _tower(
        "qwen2_5_vl.configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig",
        "qwen2_5_vl_vision",
        3584,
        *_squares(_read_windows),
        note("tokens_per_second", "tokens_per_second", default=4),
    )
    return (
        Seeing(f"{MODELS}.{_QWEN3_VL}", _qwen3(gpt, "Qwen3VLModelProvider", dense), megatron),
        Seeing(
            f"{MODELS}.{_QWEN3_VL_MOE}",
            _qwen3(gpt, "Qwen3VLMoEModelProvider", sparse, _SAID_ELSEWHERE),
            megatron,
        ),
        Seeing(
            f"{MODELS}.{_QWEN3_5_VL}",
            _qwen3(gpt, "Qwen35VLModelProvider", flat, *_ids(248056, 248053), _SAID_ELSEWHERE),
            megatron,
        ),
        Seeing(
            f"{MODELS}.{_QWEN3_5_VL_MOE}",
            _qwen3(gpt, "Qwen35VLMoEModelProvider", flat_sparse, *_ids(248056, 248053), _SAID_ELSEWHERE),
            megatron,
        ),
        Seeing(
            f"{MODELS}.{_QWEN2_5_VL}",
            gpt.replace(
                "Megatron-Bridge's Qwen25VLModelProvider",
                positions("attention", sections=False),
                qwen2_5,
                *_TOKENS,
                note("vision_token_id", "vision_token"),
                *_RUN,
            ),
            weights.TABLES.beside(*_OF_QWEN2_5),
        ),
        Seeing(
            f"{MODELS}.{_EXAONE4_5}",
            EXAONE4.replace(
                "Megatron-Bridge's Exaone45ModelProvider",
                made_by("Exaone45ModelProvider", _EXAONE4_5_SPEC, "exaone4_layer_spec"),
                _tower(
                    "exaone4_5.configuration_exaone4_5.Exaone4_5_VisionConfig",
                    "exaone4_5_vision",
                    3584,
                    *_squares(_read_built_in_windows),
                    sharing=[key("num_key_value_heads", "vision.attention.groups", default=8, type=values.whole)],
                ),
                *_ids(67, 73),
                note("vision_token_id", "vision_token", default=67),
                *_RUN,
                ignore("freeze_mtp_model", why="how to train it"),
                _MERGED,
            ).replace(
                "Megatron-Bridge's Exaone45ModelProvider",
                # the provider asks it for a length, by which a GPTModel that rotates sizes nothing
                ignore(
                    "hf_text_config",
                    why="said by other fields",
                    written=lambda facts: {
                        "_target_": f"{_TRANSFORMERS}.{_EXAONE4_TEXT}",
                        "max_position_embeddings": 131072,
                    },
                ),
            ),
            megatron,
        ),
        Seeing(
            f"{MODELS}.{_MINISTRAL3}",
            gpt.replace(
                "Megatron-Bridge's Ministral3ModelProvider",
                made_by("Ministral3ModelProvider", _MINISTRAL3_SPEC),
                _MISTRAL3,
                key("image_token_id", "vision.token", default=10, type=values.count),
                *_RUN,
                ignore("spatial_merge_size", "vision_feature_layer", why="said by hf_config"),
            ),
            weights.TABLES.beside(*_OF_MISTRAL3),
        ),
        Seeing(
            f"{MODELS}.{_GLM4_5V}",
            gpt.replace(
                "Megatron-Bridge's GLM45VModelProvider",
                positions("attention", sections=False),
                _GLM_TOWER,
                key("image_token_id", "vision.token", default=151363, type=values.count),
                note("video_token_id", "video_token", default=151364),
                note("image_start_token_id", "vision_start", default=151339),
                note("image_end_token_id", "vision_end", default=151340),
                note("video_start_token_id", "video_start", default=151341),
                note("video_end_token_id", "video_end", default=151342),
                *_RUN,
                _MERGED,
                # one where no field says it, and the model that sees runs none
                key_is("mtp_num_layers", 0, None),
                ignore("mtp_use_repeated_layer", why="there are none"),
                without=["predictors.*"],
            ),
            weights.TABLES.beside(*_OF_GLM4_5V),
        ),
        Seeing(f"{MODELS}.{_GEMMA3_VL}", GEMMA3_VL, weights.TABLES.beside(*_OF_GEMMA3)),
    )


def other_activation(seeing: Seeing) -> list[ledgers.Loss]:
    """What Bridge computes otherwise than transformers of a model that sees with a tower of Megatron's layers: no field says it."""
    if not seeing.is_megatron:
        return []
    if seeing.target.endswith(_EXAONE4_5):
        why = "Bridge itself computes them with 1e-5, whatever the config says (get_vision_model_config), and transformers with 1e-6, which is taken"
        return [ledgers.Loss("assumed", "the epsilon of norms in the tower", why)]
    why = "Bridge itself computes it with the tanh form of GELU (Qwen3VLVisionPatchMerger), and transformers with the erf form, which is taken: they differ by up to 5e-4, on images alone"
    return [ledgers.Loss("assumed", "the activation of the projectors", why)]


def beside_a_tower(read: Reader) -> Reader:
    """A reader for which the tensors of the language model are called as those of a model by itself."""

    def renamed(name: str) -> str:
        return name.replace(PART, "", 1)

    def inner(folder: str) -> chunked.DistributedCheckpoint:
        checkpoint = read(folder)
        return replace(
            checkpoint,
            tensors={renamed(name): tensor for name, tensor in checkpoint.tensors.items()},
            objects={renamed(name): value for name, value in checkpoint.objects.items()},
        )

    return inner


def check_tower(seeing: Seeing, architecture: schema.Architecture, tp: int, pp: int) -> None:
    """`Refusal` of a tower that Bridge computes otherwise, of ranks that cannot share one, and of stages that would not all have what is
    added to the first layers."""
    vision, decoder = architecture.vision, architecture.decoder
    assert vision is not None and decoder is not None
    slides = [layer.attention.window for layer in decoder.layers if layer.attention and layer.attention.window]
    tokens = _tokens(vision.image or 0, vision.patch, vision.projector.merge)
    if vision.both_ways and slides and tokens > min(slides):
        raise Refusal(
            "where there is a window, Bridge lets a token of an image see no more of what comes after it than that",
            found=f"{tokens} tokens of an image, attention.window = {min(slides)}",
            fact="vision.both_ways",
        )
    for layer in vision.stack.layers[:1]:
        heads = layer.attention.heads if layer.attention else 0
        groups = layer.attention.groups if layer.attention else 0
        if seeing.is_megatron and groups % tp:
            shared = f"{heads} heads" if groups == heads else f"{groups} groups of heads"
            raise Refusal(f"tp={tp} does not divide the {shared} of the tower", fact="vision.attention.groups")
    if len(vision.taps) > len(decoder.layers) // pp:
        raise Refusal(
            "what the taps add must be added on the first pipeline stage",
            found=f"vision.taps = {list(vision.taps)}, and {len(decoder.layers) // pp} layers on a stage",
            fact="vision.taps",
        )
