"""What the args of a Megatron checkpoint mean.

A checkpoint stores the whole command line, 70 attributes in 2020 and 820 in core 0.19. The lines below name those
that say what the model is; `neutral` are those that would make it something we do not describe, with the values
that do not. All others tell how to train, and are left aside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ckpt_core.architecture import Activation, Architecture, Facts, PerLayer, RotaryKind
from ckpt_core.errors import CkptError, Refusal
from ckpt_core.layout import Config, Custom, custom, field, fixed, note, uniform

_LLAMA3 = {"low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_positions": 8192}
# MLATransformerConfig: what holds where the args of a version have no such key
_YARN = {"rotary_scaling_factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
_POSITIONS = 2048


def neutral(key: str, *values: object) -> Custom:
    """A key under which Megatron computes something else unless it has one of `values`; the first is written."""

    def read(config: Mapping[str, object], facts: Facts, notes: dict[str, object]) -> None:
        if config.get(key) not in (None, *values):
            raise CkptError(f"args.{key} asks for something that is not supported", found=repr(config[key])[:80], expected=repr(values[0]))

    return custom([key], [], read=read, write=lambda facts, notes, config: config.update({key: values[0]}))


# --- attention -----------------------------------------------------------------------------------------------------


def _read_groups(config: Mapping[str, object], facts: Facts) -> None:
    # num_query_groups is 1 by default, and read only with --group-query-attention.
    facts["attention.groups"] = config["num_query_groups"] if config.get("group_query_attention") else config["num_attention_heads"]


def _write_groups(facts: Facts, config: dict[str, object]) -> None:
    groups, heads = uniform(facts, "attention.groups"), uniform(facts, "attention.heads")
    config |= {"group_query_attention": groups != heads, "num_query_groups": groups if groups != heads else 1}


def _read_head_dim(config: Mapping[str, object], facts: Facts) -> None:
    given = config.get("kv_channels")
    facts["attention.head_dim"] = config["hidden_size"] // config["num_attention_heads"] if given is None else given


def _read_biases(config: Mapping[str, object], facts: Facts, latent: bool) -> None:
    add = config.get("add_bias_linear")
    if add is None:  # until core 0.4 the flag was the opposite
        add = not config.get("disable_bias_linear", False)
    facts["mlp.up_bias"] = facts["mlp.down_bias"] = bool(add)
    if latent:
        facts["latent_attention.bias"] = bool(add)
    else:
        facts["attention.out_bias"] = bool(add)
        for part in "qkv":
            facts[f"attention.{part}_bias"] = bool(add or config.get("add_qkv_bias", False))


def _write_biases(facts: Facts, config: dict[str, object], latent: bool) -> None:
    names = ["mlp.up_bias", "mlp.down_bias", "latent_attention.bias" if latent else "attention.out_bias"]
    linear = {uniform(facts, name) for name in names}
    inputs = set() if latent else {uniform(facts, f"attention.{part}_bias") for part in "qkv"}
    if len(linear) > 1 or len(inputs) > 1 or (linear == {True} and inputs == {False}):
        raise Refusal(
            "add_bias_linear is one flag for all linear layers, and add_qkv_bias one for q, k and v",
            found=", ".join(f"{name} = {facts[name]}" for name in [*names, *(() if latent else [f"attention.{part}_bias" for part in "qkv"])]),
        )
    add = linear == {True}
    config |= {"add_bias_linear": add, "disable_bias_linear": not add, "add_qkv_bias": True in inputs and not add}


def _read_residual(config: Mapping[str, object], facts: Facts) -> None:
    facts["residual_from_norm"] = bool(config.get("apply_residual_connection_post_layernorm", False))


def _window_layers(config: Mapping[str, object], count: int) -> list[bool]:
    """is_layer_window_attention (transformer/utils.py): every layer, but each n-th, or those a list names."""
    skip = config.get("window_attn_skip_freq")
    if skip is None:
        return [True] * count
    if isinstance(skip, int):
        return [(index + 1) % skip != 0 for index in range(count)]
    return [bool(windowed) for windowed in _per_layer(skip, count, "window_attn_skip_freq")]


def _read_window(config: Mapping[str, object], facts: Facts) -> None:
    size = config.get("window_size")
    if not size or size[0] < 0:
        return
    if size[1] != 0:
        raise CkptError("key 'window_size' looks ahead", found=str(tuple(size)), expected="(w - 1, 0)")
    windowed = _window_layers(config, _count(config))
    facts["attention.window"] = size[0] + 1  # Megatron counts the positions before the query
    if not all(windowed):
        facts["attention.window?"] = PerLayer(windowed)


def _write_window(facts: Facts, config: dict[str, object]) -> None:
    present, window = facts.present("attention.window"), uniform(facts, "attention.window")
    config["window_size"] = None if window is None else (window - 1, 0)
    config["window_attn_skip_freq"] = [int(here) for here in present] if isinstance(present, PerLayer) else None


def _read_softmax(config: Mapping[str, object], facts: Facts) -> None:
    kind = config.get("softmax_type") or "vanilla"
    if kind not in ("vanilla", "learnable"):
        raise CkptError("key 'softmax_type' has a value that is not supported", found=repr(kind), expected="vanilla or learnable")
    facts["attention.sinks"] = kind == "learnable"
    if config.get("softmax_scale") is not None:
        facts["attention.scale"] = config["softmax_scale"]


def _write_softmax(facts: Facts, config: dict[str, object]) -> None:
    config["softmax_type"] = "learnable" if uniform(facts, "attention.sinks") else "vanilla"
    if facts.get("attention.scale") is not None:  # only the config class has softmax_scale, no argument
        raise Refusal("no argument sets the attention scale", found=f"attention.scale = {facts['attention.scale']}")


# --- the MLP -------------------------------------------------------------------------------------------------------


def _read_activation(config: Mapping[str, object], facts: Facts) -> None:
    facts["mlp.gated"] = bool(config.get("swiglu") or config.get("quick_geglu"))
    legacy = config.get("use_legacy_models", False)
    if config.get("swiglu"):
        facts["mlp.activation"] = Activation.SILU
    elif config.get("quick_geglu"):
        facts["mlp.activation"] = Activation.GELU_QUICK
    elif config.get("squared_relu"):
        facts["mlp.activation"] = Activation.RELU_SQUARED
    # The fused kernel (the default since 2020) computes the tanh form, the function it replaces the erf form.
    # --openai-gelu is read by the legacy model alone; GPTModel of Megatron-Core never looks at it.
    elif config.get("bias_gelu_fusion") or (legacy and config.get("openai_gelu")):
        facts["mlp.activation"] = Activation.GELU_TANH
    else:
        facts["mlp.activation"] = Activation.GELU_ERF


_ACTIVATIONS = {
    (Activation.SILU, True): {"swiglu": True},
    (Activation.GELU_QUICK, True): {"quick_geglu": True},
    (Activation.RELU_SQUARED, False): {"squared_relu": True},
    (Activation.GELU_TANH, False): {"bias_gelu_fusion": True},
    (Activation.GELU_ERF, False): {},
}


def _write_activation(facts: Facts, config: dict[str, object]) -> None:
    kind = (uniform(facts, "mlp.activation"), uniform(facts, "mlp.gated"))
    if kind not in _ACTIVATIONS:
        found = f"mlp.activation = {kind[0]}, mlp.gated = {kind[1]}"
        raise Refusal("no argument gives this activation", found=found, expected=", ".join(" ".join(given) or "gelu (erf)" for given in _ACTIVATIONS.values()))
    if kind[0] is Activation.GELU_TANH and not facts.get("mlp.up_bias"):
        # validate_args turns bias_gelu_fusion off where there is no bias, and leaves the erf form
        raise Refusal("the tanh form of GELU exists only fused with a bias", found="mlp.up_bias = False")
    flags = {"swiglu": False, "quick_geglu": False, "squared_relu": False, "openai_gelu": False, "bias_gelu_fusion": False}
    config |= flags | _ACTIVATIONS[kind]


def _count(config: Mapping[str, object]) -> int:
    count = config.get("num_layers")
    if type(count) is not int or not 0 < count <= 100_000:
        raise CkptError("key 'num_layers' is not a number of layers", found=repr(count))
    return count


def _per_layer(values: object, count: int, key: str) -> list:
    if not isinstance(values, list | tuple) or len(values) != count:
        raise CkptError(f"key {key!r} does not give one value per layer", found=repr(values)[:80], expected=f"{count} values")
    return list(values)


def _sparse(config: Mapping[str, object], count: int) -> list[bool]:
    frequency = config.get("moe_layer_freq", 1)
    if isinstance(frequency, int):
        return [index % frequency == 0 for index in range(count)]
    return [bool(moe) for moe in _per_layer(frequency, count, "moe_layer_freq")]


def _read_mlp(config: Mapping[str, object], facts: Facts, notes: dict[str, object]) -> None:
    count = facts["layers"] = _count(config)
    width = config.get("ffn_hidden_size")
    if width is None:  # validate_args
        width = int(4 * config["hidden_size"] * 2 / 3 / 64) * 64 if config.get("swiglu") else 4 * config["hidden_size"]
    experts = config.get("num_experts")
    if isinstance(experts, list | tuple):  # core 0.4 and before: one number, or one per virtual stage
        (experts,) = set(experts)
    if experts is None:
        facts["mlp.ffn"] = width
        return
    sparse = _sparse(config, count)
    if all(sparse):
        notes["unused_ffn"] = width
    else:
        facts["mlp.ffn"] = width
        facts["mlp.moe?"], facts["mlp.ffn?"] = PerLayer(sparse), PerLayer(not moe for moe in sparse)
    if not any(sparse):
        del facts["mlp.moe?"], facts["mlp.ffn?"]
        return
    facts["mlp.moe.experts"] = experts
    facts["mlp.moe.ffn"] = config.get("moe_ffn_hidden_size") or width
    shared = config.get("moe_shared_expert_intermediate_size")
    if shared is not None:
        facts["mlp.moe.shared.ffn"] = shared
        facts["mlp.moe.shared.gate"] = bool(config.get("moe_shared_expert_gate", False))
    _read_router(config, facts)


def _read_router(config: Mapping[str, object], facts: Facts) -> None:
    """topk_routing_with_score_function (moe/moe_utils.py)."""
    router = "mlp.moe.router"
    top_k, score = config.get("moe_router_topk", 2), config.get("moe_router_score_function") or "softmax"
    before = bool(config.get("moe_router_pre_softmax", False))
    facts[f"{router}.top_k"], facts[f"{router}.score"] = top_k, score
    # The softmax is over the chosen logits unless it comes before the choice; chosen sigmoids are divided by their sum.
    facts[f"{router}.normalise"] = (not before) if score == "softmax" else top_k > 1
    facts[f"{router}.scale"] = config.get("moe_router_topk_scaling_factor") or 1.0
    facts[f"{router}.correction_bias"] = bool(config.get("moe_router_enable_expert_bias", False))
    groups, chosen = config.get("moe_router_num_groups"), config.get("moe_router_group_topk")
    if groups is not None and chosen is not None:
        facts[f"{router}.groups"], facts[f"{router}.group_top_k"] = groups, chosen
        facts[f"{router}.group_score"] = _group_score(top_k, chosen, score == "softmax" and not before)


def _group_score(top_k: int, chosen: int, on_logits: bool) -> str:
    # A group is scored by the sum of its best topk / group_topk experts, where HF takes the best one or the best two.
    kind = {1: "max", 2: "top2"}.get(top_k // chosen)
    if kind is None or (kind == "top2" and on_logits):
        raise CkptError(
            "groups of experts are scored in a way that is not supported",
            found=f"moe_router_topk = {top_k}, moe_router_group_topk = {chosen}" + (", before the softmax" if on_logits else ""),
            expected="a quotient of 1 or 2",
        )
    return kind


def _write_mlp(facts: Facts, notes: Mapping[str, object], config: dict[str, object]) -> None:
    sparse = facts.present("mlp.moe")
    width = uniform(facts, "mlp.ffn")
    config["num_layers"] = facts["layers"]
    config |= {"num_experts": None, "moe_layer_freq": 1, "moe_ffn_hidden_size": None, "ffn_hidden_size": width}
    config |= {"moe_shared_expert_intermediate_size": None, "moe_shared_expert_gate": False}
    if sparse is False:
        config |= {"moe_router_topk": 2, "moe_router_score_function": "softmax", "moe_router_pre_softmax": False}
        config |= {"moe_router_topk_scaling_factor": None, "moe_router_enable_expert_bias": False}
        config |= {"moe_router_num_groups": None, "moe_router_group_topk": None}
        return
    experts = uniform(facts, "mlp.moe.experts")
    config["num_experts"], config["moe_ffn_hidden_size"] = experts, uniform(facts, "mlp.moe.ffn")
    config["ffn_hidden_size"] = width if width is not None else notes.get("unused_ffn") or config["moe_ffn_hidden_size"]
    if isinstance(sparse, PerLayer):
        config["moe_layer_freq"] = [int(moe) for moe in sparse]
    if facts.present("mlp.moe.shared"):
        config["moe_shared_expert_intermediate_size"] = uniform(facts, "mlp.moe.shared.ffn")
        config["moe_shared_expert_gate"] = uniform(facts, "mlp.moe.shared.gate")
    _write_router(facts, config)


def _write_router(facts: Facts, config: dict[str, object]) -> None:
    top_k, score, normalise = (uniform(facts, f"mlp.moe.router.{name}") for name in ("top_k", "score", "normalise"))
    biased, groups, chosen = (uniform(facts, f"mlp.moe.router.{name}") for name in ("correction_bias", "groups", "group_top_k"))
    scale = uniform(facts, "mlp.moe.router.scale")
    if score == "sigmoid" and normalise != (top_k > 1):
        raise Refusal("the chosen sigmoid scores are always divided by their sum", found=f"mlp.moe.router.normalise = {normalise}")
    if biased and score != "sigmoid":
        raise Refusal("only a sigmoid router has expert_bias", found=f"mlp.moe.router.score = {score}")
    if uniform(facts, "mlp.moe.router.bias") and not uniform(facts, "mlp.up_bias"):
        raise Refusal("the router has a bias only with add_bias_linear", found="mlp.moe.router.bias = True")
    if groups is not None:
        wanted = uniform(facts, "mlp.moe.router.group_score")
        quotient = top_k // chosen
        if {1: "max", 2: "top2"}.get(quotient) != wanted or (wanted == "top2" and score == "softmax" and normalise):
            raise Refusal(
                "a group of experts is scored by the sum of its best topk / group_topk experts",
                found=f"mlp.moe.router.group_score = {wanted}, top_k = {top_k}, group_top_k = {chosen}",
            )
    config |= {"moe_router_topk": top_k, "moe_router_score_function": score, "moe_router_pre_softmax": score == "softmax" and not normalise}
    config |= {"moe_router_topk_scaling_factor": None if scale == 1.0 else scale, "moe_router_enable_expert_bias": bool(biased)}
    config |= {"moe_router_num_groups": groups, "moe_router_group_topk": chosen}


# --- norms ---------------------------------------------------------------------------------------------------------

_KINDS = {"LayerNorm": "layer", "RMSNorm": "rms"}


def _block_norms(latent: bool) -> list[str]:
    return ["latent_attention.norm" if latent else "attention.norm", "mlp.norm", "final_norm"]


def _inner_norms(facts: Mapping[str, object], latent: bool) -> list[str]:
    if not latent:
        return ["attention.qk_norm"]
    return ["latent_attention.kv_norm", *(["latent_attention.q_norm"] if facts.get("latent_attention.q_rank") is not None else [])]


def _read_norms(config: Mapping[str, object], facts: Facts, latent: bool) -> None:
    kind = _KINDS.get(str(config.get("normalization") or "LayerNorm"))
    if kind is None:
        raise CkptError("key 'normalization' has an unknown value", found=repr(config["normalization"]), expected=", ".join(_KINDS))
    # layernorm_epsilon until 23.04 and again since core 0.16; norm_epsilon between. The other name may linger.
    eps = config.get("layernorm_epsilon", config.get("norm_epsilon"))
    centred = config.get("layernorm_zero_centered_gamma") or config.get("apply_layernorm_1p") or False
    names = _block_norms(latent)
    if config.get("qk_layernorm"):
        names += _inner_norms(facts, latent)
    elif latent:
        raise CkptError("latent attention without --qk-layernorm has no norms on its latents; that is not supported", found="qk_layernorm = False")
    for name in names:
        facts[f"{name}.kind"], facts[f"{name}.eps"] = kind, 1e-5 if eps is None else eps
        facts[f"{name}.bias"], facts[f"{name}.zero_centred"] = kind == "layer", bool(centred)


def _write_norms(facts: Facts, config: dict[str, object], latent: bool) -> None:
    inner = _inner_norms(facts, latent)
    present = latent or facts.present("attention.qk_norm")
    names = [*_block_norms(latent), *(inner if present else [])]
    kinds = {tuple(facts.get(f"{name}.{part}") for part in ("kind", "eps", "weight", "bias", "zero_centred")) for name in names}
    found = "; ".join(f"{name}: " + " ".join(str(facts.get(f"{name}.{part}")) for part in ("kind", "eps", "weight", "bias")) for name in names)
    if len(kinds) > 1 or any(isinstance(value, PerLayer) for value in next(iter(kinds))):
        raise Refusal("all norms of a model are of one kind", found=found)
    ((kind, eps, weight, bias, centred),) = kinds
    if kind is None:
        raise Refusal("it has a norm before attention, before the MLP and at the end", found=found)
    if not weight or bias != (kind == "layer"):
        raise Refusal("a LayerNorm has weight and bias, an RMSNorm a weight", found=found)
    config["normalization"] = next(name for name, value in _KINDS.items() if value == kind)
    config |= {"layernorm_epsilon": eps, "norm_epsilon": eps}
    config |= {"layernorm_zero_centered_gamma": centred, "apply_layernorm_1p": centred, "qk_layernorm": bool(present)}


# --- positions -----------------------------------------------------------------------------------------------------


def _read_positions(config: Mapping[str, object], facts: Facts, notes: dict[str, object], attention: str) -> None:
    kind = config.get("position_embedding_type") or "learned_absolute"
    if config.get("use_rotary_position_embeddings"):
        kind = "rope"
    if config.get("max_position_embeddings") is not None:
        notes["max_positions"] = config["max_position_embeddings"]
    latent = attention == "latent_attention"
    if kind == "learned_absolute" and not latent:
        facts["positions.count"] = config["max_position_embeddings"]
    elif kind == "rope" or latent:  # MLASelfAttention rotates by itself, whatever the model's embedding type
        if latent and kind == "learned_absolute":
            facts["positions.count"] = config["max_position_embeddings"]
        _read_rotary(config, facts, attention)
    elif kind != "none":
        raise CkptError("key 'position_embedding_type' has a value that is not supported", found=repr(kind), expected="learned_absolute, rope or none")


def _read_rotary(config: Mapping[str, object], facts: Facts, attention: str) -> None:
    rotary = f"{attention}.rotary"
    facts[f"{rotary}.theta"] = _first(config.get("rotary_base"), 10000.0)
    facts[f"{rotary}.fraction"] = _first(config.get("rotary_percent"), 1.0)
    latent = attention == "latent_attention"
    scaling: dict[str, object] = {}
    interpolation = config.get("rotary_seq_len_interpolation_factor")
    if latent and (config.get("rope_type") or "yarn") == "yarn":  # the default of MLATransformerConfig
        scaling = _read_yarn(config, facts)
    elif config.get("use_rope_scaling"):
        # rotary_pos_embedding.py, _apply_scaling: all but the factor are constants of the code
        scaling = {"kind": RotaryKind.LLAMA3, "factor": _first(config.get("rope_scaling_factor"), 8.0), **_LLAMA3}
    if interpolation not in (None, 1, 1.0):
        if scaling:
            raise CkptError("positions are both interpolated and scaled", found=f"rotary_seq_len_interpolation_factor = {interpolation}")
        scaling = {"kind": RotaryKind.LINEAR, "factor": interpolation}
    for name, value in scaling.items():
        facts[f"{rotary}.scaling.{name}"] = value
    unrotated = config.get("no_rope_freq")
    if unrotated:
        count = _count(config)
        without = [(index + 1) % unrotated == 0 for index in range(count)] if isinstance(unrotated, int) else _per_layer(unrotated, count, "no_rope_freq")
        if any(without):
            facts[f"{rotary}?"] = PerLayer(not here for here in without)


def _first(value: object, default: object) -> object:
    return default if value is None else value


def _read_yarn(config: Mapping[str, object], facts: Facts) -> dict[str, object]:
    value = {key: _first(config.get(key), default) for key, default in _YARN.items()}
    factor = value["rotary_scaling_factor"]
    if factor == 1.0:
        return {}
    mscale, all_dim = value["mscale"], value["mscale_all_dim"]
    # The scale of the scores follows mscale_all_dim; until 0.12 it followed mscale. Where they agree it is the same.
    width = facts["latent_attention.nope_dim"] + facts["latent_attention.rope_dim"]
    stretched = 0.1 * all_dim * math.log(factor) + 1.0 if factor > 1 else 1.0
    if stretched != 1.0:
        facts["latent_attention.scale"] = stretched * stretched / math.sqrt(width)
    return {
        "kind": RotaryKind.YARN,
        "factor": factor,
        "original_positions": value["original_max_position_embeddings"],
        "beta_fast": value["beta_fast"],
        "beta_slow": value["beta_slow"],
        "mscale": mscale,
        "mscale_all_dim": all_dim,
    }


def _write_positions(facts: Facts, notes: Mapping[str, object], config: dict[str, object], attention: str) -> None:
    learned, rotary = facts.get("positions.count"), f"{attention}.rotary"
    theta = uniform(facts, f"{rotary}.theta")
    if learned is not None and theta is not None:
        raise Refusal("positions are either learned or rotary", found=f"positions.count = {learned}, {rotary}.theta = {theta}")
    kind = "learned_absolute" if learned is not None else "none" if theta is None else "rope"
    # check_checkpoint_args compares add_position_embedding with the command line, where it is True unless turned off
    config |= {"position_embedding_type": kind, "use_rotary_position_embeddings": False, "add_position_embedding": True}
    config["max_position_embeddings"] = learned or notes.get("max_positions") or _POSITIONS
    config["seq_length"] = config["max_position_embeddings"]
    config |= {"rotary_base": 10000, "rotary_percent": 1.0, "rotary_interleaved": False, "rotary_seq_len_interpolation_factor": None}
    config |= {"use_rope_scaling": False, "rope_scaling_factor": 8.0, "rope_type": "rope", "no_rope_freq": None}
    if theta is None:
        return
    config["rotary_base"] = int(theta) if theta == int(theta) else theta  # --rotary-base is an integer
    config["rotary_percent"] = uniform(facts, f"{rotary}.fraction")
    rotated = facts.present(rotary)
    if isinstance(rotated, PerLayer):
        config["no_rope_freq"] = [int(not here) for here in rotated]
    _write_scaling(facts, config, attention)


def _write_scaling(facts: Facts, config: dict[str, object], attention: str) -> None:
    prefix = f"{attention}.rotary.scaling"
    given = {name.removeprefix(f"{prefix}."): uniform(facts, name) for name in facts if name.startswith(f"{prefix}.")}
    kind = given.pop("kind", None)
    scale = facts.get("latent_attention.scale")
    if kind is RotaryKind.YARN and attention == "latent_attention":
        scale = _write_yarn(facts, given, config)
    elif kind is RotaryKind.LLAMA3:
        wrong = {name: given[name] for name, value in _LLAMA3.items() if given.get(name) != value}
        if wrong:
            raise Refusal("use_rope_scaling has these numbers built in", found=str(wrong), expected=str(_LLAMA3))
        config |= {"use_rope_scaling": True, "rope_scaling_factor": given["factor"]}
    elif kind is RotaryKind.LINEAR:
        config["rotary_seq_len_interpolation_factor"] = given["factor"]
    elif kind is not None:
        raise Refusal("it has no such scaling of rotary positions", found=f"{prefix}.kind = {kind}", expected="linear, llama3, or yarn with latent attention")
    if scale is not None:
        raise Refusal("no argument sets the scale of latent attention", found=f"latent_attention.scale = {scale}")


def _write_yarn(facts: Facts, given: Mapping[str, object], config: dict[str, object]) -> object:
    """Enter yarn; returns the attention scale that it does not imply, if the model has one."""
    if given.get("attention_factor") is not None or given.get("truncate") is False:
        raise Refusal("yarn has no attention_factor and rounds its range", found=str(dict(given)))
    mscale, all_dim, factor = given.get("mscale"), given.get("mscale_all_dim") or 0.0, given["factor"]
    config |= {"rope_type": "yarn", "rotary_scaling_factor": factor, "original_max_position_embeddings": given["original_positions"]}
    config |= {"beta_fast": given.get("beta_fast") or 32.0, "beta_slow": given.get("beta_slow") or 1.0}
    config |= {"mscale": 1.0 if mscale is None else mscale, "mscale_all_dim": all_dim}
    if not all_dim and mscale not in (None, 1.0):
        # HF ignores mscale where mscale_all_dim is 0; Megatron does not
        raise Refusal("yarn with mscale but without mscale_all_dim", found=f"mscale = {mscale}")
    width = uniform(facts, "latent_attention.nope_dim") + uniform(facts, "latent_attention.rope_dim")
    stretched = 0.1 * all_dim * math.log(factor) + 1.0 if factor > 1 else 1.0
    implied, scale = stretched * stretched / math.sqrt(width), facts.get("latent_attention.scale")
    return None if math.isclose(scale or width**-0.5, implied, rel_tol=1e-6) else scale or width**-0.5


# --- vocabulary ----------------------------------------------------------------------------------------------------


def _read_vocabulary(config: Mapping[str, object], facts: Facts) -> None:
    padded = config["padded_vocab_size"]
    known = [size for key in ("orig_vocab_size", "vocab_size") if type(size := config.get(key)) is int and 0 < size <= padded]
    facts["tokens.padded_vocabulary"], facts["tokens.vocabulary"] = padded, max(known, default=padded)


def _write_vocabulary(facts: Facts, config: dict[str, object]) -> None:
    config["padded_vocab_size"] = facts["tokens.padded_vocabulary"]
    config["vocab_size"] = config["orig_vocab_size"] = facts["tokens.vocabulary"]


def _common(attention: str) -> list:
    """The lines that models with usual and with latent attention share; `attention` is the path of theirs."""
    latent = attention == "latent_attention"
    # fmt: off
    return [
        fixed("kind", "decoder"),
        fixed("causal", True),
        field("hidden_size", "hidden"),
        field("num_attention_heads", f"{attention}.heads"),
        custom(["num_layers", "ffn_hidden_size", "num_experts", "moe_layer_freq", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size",
                "moe_shared_expert_gate", "moe_router_topk", "moe_router_score_function", "moe_router_pre_softmax", "moe_router_num_groups",
                "moe_router_group_topk", "moe_router_topk_scaling_factor", "moe_router_enable_expert_bias"],
               ["layers", "mlp.ffn", "mlp.ffn?", "mlp.moe?", "mlp.moe.*", "mlp.moe.shared?"],
               read=_read_mlp, write=_write_mlp),
        custom(["swiglu", "quick_geglu", "squared_relu", "openai_gelu", "bias_gelu_fusion", "use_legacy_models"],
               ["mlp.activation", "mlp.gated"],
               read=lambda config, facts, notes: _read_activation(config, facts),
               write=lambda facts, notes, config: _write_activation(facts, config)),
        custom(["add_bias_linear", "disable_bias_linear", "add_qkv_bias"],
               ["mlp.up_bias", "mlp.down_bias", *(["latent_attention.bias"] if latent else [f"attention.{part}_bias" for part in ("q", "k", "v", "out")])],
               read=lambda config, facts, notes: _read_biases(config, facts, latent),
               write=lambda facts, notes, config: _write_biases(facts, config, latent)),
        custom(["normalization", "layernorm_epsilon", "norm_epsilon", "layernorm_zero_centered_gamma", "apply_layernorm_1p", "qk_layernorm"],
               [f"{name}.*" for name in (*_block_norms(latent), *(["latent_attention.kv_norm", "latent_attention.q_norm"] if latent else ["attention.qk_norm"]))],
               read=lambda config, facts, notes: _read_norms(config, facts, latent),
               write=lambda facts, notes, config: _write_norms(facts, config, latent)),
        custom(["position_embedding_type", "use_rotary_position_embeddings", "add_position_embedding", "max_position_embeddings", "seq_length",
                "rotary_base", "rotary_percent", "rotary_seq_len_interpolation_factor", "use_rope_scaling", "rope_scaling_factor",
                "no_rope_freq", "rope_type", *_YARN],
               ["positions.count", f"{attention}.rotary.*", f"{attention}.rotary?", *(["latent_attention.scale"] if latent else [])],
               read=lambda config, facts, notes: _read_positions(config, facts, notes, attention),
               write=lambda facts, notes, config: _write_positions(facts, notes, config, attention)),
        note("rotary_interleaved", "interleaved"),
        custom(["padded_vocab_size", "vocab_size", "orig_vocab_size"], ["tokens.vocabulary", "tokens.padded_vocabulary"],
               read=lambda config, facts, notes: _read_vocabulary(config, facts),
               write=lambda facts, notes, config: _write_vocabulary(facts, config)),
        custom(["untie_embeddings_and_output_weights"], ["head.tied"],
               read=lambda config, facts, notes: facts.update({"head.tied": not config.get("untie_embeddings_and_output_weights", False)}),
               write=lambda facts, notes, config: config.update(untie_embeddings_and_output_weights=_untied(facts))),
        custom(["apply_residual_connection_post_layernorm"], ["residual_from_norm"],
               read=lambda config, facts, notes: _read_residual(config, facts),
               write=lambda facts, notes, config: config.update(apply_residual_connection_post_layernorm=uniform(facts, "residual_from_norm"))),
        note("init_method_std", "initializer_range"),
        # Megatron asks its tokenizer for these; they are kept in the args for formats that have them in a config.
        note("bos_token_id", "bos"),
        note("eos_token_id", "eos"),
        note("pad_token_id", "pad"),
        # what would make it another model
        neutral("qk_l2_norm", False),
        neutral("attention_output_gate", False),
        neutral("experimental_attention_variant", None),
        neutral("linear_attention_freq", None),
        neutral("is_hybrid_model", False),
        neutral("hybrid_override_pattern", None),
        neutral("hybrid_layer_pattern", None),
        neutral("heterogeneous_layers_config_path", None),
        neutral("heterogeneous_layers_config_encoded_json", None),
        neutral("retro_add_retriever", False),
        neutral("glu_linear_offset", 0.0),
        neutral("activation_func_clamp_value", None),
        neutral("moe_latent_size", None),
        neutral("moe_apply_probs_on_input", False),
        neutral("moe_router_topk_limited_devices", None),
        neutral("use_mup", False),
    ]
    # fmt: on


def _untied(facts: Facts) -> bool:
    if "head.tied" not in facts:
        raise Refusal("it has a head over the vocabulary", found="no head")
    return not facts["head.tied"]


# fmt: off
GPT = Config("Megatron's GPTModel", [
    *_common("attention"),
    neutral("multi_latent_attention", False),
    custom(["group_query_attention", "num_query_groups"], ["attention.groups"],
           read=lambda config, facts, notes: _read_groups(config, facts),
           write=lambda facts, notes, config: _write_groups(facts, config)),
    custom(["kv_channels"], ["attention.head_dim"],
           read=lambda config, facts, notes: _read_head_dim(config, facts),
           write=lambda facts, notes, config: config.update(kv_channels=uniform(facts, "attention.head_dim"))),
    custom(["window_size", "window_attn_skip_freq"], ["attention.window", "attention.window?"],
           read=lambda config, facts, notes: _read_window(config, facts),
           write=lambda facts, notes, config: _write_window(facts, config)),
    custom(["softmax_type", "softmax_scale"], ["attention.sinks", "attention.scale"],
           read=lambda config, facts, notes: _read_softmax(config, facts),
           write=lambda facts, notes, config: _write_softmax(facts, config)),
])

# The ranks and widths come first: norms and yarn ask for them.
MLA = Config("Megatron's GPTModel with latent attention", [
    custom(["multi_latent_attention"], [], read=lambda config, facts, notes: None,
           write=lambda facts, notes, config: config.update(multi_latent_attention=True)),
    field("q_lora_rank", "latent_attention.q_rank", default=None),
    field("kv_lora_rank", "latent_attention.kv_rank", default=512),
    field("qk_head_dim", "latent_attention.nope_dim", default=128),
    field("qk_pos_emb_head_dim", "latent_attention.rope_dim", default=64),
    field("v_head_dim", "latent_attention.value_dim", default=128),
    *_common("latent_attention"),
    neutral("window_size", None),
    neutral("softmax_type", "vanilla"),
])
# fmt: on


def table_for(architecture: Architecture) -> Config:
    """The table of the kind of attention that an architecture has."""
    latent = architecture.decoder is not None and architecture.decoder.layers[0].latent_attention is not None
    return MLA if latent else GPT


def read_args(args: Mapping[str, object], file: str) -> tuple[Facts, dict[str, object]]:
    """What the args of a checkpoint say about its model."""
    table = MLA if args.get("multi_latent_attention") else GPT
    return table.read({key: value for key, value in args.items() if key in table.keys}, file)
