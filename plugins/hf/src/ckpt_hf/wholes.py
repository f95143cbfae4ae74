"""The classes of transformers that have a language model among their parts: which it is, and what the other parts are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from ckpt_core.sdk import Table, drop, schema

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
QWEN3_VL_MOE = "qwen3_vl_moe_text"
"""The type of the only language model whose files may have fused experts with the input first."""


@schema.dataclass(frozen=True)
class Language:
    """A language model that stands in others: the type of its config, and the family of the class that it is by itself.

    `usual` is what its config class has where a config is silent, as far as the family's has another value or none. `fixed` are keys
    whose value the class does not look at. `three_rows`: the rotary keys may say how the frequencies are shared out between three rows of
    positions; `theta` is then the rotary base where a config says none, and without it the config must.
    """

    family: str
    usual: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    three_rows: bool = False
    theta: float | None = None


THINKER = "thinker_config"
"""The section of the part of Qwen's Omni models that reads, sees and hears."""
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def has_input_first(hidden: int, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether fused experts have their input on the first axis of each; where the width of an expert is the hidden size, only one
    of the two tensors can tell."""
    fused = {end: shape for name, shape in shapes.items() for end in (GATE_UP, DOWN) if name.endswith(end)}
    if {len(shape) for shape in fused.values()} != {3}:
        return False
    _, first, last = fused.get(DOWN, (0, 0, 0))
    return bool(last == hidden if first != last else fused.get(GATE_UP, (0, 0, 0))[1] == hidden)


def _sizes(*sizes: int, **others: Any) -> dict[str, Any]:
    return dict(zip(_SIZES, sizes, strict=True)) | others


_QWEN2_VL = Language(
    "qwen2",
    _sizes(152064, 8192, 29568, 80, 64, num_key_value_heads=8, rms_norm_eps=1e-5, max_window_layers=80),
    three_rows=True,
    theta=1000000.0,
)


_GLM4V_MOE = Language(
    "glm4_moe",
    _sizes(151424, 4096, 10944, 46, 96, attention_bias=True, moe_intermediate_size=1408),
    fixed={"use_qk_norm": False},
    three_rows=True,
    theta=10000.0,
)
_DEEPSEEK = Language(
    "deepseek_v3",
    _sizes(129280, 7168, 18432, 61, 128, num_key_value_heads=128, moe_intermediate_size=2048, n_routed_experts=256),
)


def beside_the_tower(name: str) -> str:
    """`model.language_model.layers.0` beside `model.visual`: transformers 5, and all classes that are newer than it."""
    return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


def within(name: str) -> str:
    """`language_model.model.layers.0` beside `vision_tower`: the class of the language model as a module, in LLaVA's time."""
    return f"language_model.{name}"


# The config classes of `transformers.models.*.configuration_*`. Configs in configs leave out what is the class's own.
LANGUAGES = {
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    # transformers 4.57 and 5 have other bases where the config says none (5000000 and 500000)
    "qwen3_vl_text": Language(
        "qwen3", _sizes(151936, 4096, 22016, 32, 32, num_key_value_heads=32, head_dim=128), three_rows=True
    ),
    # the class divides the scores of the chosen experts by their sum, whatever the key says (Qwen3VLMoeTextTopKRouter)
    QWEN3_VL_MOE: Language(
        "qwen3_moe",
        _sizes(
            151936,
            2048,
            5632,
            24,
            16,
            num_key_value_heads=16,
            head_dim=128,
            moe_intermediate_size=1408,
            num_experts_per_tok=4,
            num_experts=60,  # or num_local_experts, which is the same key
        ),
        fixed={"norm_topk_prob": True},
        three_rows=True,
    ),
    "qwen3_5_text": Language("qwen3_5_text", _sizes(248320, 4096, 12288, 32, 16)),
    "qwen3_5_moe_text": Language(
        "qwen3_5_moe_text",
        {"vocab_size": 248320, "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16},
    ),
    # the class that sees never caps its logits, as that of the language model does (modeling_gemma3.py, 5.24)
    "gemma3_text": Language("gemma3_text", _sizes(262208, 2304, 9216, 26, 8), fixed={"final_logit_softcapping": None}),
    "llama": Language("llama", _sizes(32000, 4096, 11008, 32, 32)),
    "mistral": Language("mistral", _sizes(32000, 4096, 14336, 32, 32)),
    "qwen2": Language("qwen2", _sizes(151936, 4096, 22016, 32, 32)),
    "qwen3": Language("qwen3", _sizes(151936, 4096, 22016, 32, 32)),
    "ministral3": Language(
        "ministral3",
        _sizes(131072, 4096, 14336, 34, 32, head_dim=128, rms_norm_eps=1e-5, sliding_window=None),
    ),
    "llama4_text": Language("llama4_text", _sizes(202048, 5120, 8192, 48, 40)),
    # the first files of EXAONE 4.5 have this name of it
    "exaone4_5_text": Language("exaone4", _sizes(102400, 4096, 16384, 32, 32, num_key_value_heads=32)),
    "exaone4": Language("exaone4", _sizes(102400, 4096, 16384, 32, 32, num_key_value_heads=32)),
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "glm4v_moe_text": _GLM4V_MOE,
    "Glm4vMoe_text": _GLM4V_MOE,  # as transformers 4.57 saves it
    "qwen2_5_omni_text": Language(
        "qwen2", _sizes(152064, 3584, 18944, 28, 28, num_key_value_heads=4), three_rows=True, theta=1000000.0
    ),
    "qwen3_omni_moe_text": Language(
        "qwen3_moe",
        _sizes(
            3584,
            2048,
            18944,
            28,
            28,
            num_key_value_heads=4,
            moe_intermediate_size=768,
            num_experts_per_tok=8,
            num_experts=128,
            norm_topk_prob=True,
        ),
        three_rows=True,
        theta=1000000.0,
    ),
}


@schema.dataclass(frozen=True)
class Whole:
    """A class of transformers that has a language model among its parts.

    `language` are the types that the language model may have, of which the first is meant where its config says none. `others` drops the
    tensors of the other parts, each with what it is. `flat`: old configs have the keys of the language model beside those of the whole, of
    which `own` are not keys of it. `inside`: the section of the part, of several that speak and listen, in which the language model is.
    """

    class_name: str
    language: tuple[str, ...]
    others: Table
    flat: bool = False
    own: tuple[str, ...] = ()
    inside: str = ""


# With and without the prefix that transformers 5 has before the modules of all parts.
_VISUAL = Table(
    rows=[drop(f"{prefix}visual.*", why="the vision tower and its projector") for prefix in ("", "model.")],
)
_TOWER = Table(
    rows=[
        *(drop(f"{prefix}vision_tower.*", why="the vision tower") for prefix in ("", "model.")),
        *(drop(f"{prefix}multi_modal_projector.*", why="the projector") for prefix in ("", "model.")),
    ]
)
_NEWLINE = _TOWER.extend(
    *(drop(f"{prefix}image_newline", why="the end of a row of an image") for prefix in ("", "model."))
)
_VISION_MODEL = Table(
    rows=[
        *(drop(f"{prefix}vision_model.*", why="the vision tower") for prefix in ("", "model.")),
        *(drop(f"{prefix}connector.*", why="the projector") for prefix in ("", "model.")),  # Idefics
        *(drop(f"{prefix}multi_modal_projector.*", why="the projector") for prefix in ("", "model.")),  # Llama 4
    ]
)
# Classes that hear, and those that speak, too.
_HEARS = Table(
    rows=[
        drop(f"{prefix}{part}.*", why=why)
        for prefix in ("", "model.")
        for part, why in (("audio_tower", "the audio tower"), ("multi_modal_projector", "the projector"))
    ]
)
_MOON = Table(
    rows=[
        drop(f"{prefix}{part}.*", why=why)
        for prefix in ("", "model.")
        for part, why in (
            ("vision_tower", "the vision tower"),
            ("mm_projector", "the projector"),
        )
    ]
)
_OMNI = Table(
    rows=[
        *(drop(f"thinker.{prefix}audio_tower.*", why="the audio tower") for prefix in ("", "model.")),
        *(drop(f"thinker.{prefix}visual.*", why="the vision tower and its projector") for prefix in ("", "model.")),
        *(drop(f"{part}.*", why="what speaks") for part in ("talker", "token2wav", "code2wav")),
    ]
)
_QWEN_OWN = (
    "vision_config",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "vision_token_id",
)
_DECODERS = ("llama", "mistral", "qwen2", "qwen3")

# By model_type: the classes of which a test compares the logits of text. Aya Vision and Command A Vision are not among them: their
# classes leave out the scale of the logits, which the class of their language model has (modeling_aya_vision.py, 5.24).
WHOLES = {
    "qwen2_vl": Whole("Qwen2VLForConditionalGeneration", ("qwen2_vl_text",), _VISUAL, flat=True, own=_QWEN_OWN),
    "qwen2_5_vl": Whole("Qwen2_5_VLForConditionalGeneration", ("qwen2_5_vl_text",), _VISUAL, flat=True, own=_QWEN_OWN),
    "qwen3_vl": Whole("Qwen3VLForConditionalGeneration", ("qwen3_vl_text",), _VISUAL),
    "qwen3_vl_moe": Whole("Qwen3VLMoeForConditionalGeneration", (QWEN3_VL_MOE,), _VISUAL),
    "qwen3_5": Whole("Qwen3_5ForConditionalGeneration", ("qwen3_5_text",), _VISUAL),
    "qwen3_5_moe": Whole("Qwen3_5MoeForConditionalGeneration", ("qwen3_5_moe_text",), _VISUAL),
    "gemma3": Whole("Gemma3ForConditionalGeneration", ("gemma3_text",), _TOWER),
    "mistral3": Whole("Mistral3ForConditionalGeneration", ("mistral", "ministral3"), _TOWER),
    "llama4": Whole(
        "Llama4ForConditionalGeneration",
        ("llama4_text",),
        _VISION_MODEL,
    ),
    "llava": Whole("LlavaForConditionalGeneration", _DECODERS, _TOWER),
    "llava_next": Whole("LlavaNextForConditionalGeneration", _DECODERS, _NEWLINE),
    "llava_onevision": Whole(
        "LlavaOnevisionForConditionalGeneration", ("qwen2", "qwen3", "llama", "mistral"), _NEWLINE
    ),
    "internvl": Whole("InternVLForConditionalGeneration", ("qwen2", "qwen3", "llama", "mistral"), _TOWER),
    "idefics3": Whole("Idefics3ForConditionalGeneration", _DECODERS, _VISION_MODEL),
    "smolvlm": Whole("SmolVLMForConditionalGeneration", _DECODERS, _VISION_MODEL),
    "exaone4_5": Whole("Exaone4_5_ForConditionalGeneration", ("exaone4", "exaone4_5_text"), _VISUAL),
    "glm4v_moe": Whole("Glm4vMoeForConditionalGeneration", ("glm4v_moe_text", "Glm4vMoe_text"), _VISUAL),
    "kimi_k25": Whole("Kimi_K25ForConditionalGeneration", ("deepseek_v3", "kimi_k2"), _MOON),
    "qwen2_audio": Whole("Qwen2AudioForConditionalGeneration", ("qwen2",), _HEARS),
    "qwen3_asr": Whole("Qwen3ASRForConditionalGeneration", ("qwen3",), _HEARS),
    "qwen2_5_omni": Whole("Qwen2_5OmniForConditionalGeneration", ("qwen2_5_omni_text",), _OMNI, inside=THINKER),
    "qwen3_omni_moe": Whole("Qwen3OmniMoeForConditionalGeneration", ("qwen3_omni_moe_text",), _OMNI, inside=THINKER),
}
