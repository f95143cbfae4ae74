"""What the metadata of a GGUF file means, for each architecture of llama.cpp (src/llama-model.cpp and src/models, b10605).

A config is what a file says under `ARCHITECTURE.`, without that prefix, and `tokenizer.ggml.` ids. A key that is called as a tensor is true where the
file has that tensor: whether there are biases, or a head of its own, no key says. What llama.cpp has in its code is a `fact_is`: another
value is refused, since no file could say it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_core.sdk import (
    Activation,
    Architecture,
    CkptError,
    Config,
    Facts,
    by_layer,
    configs,
    decided,
    derived,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    note,
    one_of,
    rules,
    same_as,
    schema,
    values,
)
from ckpt_gguf import weights
from ckpt_gguf.rotary import FREQUENCIES, LONG, SHORT, STRETCHING, rotary, rotary_by_window

_NORMS = ("attention.norm", "mlp.norm", "final_norm")
_OUT_NORMS = ("attention.out_norm", "mlp.out_norm")
_ROUTER = "mlp.moe.router"
_LATENT = "latent_attention"
_WINDOW, _PERIOD = "attention.sliding_window", "attention.sliding_window_pattern"


def _is(facts: Mapping[str, object]) -> list[configs.Entry]:
    """Facts that hold for every model of an architecture."""
    return [fact_is(path, value) for path, value in facts.items()]


def _norms(kind: str, *paths: str, **facts: object) -> list[configs.Entry]:
    return _is({f"{path}.{name}": value for path in paths for name, value in {"kind": kind, **facts}.items()})


def _there(tensor: str, *paths: str) -> configs.Entry:
    """The facts are true where a file has this tensor."""
    return key(tensor, *paths, default=False, type=values.flag)


def _with_window(period: int, layers: int) -> tuple[bool, ...]:
    """Which layers have a window: all but every `period`-th, or all if it is 0 (llama-hparams.cpp, set_swa_pattern)."""
    return tuple(period == 0 or index % period < period - 1 for index in range(layers))


def _every(period: int, needed: bool) -> Callable[[Mapping[str, Any], Facts, dict[str, Any]], None]:
    """Enters that all but every `period`-th layer have the window, or what the keys say."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        window, layers = config.get(_WINDOW, 4096 if needed else 0), facts["layers"]
        if not needed and not values.checked(_WINDOW, window, values.count):
            return
        given, usual = config.get(_PERIOD, period), _with_window(period, layers)
        if isinstance(given, list) and tuple(given) != usual:
            raise CkptError(
                f"key {_PERIOD!r} is a list, which llama.cpp does not read",
                found=str(given)[:80],
                expected=f"the layers that it has in its code: all but every {period}th",
            )
        present = (
            usual if isinstance(given, list) else _with_window(values.checked(_PERIOD, given, values.count), layers)
        )
        if any(present):
            facts["attention.window"] = values.checked(_WINDOW, window, values.whole)
        if any(present) and not all(present):
            facts["attention.window?"] = schema.PerLayer(present)

    return read


def _windows(period: int, *, needed: bool = True, listed: bool = False) -> list[configs.Entry]:
    """The lines of a window that all but every `period`-th layer have. `needed`: there is one in every model. `listed`: the
    converter lists the layers, and llama.cpp passes over the list. A number it reads, and takes for the period."""

    pattern = [_pattern(period), configs.LEFT_OUT] if listed else [configs.LEFT_OUT, _pattern(None)]
    return [
        decided(
            [_WINDOW, _PERIOD],
            ["attention.window", "attention.window?"],
            read=_every(period, needed),
            values={
                _WINDOW: [configs.value_of("attention.window"), *([] if needed else [configs.LEFT_OUT])],
                _PERIOD: pattern,
            },
            uses=["layers"],
            why=f"all layers but every {period}. have the window, unless a number says another period",
        )
    ]


def _pattern(usual: int | None) -> configs.Said:
    """What says the layers with a window: their list where they are the `usual` ones, else a period."""

    def said(present: tuple[bool, ...]) -> object:
        count = len(present)
        if usual is not None and present == _with_window(usual, count):
            return list(present)
        return next((other for other in range(count + 1) if present == _with_window(other, count)), None)

    return configs.layers_of("attention.window", said)


def _rotating_by_window(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    present = facts.present("attention.window")
    if isinstance(present, schema.PerLayer):
        facts["attention.rotary?"] = present


def _windows_of_64(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """Enters the windows of EXAONE 4, which the model of 64 layers alone has (src/models/exaone4.cpp)."""
    if facts["layers"] == 64:
        _every(4, True)(config, facts, notes)
        _rotating_by_window(config, facts, notes)
    elif config.get(_WINDOW):
        raise CkptError(f"key {_WINDOW!r} is read of 64 layers alone", found=f"{facts['layers']} layers")


def _read_no_rope(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    rotates = schema.PerLayer((index + 1) % 4 != 0 for index in range(facts["layers"]))
    if not all(rotates):
        facts["attention.rotary?"] = rotates


def _read_scale(layers: int) -> Callable[[Mapping[str, Any], Facts, dict[str, Any]], None]:
    """Enters the scale of scores of the model with so many layers, the 27B, which is not the usual one (src/models/gemma2.cpp)."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        if facts["layers"] == layers:
            facts["attention.scale"] = (facts["hidden"] // facts["attention.heads"]) ** -0.5

    return read


def _scale(layers: int) -> configs.Entry:
    return decided(
        [],
        ["attention.scale"],
        read=_read_scale(layers),
        values={},
        tolerance=1e-6,
        uses=["layers", "hidden", "attention.heads", "attention.head_dim"],
        why=f"scores are divided by the root of the head dim, but with {layers} layers by that of hidden / heads",
    )


def _read_latent_scale(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    scaling = f"{_LATENT}.rotary.scaling"
    stretch, factor = facts.get(f"{scaling}.mscale_all_dim"), facts.get(f"{scaling}.factor")
    if facts.get(f"{scaling}.kind") is schema.RotaryKind.YARN and stretch and factor and factor > 1:
        width = facts[f"{_LATENT}.nope_dim"] + facts[f"{_LATENT}.rope_dim"]
        facts[f"{_LATENT}.scale"] = width**-0.5 * (0.1 * stretch * math.log(factor) + 1.0) ** 2


def _read_groups(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    count = config.get("expert_group_count", 0)
    if count > 1:
        facts.update({f"{_ROUTER}.groups": count, f"{_ROUTER}.group_top_k": config["expert_group_used_count"]})
        facts[f"{_ROUTER}.group_score"] = "top2"


def _read_q_rank(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    rank = values.checked("attention.q_lora_rank", config.get("attention.q_lora_rank", 0), values.count)
    if rank:
        facts[f"{_LATENT}.q_rank"] = rank


def _read_window(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    window = values.checked("attention.sliding_window", config.get("attention.sliding_window", 0), values.count)
    if window:
        facts["attention.window"] = window


def _score(default: object = configs.REQUIRED) -> configs.Entry:
    """How experts are scored; what llama.cpp takes where no key says it is the `default`."""
    return key("expert_gating_func", f"{_ROUTER}.score", default=default, via=one_of({1: "softmax", 2: "sigmoid"}))


def _fixed(counted: str, *facts: str) -> list[configs.Entry]:
    """A width that two keys say, of which llama.cpp takes `feed_forward_length` for the tensors."""
    return [key("feed_forward_length", *facts, type=values.whole), configs.repeats(counted, "feed_forward_length")]


_GROUPS = ("expert_group_count", "expert_group_used_count")

# fmt: off
# What every decoder of llama.cpp has.
_DECODER = [
    *_is({"kind": "decoder", "causal": True}),
    key("embedding_length", "hidden", type=values.whole),
    key("block_count", "layers", type=values.layers),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary", type=values.whole),
    note("context_length", "max_positions"),
    note("tokenizer.ggml.bos_token_id", "bos"),
    note("tokenizer.ggml.eos_token_id", "eos"),
    note("tokenizer.ggml.padding_token_id", "pad"),
    *ignore("rope.scaling.finetuned", "tensor_data_layout", why="it says how it was trained or converted, and changes no output"),
    key_is("attention.causal", True, or_absent=True, written=False),
    # most architectures of llama.cpp do not read them, and compute with these numbers (llama-context.cpp)
    key_is("rope.scaling.yarn_beta_fast", 32.0, or_absent=True, written=False),
    key_is("rope.scaling.yarn_beta_slow", 1.0, or_absent=True, written=False),
    key_is("rope.scaling.yarn_ext_factor", 1.0, or_absent=True, written=False),
    key_is("rope.scaling.yarn_attn_factor", 1.0, or_absent=True, written=False),
]

LLAMA = Config("llama", [
    *_DECODER,
    key("attention.head_count", "attention.heads", type=values.whole),
    key("attention.head_count_kv", "attention.groups", default=same_as("attention.head_count"), type=values.whole),
    derived("attention.key_length", "attention.head_dim", "hidden / attention.heads", of_facts=True),
    configs.repeats("attention.value_length", "attention.key_length"),
    key("feed_forward_length", "mlp.ffn", type=values.whole),
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in _NORMS), type=values.positive),
    *_norms("rms", *_NORMS),
    *_is({"mlp.gated": True, "mlp.activation": Activation.SILU}),
    rotary(),
    _there("blk.*.attn_q.bias", "attention.q_bias"),
    _there("blk.*.attn_k.bias", "attention.k_bias"),
    _there("blk.*.attn_v.bias", "attention.v_bias"),
    _there("blk.*.attn_output.bias", "attention.out_bias"),
    _there("blk.*.ffn_up.bias", "mlp.up_bias"),
    _there("blk.*.ffn_down.bias", "mlp.down_bias"),
    key("output.weight", "head.tied", default=False, via=one_of({False: True, True: False})),
])

# Of a tied head llama.cpp makes its own copy, but for architectures that ask for the tensor.
_UNTIED = [fact_is("head.tied", False)]
_NO_BIASES = ["attention.out_bias", "mlp.up_bias", "mlp.down_bias"]

_CHOSEN = [
    key("expert_count", "mlp.moe.experts", type=values.whole),
    key("expert_used_count", f"{_ROUTER}.top_k", type=values.whole),
]
_MIXTURE = [*_CHOSEN, fact_is(f"{_ROUTER}.score", "softmax")]

# Layers with experts after some without, and how an expert is chosen, as DeepSeek has them.
_DENSE_FIRST = [
    by_layer("leading_dense_block_count", "mlp.moe", ~rules.first_layers(), default=0),
    configs.in_other_layers("feed_forward_length", "mlp.ffn", than="mlp.moe", unused="unused_ffn", fallback="mlp.moe.ffn", type=values.whole),
]
_SCALED = key("expert_weights_scale", f"{_ROUTER}.scale", default=1.0)
_CORRECTED = _there("blk.*.exp_probs_b.bias", f"{_ROUTER}.correction_bias")
_ROUTED = [
    *_CHOSEN,
    key("expert_feed_forward_length", "mlp.moe.ffn", type=values.whole),
    _SCALED,
    key("expert_weights_norm", f"{_ROUTER}.normalise", default=False, type=values.flag),
    decided(_GROUPS, [f"{_ROUTER}.{name}" for name in ("groups", "group_top_k", "group_score")], read=_read_groups,
            values={_GROUPS: [(1, 1), (configs.value_of(f"{_ROUTER}.groups"), configs.value_of(f"{_ROUTER}.group_top_k"))]},
            why="llama.cpp takes the best groups by the sum of their two best experts, whatever the model"),
]
_SHARED_COUNT = key("expert_shared_count", "mlp.moe.shared.ffn", type=values.whole, times="expert_feed_forward_length")
# the same width in one number
_SHARED_WIDTH = ignore("expert_shared_feed_forward_length", why="expert_shared_count says it",
                       written=lambda facts: facts["mlp.moe.shared.ffn"], uses=["mlp.moe.shared.ffn"])

MIXTRAL = LLAMA.replace("llama, with experts",
    key("feed_forward_length", "mlp.moe.ffn", type=values.whole),
    *_MIXTURE,
    fact_is(f"{_ROUTER}.normalise", True),
    key("expert_weights_scale", f"{_ROUTER}.scale", default=1.0),
    without=["mlp.ffn", "mlp.up_bias", "mlp.down_bias"],
)

SMOLLM3 = LLAMA.replace("smollm3",
    rotary(always=False),
    decided([], ["attention.rotary?"], read=_read_no_rope, values={}, uses=["layers", "attention.rotary.*"],
            why="all layers but every fourth rotate, which llama.cpp has in its code"),
    without=_NO_BIASES,
)

QWEN2 = LLAMA.replace("qwen2", without=_NO_BIASES)

QWEN3 = LLAMA.replace("qwen3",
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in (*_NORMS, "attention.qk_norm")), type=values.positive),
    *_norms("rms", "attention.qk_norm"),
    without=_NO_BIASES,
)

# llama.cpp normalises the shares of chosen experts for qwen3moe, and not for qwen2moe and olmoe; no key says so.
QWEN2_MOE = QWEN2.replace("qwen2moe",
    *_MIXTURE,
    key("expert_feed_forward_length", "mlp.moe.ffn", type=values.whole),
    key("expert_shared_feed_forward_length", "mlp.moe.shared.ffn", type=values.whole),
    *_is({f"{_ROUTER}.normalise": False, "mlp.moe.shared.gate": True}),
    note("feed_forward_length", "unused_ffn"),
    *_UNTIED,
    without=["mlp.ffn", "output.weight"],
)

QWEN3_MOE = QWEN3.replace("qwen3moe",
    *_MIXTURE,
    key("expert_feed_forward_length", "mlp.moe.ffn", type=values.whole),
    fact_is(f"{_ROUTER}.normalise", True),
    note("feed_forward_length", "unused_ffn"),
    without=["mlp.ffn"],
)

OLMOE = QWEN3.replace("olmoe",
    *_MIXTURE,
    key("feed_forward_length", "mlp.moe.ffn", type=values.whole),
    *_is({f"{_ROUTER}.normalise": False, "attention.qk_norm_whole": True}),
    *_UNTIED,
    without=["mlp.ffn", "output.weight"],
)

OLMO2 = LLAMA.replace("olmo2",
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in (*_OUT_NORMS, "attention.qk_norm", "final_norm")), type=values.positive),
    *_norms("rms", *_OUT_NORMS, "attention.qk_norm"),
    fact_is("attention.qk_norm_whole", True),
    # OLMo 3, whose layers with a window rotate without the scaling of the others
    *_windows(4, needed=False, listed=True),
    configs.where("attention.window", [configs.repeats("rope.freq_base_swa", "rope.freq_base")]),
    rotary(unscaled="attention.window"),
    *_UNTIED,
    without=[*_NO_BIASES, "output.weight", "attention.norm.kind", "mlp.norm.kind"],
)

GEMMA = LLAMA.replace("gemma",
    *_norms("rms", *_NORMS, zero_centred=True),
    fact_is("mlp.activation", Activation.GELU_TANH),
    derived(None, "tokens.scale", "hidden ** 0.5", rounding="none", tolerance=1e-6, of_facts=True),
    fact_is("head.tied", True),
    without=[*_NO_BIASES, "output.weight"],
)

GEMMA2 = GEMMA.replace("gemma2",
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in (*_NORMS, *_OUT_NORMS)), type=values.positive),
    *_norms("rms", *_OUT_NORMS, zero_centred=True),
    key("attn_logit_softcapping", "attention.softcap", default=50.0, type=values.positive),
    key("final_logit_softcapping", "head.softcap", default=30.0, type=values.positive),
    *_windows(2),
    _scale(46),
)

GEMMA3 = GEMMA2.replace("gemma3",
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in (*_NORMS, *_OUT_NORMS, "attention.qk_norm")), type=values.positive),
    *_norms("rms", "attention.qk_norm", zero_centred=True),
    key("final_logit_softcapping", "head.softcap", default=None, type=values.positive),
    *_windows(6),
    _scale(62),
    rotary_by_window(),
    key("output.weight", "head.tied", default=False, via=one_of({False: True, True: False})),
    without=["attn_logit_softcapping", "attention.softcap"],
)

PHI3 = LLAMA.replace("phi3",
    rotary(partial=True),
    decided(["attention.sliding_window"], ["attention.window"], read=_read_window,
            values={"attention.sliding_window": [configs.value_of("attention.window"), 0]}, why="0 where no layer has one"),
    without=[*_NO_BIASES, "attention.q_bias", "attention.k_bias", "attention.v_bias"],
)

# ggml computes the clamped activation with the numbers of gpt-oss (ggml_swiglu_oai).
GPT_OSS = LLAMA.replace("gpt-oss",
    key("expert_feed_forward_length", "mlp.moe.ffn", type=values.whole),
    *ignore("feed_forward_length", why="every layer has experts", written=lambda facts: facts["mlp.moe.ffn"], uses=["mlp.moe.ffn"]),
    *_MIXTURE,
    *_is({"mlp.activation": Activation.GELU_QUICK, "mlp.clamp": 7.0, "mlp.up_offset": 1.0, "attention.sinks": True}),
    *_is(dict.fromkeys(["attention.out_bias", "mlp.up_bias", "mlp.down_bias", f"{_ROUTER}.bias", f"{_ROUTER}.normalise"], True)),
    *_windows(2),
    configs.repeats("rope.freq_base_swa", "rope.freq_base", written=False),
    # gpt-oss is trained without whole ends of yarn's ramp, and llama.cpp computes it with them
    rotary(truncates=False),
    *_UNTIED,
    without=["mlp.ffn", "output.weight", *(f"blk.*.{name}.bias" for name in ("attn_output", "ffn_up", "ffn_down"))],
)

SEED_OSS = LLAMA.replace("seed_oss", without=_NO_BIASES)

ARCEE = LLAMA.replace("arcee",
    *_is({"mlp.gated": False, "mlp.activation": Activation.RELU_SQUARED}),
    without=_NO_BIASES,
)

EXAONE = LLAMA.replace("exaone", without=_NO_BIASES)

EXAONE4 = LLAMA.replace("exaone4",
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in (*_OUT_NORMS, "attention.qk_norm", "final_norm")), type=values.positive),
    *_norms("rms", *_OUT_NORMS, "attention.qk_norm"),
    rotary(always=False),
    decided([_WINDOW, _PERIOD], ["attention.window", "attention.window?", "attention.rotary?"], read=_windows_of_64, uses=["layers", "attention.rotary.*"],
            values={_WINDOW: [configs.value_of("attention.window"), configs.LEFT_OUT], _PERIOD: [_pattern(4), configs.LEFT_OUT]},
            why="of 64 layers all but every fourth have a window, and these alone rotate; of others all rotate, and none has one"),
    without=[*_NO_BIASES, "attention.norm.kind", "mlp.norm.kind"],
)

DOTS1 = QWEN3.replace("dots1",
    *_DENSE_FIRST,
    *_ROUTED,
    _CORRECTED,
    _SHARED_COUNT,
    _score(),
    *_UNTIED,
    without=["output.weight"],
)

EXAONE_MOE = QWEN3.replace("exaone-moe",
    *_DENSE_FIRST,
    *_ROUTED,
    _CORRECTED,
    _SHARED_COUNT,
    *_SHARED_WIDTH,
    _score(),
    key_is("nextn_predict_layers", 0, or_absent=True, why="layers that predict further tokens are not read"),
    *_windows(4, listed=True),
    configs.repeats("rope.freq_base_swa", "rope.freq_base", written=False),
    rotary(always=False),
    decided([], ["attention.rotary?"], read=_rotating_by_window, values={}, uses=["attention.window", "attention.window?", "attention.rotary.*"],
            why="the layers with a window rotate, and no others, which llama.cpp has in its code"),
    *_UNTIED,
    without=["output.weight"],
)

# A bias of attn_output it loads, and leaves out.
ERNIE4_5 = LLAMA.replace("ernie4_5", without=_NO_BIASES)

ERNIE4_5_MOE = ERNIE4_5.replace("ernie4_5-moe",
    *_DENSE_FIRST,
    key_is("interleave_moe_layer_step", 1, why="of the layers between, llama.cpp wants experts, too"),
    *_MIXTURE,
    key("expert_feed_forward_length", "mlp.moe.ffn", type=values.whole),
    _SCALED,
    _CORRECTED,
    fact_is(f"{_ROUTER}.normalise", True),
    key("expert_shared_feed_forward_length", "mlp.moe.shared.ffn", type=values.whole),
    *ignore("expert_shared_count", why="expert_shared_feed_forward_length says it",
            written=lambda facts: facts["mlp.moe.shared.ffn"] // facts["mlp.moe.ffn"], uses=["mlp.moe.shared.ffn", "mlp.moe.ffn"]),
)

HUNYUAN = QWEN3.replace("hunyuan-dense",
    fact_is("attention.qk_norm_after_rotary", True),
)

HUNYUAN_MOE = HUNYUAN.replace("hunyuan-moe",
    *_MIXTURE,
    *_fixed("expert_feed_forward_length", "mlp.moe.ffn"),
    key("expert_shared_feed_forward_length", "mlp.moe.shared.ffn", default=same_as("feed_forward_length"), type=values.whole),
    *ignore("expert_shared_count", why="expert_shared_feed_forward_length says it", written=lambda facts: 1),
    fact_is(f"{_ROUTER}.normalise", True),
    without=["mlp.ffn"],
)

MINIMAX_M2 = QWEN3.replace("minimax-m2",
    *_CHOSEN,
    *_fixed("expert_feed_forward_length", "mlp.moe.ffn"),
    _score(),
    *_is({f"{_ROUTER}.normalise": True, f"{_ROUTER}.correction_bias": True, "attention.qk_norm_whole": True}),
    rotary(partial=True),
    *_UNTIED,
    without=["mlp.ffn", "output.weight"],
)

BAILINGMOE2 = QWEN3.replace("bailingmoe2",
    *_DENSE_FIRST,
    *_ROUTED,
    _CORRECTED,
    _SHARED_COUNT,
    *_SHARED_WIDTH,
    _score(),
    rotary(partial=True),
    *_UNTIED,
    without=["output.weight", *(f"blk.*.attn_{part}.bias" for part in "qkv")],
)

MELLUM = QWEN3_MOE.replace("mellum",
    *_windows(4, needed=False, listed=True),
    configs.where("attention.window", [configs.repeats("rope.freq_base_swa", "rope.freq_base")]),
    rotary(unscaled="attention.window"),
    *_UNTIED,
    without=["output.weight"],
)

AFMOE = QWEN3.replace("afmoe",
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in (*_NORMS, *_OUT_NORMS, "attention.qk_norm")), type=values.positive),
    *_norms("rms", *_OUT_NORMS),
    derived(None, "tokens.scale", "hidden ** 0.5", rounding="none", tolerance=1e-6, of_facts=True),
    fact_is("attention.out_gate", True),
    *_windows(4),
    configs.repeats("rope.freq_base_swa", "rope.freq_base", written=False),
    rotary(always=False),
    decided([], ["attention.rotary?"], read=_read_no_rope, values={}, uses=["layers", "attention.rotary.*"],
            why="all layers but every fourth rotate, which llama.cpp has in its code"),
    *_DENSE_FIRST,
    *_ROUTED,
    fact_is(f"{_ROUTER}.correction_bias", True),
    _SHARED_COUNT,
    _score(default=2),
)

# Layer norms, with biases.
_LAYER_NORMED = LLAMA.replace("",
    key("attention.layer_norm_epsilon", *(f"{norm}.eps" for norm in _NORMS), type=values.positive),
    *_norms("layer", *_NORMS, bias=True),
    *_is({"mlp.gated": False, "mlp.activation": Activation.GELU_TANH}),
    without=["attention.layer_norm_rms_epsilon"],
)

_ALL_BIASES = _is(dict.fromkeys([*(f"attention.{part}_bias" for part in ("q", "k", "v", "out")), "mlp.up_bias", "mlp.down_bias"], True))
_BIAS_TENSORS = [f"blk.*.{name}.bias" for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")]

STARCODER2 = _LAYER_NORMED.replace("starcoder2",
    *_ALL_BIASES,
    without=_BIAS_TENSORS,
)

JAIS2 = _LAYER_NORMED.replace("jais2",
    *_ALL_BIASES,
    fact_is("mlp.activation", Activation.RELU_SQUARED),
    without=_BIAS_TENSORS,
)

GPT2 = _LAYER_NORMED.replace("gpt2",
    *_ALL_BIASES,
    key("context_length", "positions.count", type=values.whole, noted="max_positions"),
    without=[*_BIAS_TENSORS, "attention.rotary.*", "max_positions"],
)

GPT_NEOX = _LAYER_NORMED.replace("gptneox",
    *_ALL_BIASES,
    rotary(partial=True),
    key("use_parallel_residual", "parallel", type=values.flag),
    *_UNTIED,
    without=[*_BIAS_TENSORS, "output.weight"],
)

STABLELM = _LAYER_NORMED.replace("stablelm",
    *_is({"mlp.gated": True, "mlp.activation": Activation.SILU}),
    key("attention.layer_norm_epsilon", "attention.norm.eps", "final_norm.eps", type=values.positive),
    # by this tensor llama.cpp knows the two forms, and not by the key, which its converter may have from a default
    key("blk.*.ffn_norm.weight", "parallel", "shared_norm", default=False, via=one_of({True: False, False: True})),
    configs.where("!parallel", [configs.all_agree("attention.norm", "mlp.norm", why="all norms are alike")]),
    *ignore("use_parallel_residual", why="the tensors say it", written=lambda facts: facts["parallel"], uses=["parallel"]),
    rotary(partial=True),
    *_UNTIED,
    without=[*_NO_BIASES, "output.weight", "mlp.norm.kind", "mlp.norm.bias"],
)

DEEPSEEK2 = Config("deepseek2", [
    *_DECODER,
    key("attention.head_count", f"{_LATENT}.heads", type=values.whole),
    key_is("attention.head_count_kv", 1, why="a file of before the keys of all heads were one latent; convert the model again"),
    key("attention.kv_lora_rank", f"{_LATENT}.kv_rank", type=values.whole),
    decided(["attention.q_lora_rank"], [f"{_LATENT}.q_rank"], read=_read_q_rank,
            values={"attention.q_lora_rank": [configs.value_of(f"{_LATENT}.q_rank"), 0]}, why="0 where queries are not compressed"),
    key("rope.dimension_count", f"{_LATENT}.rope_dim", type=values.whole),
    key("attention.value_length_mla", f"{_LATENT}.value_dim", type=values.whole),
    # heads are said by the width of q and k, and by that of the latent, which serves for all of them in place of k and v
    derived(None, f"{_LATENT}.nope_dim", "attention.key_length_mla - rope.dimension_count"),
    *ignore("attention.key_length_mla", why="the elements that do not rotate follow from it",
            written=lambda facts: facts[f"{_LATENT}.nope_dim"] + facts[f"{_LATENT}.rope_dim"], uses=[f"{_LATENT}.nope_dim", f"{_LATENT}.rope_dim"]),
    *ignore("attention.key_length", why="follows from the latent and what rotates",
            written=lambda facts: facts[f"{_LATENT}.kv_rank"] + facts[f"{_LATENT}.rope_dim"], uses=[f"{_LATENT}.kv_rank", f"{_LATENT}.rope_dim"]),
    *ignore("attention.value_length", why="follows from the latent",
            written=lambda facts: facts[f"{_LATENT}.kv_rank"], uses=[f"{_LATENT}.kv_rank"]),
    key("attention.layer_norm_rms_epsilon", f"{_LATENT}.norm.eps", f"{_LATENT}.kv_norm.eps", "mlp.norm.eps", "final_norm.eps", type=values.positive),
    *_norms("rms", f"{_LATENT}.norm", f"{_LATENT}.kv_norm", "mlp.norm", "final_norm"),
    configs.where(f"{_LATENT}.q_rank", [*_norms("rms", f"{_LATENT}.q_norm"), configs.fact_as(f"{_LATENT}.q_norm.eps", f"{_LATENT}.kv_norm.eps")]),
    rotary(f"{_LATENT}.rotary", head_dim=f"{_LATENT}.rope_dim", latent=True),
    decided([], [f"{_LATENT}.scale"], read=_read_latent_scale, values={}, tolerance=1e-6,
            uses=[f"{_LATENT}.rotary.*", f"{_LATENT}.nope_dim", f"{_LATENT}.rope_dim"],
            why="yarn's multiplier enters the scale of the scores squared"),
    *_is({"mlp.gated": True, "mlp.activation": Activation.SILU}),
    *_DENSE_FIRST,
    *_ROUTED,
    _CORRECTED,
    _SHARED_COUNT,
    _score(default=1),
    key("output.weight", "head.tied", default=False, via=one_of({False: True, True: False})),
])
# fmt: on


@dataclass(frozen=True)
class Model:
    """An architecture of llama.cpp: its name in files, its config and its tables.

    `of` are the model types of transformers that are converted to it. `experts`: of two models of one architecture, the one with
    experts. `square`: the heads together are as wide as the model, as llama.cpp loads them. `as_many_keys`: there are as many heads
    of keys as of queries. `stretching` are the tensors that stretch the angles and that llama.cpp loads for it. `rounds`: the
    models of it are computed with whole ends of yarn's ramp, which they are trained without.
    """

    architecture: str
    config: Config
    tables: layouts.Tables
    of: tuple[str, ...]
    experts: bool | None = None
    square: bool = False
    as_many_keys: bool = False
    stretching: tuple[str, ...] = ()
    rounds: bool = False

    def lacks(self, architecture: Architecture, config: Mapping[str, Any]) -> str | None:
        """Why llama.cpp does not load such a model under this name; None where it does."""
        unread = [name for name in STRETCHING if name in config and name not in self.stretching]
        if unread:
            return f"llama.cpp reads no {unread[0]}, which says {_SCALING_OF[unread[0]]}"
        decoder = architecture.decoder
        attention = decoder.layers[0].attention if decoder else None
        if attention is None:
            return None
        width = attention.heads * attention.head_dim
        if self.square and width != architecture.hidden:
            return f"llama.cpp wants heads * head_dim = hidden, and attention.head_dim = {attention.head_dim} gives {width} of {architecture.hidden}"
        if self.as_many_keys and attention.groups != attention.heads:
            return f"llama.cpp wants as many heads of keys as of queries, and attention.groups = {attention.groups}"
        return None


_SCALING_OF = {FREQUENCIES: "llama3 scaling", SHORT: "longrope", LONG: "longrope"}

_EXPERTS = layouts.Choice("experts", ("stacked", "single"), default="stacked",
    help="the experts of a layer lie in one tensor, or each in its own, as in files of before April 2024")  # fmt: skip

# fmt: off
MODELS = [
    Model("llama",      LLAMA,      layouts.Tables([weights.MODEL, weights.PAIRED_LAYER]), ("llama", "mistral", "iquestcoder"), experts=False, stretching=STRETCHING),
    Model("llama",      MIXTRAL,    layouts.Tables([weights.MODEL, weights.MIXTRAL_LAYER], [_EXPERTS]), ("mixtral",), experts=True, stretching=STRETCHING),
    Model("smollm3",    SMOLLM3,    layouts.Tables([weights.MODEL, weights.PAIRED_LAYER]), ("smollm3",)),
    Model("qwen2",      QWEN2,      layouts.Tables([weights.MODEL, weights.LAYER]), ("qwen2",), square=True),
    Model("qwen3",      QWEN3,      layouts.Tables([weights.MODEL, weights.QWEN3_LAYER]), ("qwen3",)),
    Model("qwen2moe",   QWEN2_MOE,  layouts.Tables([weights.MODEL, weights.QWEN2_MOE_LAYER]), ("qwen2_moe",), square=True),
    Model("qwen3moe",   QWEN3_MOE,  layouts.Tables([weights.MODEL, weights.QWEN3_MOE_LAYER]), ("qwen3_moe",)),
    Model("olmoe",      OLMOE,      layouts.Tables([weights.MODEL, weights.OLMOE_LAYER]), ("olmoe",), square=True, as_many_keys=True),
    Model("olmo2",      OLMO2,      layouts.Tables([weights.MODEL, weights.OLMO2_LAYER]), ("olmo2", "olmo3"), square=True),
    Model("gemma",      GEMMA,      layouts.Tables([weights.GEMMA_MODEL, weights.GEMMA_LAYER]), ("gemma",)),
    Model("gemma2",     GEMMA2,     layouts.Tables([weights.GEMMA_MODEL, weights.GEMMA2_LAYER]), ("gemma2",)),
    Model("gemma3",     GEMMA3,     layouts.Tables([weights.GEMMA_MODEL, weights.GEMMA3_LAYER]), ("gemma3_text",)),
    Model("phi3",       PHI3,       layouts.Tables([weights.MODEL, weights.PHI3_LAYER]), ("phi3",), square=True, stretching=(SHORT, LONG)),
    Model("starcoder2", STARCODER2, layouts.Tables([weights.MODEL_WITH_BIAS, weights.LAYER_NORM_LAYER]), ("starcoder2",), square=True),
    Model("gpt2",       GPT2,       layouts.Tables([weights.MODEL_WITH_POSITIONS, weights.FUSED_LAYER]), ("gpt2",), square=True),
    Model("gptneox",    GPT_NEOX,   layouts.Tables([weights.MODEL_WITH_BIAS, weights.FUSED_LAYER]), ("gpt_neox",), square=True, as_many_keys=True),
    Model("stablelm",   STABLELM,   layouts.Tables([weights.MODEL_WITH_BIAS, weights.LAYER_NORM_LAYER]), ("stablelm",), square=True),
    Model("deepseek2",  DEEPSEEK2,  layouts.Tables([weights.MODEL, weights.DEEPSEEK2_LAYER]), ("deepseek_v2", "deepseek_v3", "kimi_k2")),
    Model("gpt-oss",    GPT_OSS,    layouts.Tables([weights.MODEL, weights.GPT_OSS_LAYER]), ("gpt_oss",), rounds=True),
    Model("seed_oss",   SEED_OSS,   layouts.Tables([weights.MODEL, weights.SEED_OSS_LAYER]), ("seed_oss",)),
    Model("arcee",      ARCEE,      layouts.Tables([weights.MODEL, weights.ARCEE_LAYER]), ("arcee",), stretching=(FREQUENCIES,)),
    Model("exaone",     EXAONE,     layouts.Tables([weights.MODEL, weights.LAYER]), ("exaone",), stretching=(FREQUENCIES,)),
    Model("exaone4",    EXAONE4,    layouts.Tables([weights.MODEL, weights.EXAONE4_LAYER]), ("exaone4",), square=True, stretching=(FREQUENCIES,)),
    Model("exaone-moe", EXAONE_MOE, layouts.Tables([weights.MODEL, weights.EXAONE_MOE_LAYER]), ("exaone_moe",), stretching=(FREQUENCIES,)),
    Model("ernie4_5",   ERNIE4_5,   layouts.Tables([weights.MODEL, weights.PAIRED_LAYER]), ("ernie4_5",)),
    Model("ernie4_5-moe", ERNIE4_5_MOE, layouts.Tables([weights.MODEL, weights.ERNIE4_5_MOE_LAYER]), ("ernie4_5_moe",)),
    Model("dots1",      DOTS1,      layouts.Tables([weights.MODEL, weights.EXAONE_MOE_LAYER]), ("dots1",), as_many_keys=True),
    Model("hunyuan-dense", HUNYUAN, layouts.Tables([weights.MODEL, weights.QWEN3_LAYER]), ("hunyuan_v1_dense",)),
    Model("hunyuan-moe", HUNYUAN_MOE, layouts.Tables([weights.MODEL, weights.HUNYUAN_MOE_LAYER]), ("hunyuan_v1_moe",)),
    Model("minimax-m2", MINIMAX_M2, layouts.Tables([weights.MODEL, weights.MINIMAX_M2_LAYER]), ("minimax_m2",)),
    Model("bailingmoe2", BAILINGMOE2, layouts.Tables([weights.MODEL, weights.BAILINGMOE2_LAYER]), ("bailing_moe",), square=True),
    Model("mellum",     MELLUM,     layouts.Tables([weights.MODEL, weights.QWEN3_MOE_LAYER]), ("mellum",)),
    Model("afmoe",      AFMOE,      layouts.Tables([weights.MODEL, weights.AFMOE_LAYER]), ("afmoe",)),
    Model("jais2",      JAIS2,      layouts.Tables([weights.MODEL_WITH_BIAS, weights.JAIS2_LAYER]), ("jais2",), square=True, as_many_keys=True),
]
# fmt: on


def in_order(facts: Facts, origin: str) -> list[Model]:
    """The models, those first that a model of these facts most likely is: what `origin`, a model type of transformers, is converted
    to, and for biases of queries, keys and values alone Qwen 2."""
    alone = facts.get("attention.q_bias") is True and not facts.get("attention.out_bias")
    likely = origin or ("qwen2" if alone else "")
    return sorted(MODELS, key=lambda model: likely not in model.of)


def model_of(metadata: Mapping[str, Any], file: str) -> Model:
    """The model that a file's metadata names. `CkptError` for an architecture that is not read."""
    name = metadata.get("general.architecture")
    found = [model for model in MODELS if model.architecture == name]
    if not found:
        known = ", ".join(dict.fromkeys(model.architecture for model in MODELS))
        raise CkptError(
            "general.architecture is one that is not read", file=file, found=repr(name)[:60], expected=known
        )
    experts = bool(metadata.get(f"{name}.expert_count"))
    return next(model for model in found if model.experts in (None, experts))
