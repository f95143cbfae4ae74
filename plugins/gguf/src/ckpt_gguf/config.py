"""What the metadata of a GGUF file means, for each architecture of llama.cpp (src/llama-model.cpp and src/models, b10605).

A config is what a file says under `ARCHITECTURE.`, without that prefix, and `tokenizer.ggml.` ids. A key that is called as a tensor is true where the
file has that tensor: whether there are biases, or a head of its own, no key says; with a question mark it lists which layers have it. What llama.cpp has in its code is a `fact_is`: another
value is refused, since no file could say it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import field
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
from ckpt_gguf.rotary import LONG, SHORT, STRETCHING, rotary, rotary_by_window

NORMS = ("attention.norm", "mlp.norm", "final_norm")
OUT_NORMS = ("attention.out_norm", "mlp.out_norm")
ROUTER = "mlp.moe.router"
LATENT = "latent_attention"
WINDOW, PERIOD = "attention.sliding_window", "attention.sliding_window_pattern"


def is_tensor(key: str) -> bool:
    """Whether a key of a config stands for a tensor of the file, and for no key of its metadata."""
    return key.startswith("blk.") or key.endswith((".weight", ".bias"))


def always(facts: Mapping[str, object]) -> list[configs.Entry]:
    """Facts that hold for every model of an architecture."""
    return [fact_is(path, value) for path, value in facts.items()]


def norms(kind: str, *paths: str, **facts: object) -> list[configs.Entry]:
    return always({f"{path}.{name}": value for path in paths for name, value in {"kind": kind, **facts}.items()})


def there(tensor: str, *paths: str) -> configs.Entry:
    """The facts are true where a file has this tensor."""
    return key(tensor, *paths, default=False, type=values.flag)


def _with_window(period: int, layers: int) -> tuple[bool, ...]:
    """Which layers have a window: all but every `period`-th, or all if it is 0 (llama-hparams.cpp, set_swa_pattern)."""
    return tuple(period == 0 or index % period < period - 1 for index in range(layers))


def every(period: int, needed: bool) -> Callable[[Mapping[str, Any], Facts, dict[str, Any]], None]:
    """Enters that all but every `period`-th layer have the window, or what the keys say."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        window, layers = config.get(WINDOW, 4096 if needed else 0), facts["layers"]
        if not needed and not values.checked(WINDOW, window, values.count):
            return
        given, usual = config.get(PERIOD, period), _with_window(period, layers)
        if isinstance(given, list) and tuple(given) != usual:
            raise CkptError(
                f"key {PERIOD!r} is a list, which llama.cpp does not read",
                found=str(given)[:80],
                expected=f"the layers that it has in its code: all but every {period}th",
            )
        present = (
            usual if isinstance(given, list) else _with_window(values.checked(PERIOD, given, values.count), layers)
        )
        if any(present):
            facts["attention.window"] = values.checked(WINDOW, window, values.whole)
        if any(present) and not all(present):
            facts["attention.window?"] = schema.PerLayer(present)

    return read


def windows(period: int, *, needed: bool = True, listed: bool = False) -> list[configs.Entry]:
    """The lines of a window that all but every `period`-th layer have. `needed`: there is one in every model. `listed`: the
    converter lists the layers, and llama.cpp passes over the list. A number it reads, and takes for the period."""

    said = [pattern(period), configs.LEFT_OUT] if listed else [configs.LEFT_OUT, pattern(None)]
    return [
        decided(
            [WINDOW, PERIOD],
            ["attention.window", "attention.window?"],
            read=every(period, needed),
            values={
                WINDOW: [configs.value_of("attention.window"), *([] if needed else [configs.LEFT_OUT])],
                PERIOD: said,
            },
            uses=["layers"],
            why=f"all layers but every {period}. have the window, unless a number says another period",
        )
    ]


def pattern(usual: int | None) -> configs.Said:
    """What says the layers with a window: their list where they are the `usual` ones, else a period."""

    def said(present: tuple[bool, ...]) -> object:
        count = len(present)
        if not any(present):
            return None
        if usual is not None and present == _with_window(usual, count):
            return list(present)
        return next((other for other in range(count + 1) if present == _with_window(other, count)), None)

    return configs.layers_of("attention.window", said)


def read_rotated(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    windowed = facts.present("attention.window")
    if windowed is not True:
        facts["attention.rotary?"] = windowed or schema.PerLayer([False] * facts["layers"])


def rotated_with_window() -> configs.Entry:
    return decided(
        [],
        ["attention.rotary?"],
        read=read_rotated,
        values={},
        uses=["layers", "attention.window", "attention.window?", "attention.rotary.*"],
        why="the layers with a window rotate, and no others, which llama.cpp has in its code",
    )


def own_theta() -> configs.Entry:
    """The theta of layers with a window, which llama.cpp reads, and which is that of all here."""
    return configs.repeats("rope.freq_base_swa", "rope.freq_base", written=False)


def _read_no_rope(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    rotates = schema.PerLayer((index + 1) % 4 != 0 for index in range(facts["layers"]))
    if not all(rotates):
        facts["attention.rotary?"] = rotates


def no_rope() -> configs.Entry:
    return decided(
        [],
        ["attention.rotary?"],
        read=_read_no_rope,
        values={},
        uses=["layers", "attention.rotary.*"],
        why="all layers but every fourth rotate, which llama.cpp has in its code",
    )


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
    scaling = f"{LATENT}.rotary.scaling"
    stretch, factor = facts.get(f"{scaling}.mscale_all_dim"), facts.get(f"{scaling}.factor")
    if facts.get(f"{scaling}.kind") is schema.RotaryKind.YARN and stretch and factor and factor > 1:
        width = facts[f"{LATENT}.nope_dim"] + facts[f"{LATENT}.rope_dim"]
        facts[f"{LATENT}.scale"] = width**-0.5 * (0.1 * stretch * math.log(factor) + 1.0) ** 2


def read_groups(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    count, used = (values.checked(key, config.get(key, 0), values.count) for key in GROUPS)
    if count > 1:
        facts.update({f"{ROUTER}.groups": count, f"{ROUTER}.group_top_k": used})
        facts[f"{ROUTER}.group_score"] = "top2"


def _read_q_rank(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """Enters the rank of compressed queries. Of models as large as the published ones without, llama.cpp loads them whole (src/models/deepseek2.cpp, is_lite)."""
    rank = values.checked("attention.q_lora_rank", config.get("attention.q_lora_rank", 0), values.count)
    layers, vocabulary = facts["layers"], facts["tokens.vocabulary"]
    if rank and (layers in (26, 27) or (layers, vocabulary) == (48, 128256)):
        raise CkptError(
            "llama.cpp loads no compressed queries of so many layers",
            found=f"attention.q_lora_rank = {rank}, with {layers} layers and {vocabulary} tokens",
        )
    if rank:
        facts[f"{LATENT}.q_rank"] = rank


def read_window(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    window = values.checked("attention.sliding_window", config.get("attention.sliding_window", 0), values.count)
    if window:
        facts["attention.window"] = window


def score(default: object = configs.REQUIRED) -> configs.Entry:
    """How experts are scored; what llama.cpp takes where no key says it is the `default`."""
    return key("expert_gating_func", f"{ROUTER}.score", default=default, via=one_of({1: "softmax", 2: "sigmoid"}))


def feed_forward(counted: str, *facts: str) -> list[configs.Entry]:
    """A width that two keys say, of which llama.cpp takes `feed_forward_length` for the tensors."""
    return [key("feed_forward_length", *facts, type=values.whole), configs.repeats(counted, "feed_forward_length")]


GROUPS = ("expert_group_count", "expert_group_used_count")

_BLOCK_KEYS = ("block_count", "nextn_predict_layers")
_PREDICTORS = ("embed_norm", "hidden_norm", "out_norm")


def _read_blocks(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """Enters how many layers there are, and how many after them predict a further token each."""
    blocks, further = _BLOCK_KEYS
    count = values.checked(further, config.get(further, 0), values.count)
    layers = values.checked(blocks, config.get(blocks), values.layers) - count
    if layers < 1:
        raise CkptError(f"key {further!r} counts all layers", found=f"{count} of {layers + count}")
    facts["layers"] = layers
    if count:
        facts["predictors.count"] = count
        for norm in _PREDICTORS:
            facts.update({f"predictors.{norm}.kind": "rms", f"predictors.{norm}.eps": facts["final_norm.eps"]})


def _further(facts: Facts) -> int:
    return facts.get("predictors.count") or 0


# fmt: off
# What every decoder of llama.cpp has.
DECODER = [
    *always({"kind": "decoder", "causal": True}),
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

# Of architectures whose further predictors llama.cpp loads.
BLOCKS = decided(_BLOCK_KEYS, ["layers", "predictors.*"], read=_read_blocks, uses=["final_norm.eps"],
            values={_BLOCK_KEYS: [(configs.Said(lambda facts: facts["layers"] + _further(facts), "all layers", _further),
                               configs.Said(_further, "those that predict further tokens", _further))]},
            why="the last of the layers, as many as nextn_predict_layers says, predict a further token each")

# What is as in a Llama. Of the tensors that stretch angles most architectures load none.
DENSE = Config("", [
    *DECODER,
    key("attention.head_count", "attention.heads", type=values.whole),
    key("attention.head_count_kv", "attention.groups", default=same_as("attention.head_count"), type=values.whole),
    derived("attention.key_length", "attention.head_dim", "hidden / attention.heads", of_facts=True),
    configs.repeats("attention.value_length", "attention.key_length"),
    key("feed_forward_length", "mlp.ffn", type=values.whole),
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in NORMS), type=values.positive),
    *norms("rms", *NORMS),
    *always({"mlp.gated": True, "mlp.activation": Activation.SILU}),
    rotary(),
    there("blk.*.attn_q.bias", "attention.q_bias"),
    there("blk.*.attn_k.bias", "attention.k_bias"),
    there("blk.*.attn_v.bias", "attention.v_bias"),
    there("blk.*.attn_output.bias", "attention.out_bias"),
    there("blk.*.ffn_up.bias", "mlp.up_bias"),
    there("blk.*.ffn_down.bias", "mlp.down_bias"),
    key("output.weight", "head.tied", default=False, via=one_of({False: True, True: False})),
])

# Of a tied head llama.cpp makes its own copy, but for architectures that ask for the tensor.
UNTIED = [fact_is("head.tied", False)]
NO_BIASES = ["attention.out_bias", "mlp.up_bias", "mlp.down_bias"]

CHOSEN = [
    key("expert_count", "mlp.moe.experts", type=values.whole),
    key("expert_used_count", f"{ROUTER}.top_k", type=values.whole),
]
MIXTURE = [*CHOSEN, fact_is(f"{ROUTER}.score", "softmax")]

# Layers with experts after some without, and how an expert is chosen, as DeepSeek has them.
DENSE_FIRST = [
    by_layer("leading_dense_block_count", "mlp.moe", ~rules.first_layers(), default=0),
    configs.in_other_layers("feed_forward_length", "mlp.ffn", than="mlp.moe", unused="unused_ffn", fallback="mlp.moe.ffn", type=values.whole),
]
CORRECTED = there("blk.*.exp_probs_b.bias", f"{ROUTER}.correction_bias")
ROUTED = [
    *CHOSEN,
    key("expert_feed_forward_length", "mlp.moe.ffn", type=values.whole),
    # zero is no scale, and not that of no experts, to llama.cpp (build_moe_ffn)
    key("expert_weights_scale", f"{ROUTER}.scale", default=1.0, type=values.positive),
    key("expert_weights_norm", f"{ROUTER}.normalise", default=False, type=values.flag),
    decided(GROUPS, [f"{ROUTER}.{name}" for name in ("groups", "group_top_k", "group_score")], read=read_groups,
            values={GROUPS: [(1, 1), (configs.value_of(f"{ROUTER}.groups"), configs.value_of(f"{ROUTER}.group_top_k"))]},
            why="llama.cpp takes the best groups by the sum of their two best experts, whatever the model"),
]
SHARED_COUNT = key("expert_shared_count", "mlp.moe.shared.ffn", type=values.whole, times="expert_feed_forward_length")
# the same width in one number
SHARED_WIDTH = ignore("expert_shared_feed_forward_length", why="expert_shared_count says it",
                      written=lambda facts: facts["mlp.moe.shared.ffn"], uses=["mlp.moe.shared.ffn"])

LLAMA = DENSE.replace("llama", rotary(loads=STRETCHING))

MIXTRAL = LLAMA.replace("llama, with experts",
    key("feed_forward_length", "mlp.moe.ffn", type=values.whole),
    *MIXTURE,
    fact_is(f"{ROUTER}.normalise", True),
    key_is("expert_weights_scale", 1.0, or_absent=True, written=False, why="llama.cpp reads it of other architectures"),
    without=["mlp.ffn", "mlp.up_bias", "mlp.down_bias"],
)

SMOLLM3 = DENSE.replace("smollm3",
    rotary(always=False),
    no_rope(),
    without=NO_BIASES,
)

QWEN2 = DENSE.replace("qwen2", without=NO_BIASES)

QWEN3 = DENSE.replace("qwen3",
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in (*NORMS, "attention.qk_norm")), type=values.positive),
    *norms("rms", "attention.qk_norm"),
    without=NO_BIASES,
)

# llama.cpp normalises the shares of chosen experts for qwen3moe, and not for qwen2moe and olmoe; no key says so.
QWEN2_MOE = QWEN2.replace("qwen2moe",
    *MIXTURE,
    key("expert_feed_forward_length", "mlp.moe.ffn", type=values.whole),
    key("expert_shared_feed_forward_length", "mlp.moe.shared.ffn", type=values.whole),
    *always({f"{ROUTER}.normalise": False, "mlp.moe.shared.gate": True}),
    note("feed_forward_length", "unused_ffn"),
    *UNTIED,
    without=["mlp.ffn", "output.weight"],
)

QWEN3_MOE = QWEN3.replace("qwen3moe",
    *MIXTURE,
    key("expert_feed_forward_length", "mlp.moe.ffn", type=values.whole),
    fact_is(f"{ROUTER}.normalise", True),
    note("feed_forward_length", "unused_ffn"),
    without=["mlp.ffn"],
)

OLMOE = QWEN3.replace("olmoe",
    *MIXTURE,
    key("feed_forward_length", "mlp.moe.ffn", type=values.whole),
    *always({f"{ROUTER}.normalise": False, "attention.qk_norm_whole": True}),
    *UNTIED,
    without=["mlp.ffn", "output.weight"],
)

OLMO2 = DENSE.replace("olmo2",
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in (*OUT_NORMS, "attention.qk_norm", "final_norm")), type=values.positive),
    *norms("rms", *OUT_NORMS, "attention.qk_norm"),
    fact_is("attention.qk_norm_whole", True),
    # OLMo 3, whose layers with a window rotate without the scaling of the others
    *windows(4, needed=False, listed=True),
    configs.where("attention.window", [configs.repeats("rope.freq_base_swa", "rope.freq_base")]),
    rotary(unscaled="attention.window"),
    *UNTIED,
    without=[*NO_BIASES, "output.weight", "attention.norm.kind", "mlp.norm.kind"],
)

GEMMA = DENSE.replace("gemma",
    *norms("rms", *NORMS, zero_centred=True),
    fact_is("mlp.activation", Activation.GELU_TANH),
    derived(None, "tokens.scale", "hidden ** 0.5", rounding="none", tolerance=1e-6, of_facts=True),
    fact_is("head.tied", True),
    without=[*NO_BIASES, "output.weight"],
)

GEMMA2 = GEMMA.replace("gemma2",
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in (*NORMS, *OUT_NORMS)), type=values.positive),
    *norms("rms", *OUT_NORMS, zero_centred=True),
    key("attn_logit_softcapping", "attention.softcap", default=50.0, type=values.positive),
    key("final_logit_softcapping", "head.softcap", default=30.0, type=values.positive),
    *windows(2),
    _scale(46),
)

GEMMA3 = GEMMA2.replace("gemma3",
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in (*NORMS, *OUT_NORMS, "attention.qk_norm")), type=values.positive),
    *norms("rms", "attention.qk_norm", zero_centred=True),
    key("final_logit_softcapping", "head.softcap", default=None, type=values.positive),
    *windows(6),
    _scale(62),
    rotary_by_window(),
    key("output.weight", "head.tied", default=False, via=one_of({False: True, True: False})),
    without=["attn_logit_softcapping", "attention.softcap"],
)

PHI3 = DENSE.replace("phi3",
    rotary(partial=True, loads=(SHORT, LONG)),
    decided(["attention.sliding_window"], ["attention.window"], read=read_window,
            # phi3.cpp reads the window, warns, and lets every position see all
            values={"attention.sliding_window": [0]}, why="a file may say a window, and llama.cpp computes without it"),
    without=[*NO_BIASES, "attention.q_bias", "attention.k_bias", "attention.v_bias"],
)

# Layer norms, with biases.
LAYER_NORMED = DENSE.replace("",
    key("attention.layer_norm_epsilon", *(f"{norm}.eps" for norm in NORMS), type=values.positive),
    *norms("layer", *NORMS, bias=True),
    *always({"mlp.gated": False, "mlp.activation": Activation.GELU_TANH}),
    without=["attention.layer_norm_rms_epsilon"],
)

ALL_BIASES = always(dict.fromkeys([*(f"attention.{part}_bias" for part in ("q", "k", "v", "out")), "mlp.up_bias", "mlp.down_bias"], True))
BIAS_TENSORS = [f"blk.*.{name}.bias" for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")]

STARCODER2 = LAYER_NORMED.replace("starcoder2",
    *ALL_BIASES,
    without=BIAS_TENSORS,
)

GPT2 = LAYER_NORMED.replace("gpt2",
    *ALL_BIASES,
    key("context_length", "positions.count", type=values.whole, noted="max_positions"),
    without=[*BIAS_TENSORS, "attention.rotary.*", "max_positions"],
)

GPT_NEOX = LAYER_NORMED.replace("gptneox",
    *ALL_BIASES,
    rotary(partial=True),
    key("use_parallel_residual", "parallel", type=values.flag),
    *UNTIED,
    without=[*BIAS_TENSORS, "output.weight"],
)

STABLELM = LAYER_NORMED.replace("stablelm",
    *always({"mlp.gated": True, "mlp.activation": Activation.SILU}),
    key("attention.layer_norm_epsilon", "attention.norm.eps", "final_norm.eps", type=values.positive),
    # by this tensor llama.cpp knows the two forms, and not by the key, which its converter may have from a default
    key("blk.*.ffn_norm.weight", "parallel", "shared_norm", default=False, via=one_of({True: False, False: True})),
    configs.where("!parallel", [configs.all_agree("attention.norm", "mlp.norm", why="all norms are alike")]),
    *ignore("use_parallel_residual", why="the tensors say it", written=lambda facts: facts["parallel"], uses=["parallel"]),
    rotary(partial=True),
    *UNTIED,
    without=[*NO_BIASES, "output.weight", "mlp.norm.kind", "mlp.norm.bias"],
)

DEEPSEEK2 = Config("deepseek2", [
    *(line for line in DECODER if "block_count" not in line.keys),
    BLOCKS,
    key("attention.head_count", f"{LATENT}.heads", type=values.whole),
    key_is("attention.head_count_kv", 1, why="a file of before the keys of all heads were one latent; convert the model again"),
    key("attention.kv_lora_rank", f"{LATENT}.kv_rank", type=values.whole),
    decided(["attention.q_lora_rank"], [f"{LATENT}.q_rank"], read=_read_q_rank,
            values={"attention.q_lora_rank": [configs.value_of(f"{LATENT}.q_rank"), 0]}, uses=["layers", "tokens.vocabulary"],
            why="0 where queries are not compressed, and llama.cpp takes those of 26 and of 27 layers, and of 48 with 128256 tokens, for such"),
    key("rope.dimension_count", f"{LATENT}.rope_dim", type=values.whole),
    key("attention.value_length_mla", f"{LATENT}.value_dim", type=values.whole),
    # heads are said by the width of q and k, and by that of the latent, which serves for all of them in place of k and v
    derived(None, f"{LATENT}.nope_dim", "attention.key_length_mla - rope.dimension_count"),
    *ignore("attention.key_length_mla", why="the elements that do not rotate follow from it",
            written=lambda facts: facts[f"{LATENT}.nope_dim"] + facts[f"{LATENT}.rope_dim"], uses=[f"{LATENT}.nope_dim", f"{LATENT}.rope_dim"]),
    *ignore("attention.key_length", why="follows from the latent and what rotates",
            written=lambda facts: facts[f"{LATENT}.kv_rank"] + facts[f"{LATENT}.rope_dim"], uses=[f"{LATENT}.kv_rank", f"{LATENT}.rope_dim"]),
    *ignore("attention.value_length", why="follows from the latent",
            written=lambda facts: facts[f"{LATENT}.kv_rank"], uses=[f"{LATENT}.kv_rank"]),
    key("attention.layer_norm_rms_epsilon", f"{LATENT}.norm.eps", f"{LATENT}.kv_norm.eps", "mlp.norm.eps", "final_norm.eps", type=values.positive),
    *norms("rms", f"{LATENT}.norm", f"{LATENT}.kv_norm", "mlp.norm", "final_norm"),
    configs.where(f"{LATENT}.q_rank", [*norms("rms", f"{LATENT}.q_norm"), configs.fact_as(f"{LATENT}.q_norm.eps", f"{LATENT}.kv_norm.eps")]),
    rotary(f"{LATENT}.rotary", head_dim=f"{LATENT}.rope_dim", latent=True, multiplier=0.1),  # a tenth is in the files (conversion/deepseek.py)
    decided([], [f"{LATENT}.scale"], read=_read_latent_scale, values={}, tolerance=1e-6,
            uses=[f"{LATENT}.rotary.*", f"{LATENT}.nope_dim", f"{LATENT}.rope_dim"],
            why="yarn's multiplier enters the scale of the scores squared"),
    *always({"mlp.gated": True, "mlp.activation": Activation.SILU}),
    *DENSE_FIRST,
    *ROUTED,
    CORRECTED,
    SHARED_COUNT,
    score(default=1),
    key("output.weight", "head.tied", default=False, via=one_of({False: True, True: False})),
])
# fmt: on


@schema.dataclass(frozen=True)
class Model:
    """An architecture of llama.cpp: its name in files, its config and its tables.

    `of` are the model types of transformers that are converted to it. `experts`: of two models of one architecture, the one with
    experts. `square`: the heads together are as wide as the model, as llama.cpp loads them. `as_many_keys`: there are as many heads
    of keys as of queries. `fewer_layers_than`: with so many layers llama.cpp loads another model under this name. `rounds`: its models are
    computed with whole ends of yarn's ramp, which they are trained without. `listed` are keys of the metadata with a list of one number per
    layer, which are parameters of this shape: tensor `blk.N.KEY` of the tables.
    """

    architecture: str
    config: Config
    tables: layouts.Tables
    of: tuple[str, ...]
    experts: bool | None = None
    square: bool = False
    as_many_keys: bool = False
    fewer_layers_than: int | None = None
    rounds: bool = False
    listed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def lacks(self, architecture: Architecture) -> str | None:
        """Why llama.cpp does not load such a model under this name; None where it does."""
        decoder = architecture.decoder
        attention = decoder.layers[0].attention if decoder else None
        if attention is None:
            return None
        width = attention.heads * attention.head_dim
        if self.square and width != architecture.hidden:
            return f"llama.cpp wants heads * head_dim = hidden, and attention.head_dim = {attention.head_dim} gives {width} of {architecture.hidden}"
        layers = len(decoder.layers) if decoder else 0
        if self.fewer_layers_than is not None and layers >= self.fewer_layers_than:
            return f"with {self.fewer_layers_than} layers and more llama.cpp loads another model, and layers = {layers}"
        if self.as_many_keys and attention.groups != attention.heads:
            return f"llama.cpp wants as many heads of keys as of queries, and attention.groups = {attention.groups}"
        return None


_EXPERTS = layouts.Choice("experts", ("stacked", "single"), default="stacked",
    help="the experts of a layer lie in one tensor, or each in its own, as in files of before April 2024")  # fmt: skip

# fmt: off
MODELS = [
    Model("llama",      LLAMA,      layouts.Tables([weights.MODEL, weights.PAIRED_LAYER]), ("llama", "mistral", "iquestcoder"), experts=False),
    Model("llama",      MIXTRAL,    layouts.Tables([weights.MODEL, weights.MIXTRAL_LAYER], [_EXPERTS]), ("mixtral",), experts=True),
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
    Model("phi3",       PHI3,       layouts.Tables([weights.MODEL, weights.PHI3_LAYER]), ("phi3",), square=True),
    Model("starcoder2", STARCODER2, layouts.Tables([weights.MODEL_WITH_BIAS, weights.LAYER_NORM_LAYER]), ("starcoder2",), square=True),
    Model("gpt2",       GPT2,       layouts.Tables([weights.MODEL_WITH_POSITIONS, weights.FUSED_LAYER]), ("gpt2",), square=True),
    Model("gptneox",    GPT_NEOX,   layouts.Tables([weights.MODEL_WITH_BIAS, weights.FUSED_LAYER]), ("gpt_neox",), square=True, as_many_keys=True),
    Model("stablelm",   STABLELM,   layouts.Tables([weights.MODEL_WITH_BIAS, weights.LAYER_NORM_LAYER]), ("stablelm",), square=True),
    Model("deepseek2",  DEEPSEEK2,  layouts.Tables([weights.MODEL, weights.DEEPSEEK2_LAYER, *weights.PREDICTORS, weights.DEEPSEEK2_PREDICTOR]), ("deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite")),
]
# fmt: on
