"""The activation and the width of the MLP, and which layers have experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Activation, CkptError, Facts, configs, custom, decided, schema
from ckpt_megatron.args.router import ROUTER_FACTS, ROUTER_KEYS, read_router, router_of_dense, write_router
from ckpt_megatron.args.values import Args, chosen_layers, flag, given, has_linear_biases, layer_count, positive

_FLAGS = ("swiglu", "quick_geglu", "squared_relu", "openai_gelu", "bias_gelu_fusion")
_WRITTEN = ("swiglu", "quick_geglu", "squared_relu", None, "bias_gelu_fusion")
"""The flag that is written, None for no flag; --openai-gelu is read by the legacy model alone."""
_CLAMP, _OFFSET = "activation_func_clamp_value", "glu_linear_offset"
_WIDTHS = (
    "num_layers",
    "ffn_hidden_size",
    "num_experts",
    "moe_layer_freq",
    "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "moe_shared_expert_gate",
)


def activation() -> configs.Entry:
    """One flag for each activation; erf GELU without any."""
    return decided(
        [*_FLAGS, "use_legacy_models"],
        ["mlp.activation", "mlp.gated"],
        read=_read_activation,
        values={_FLAGS: [tuple(flag == chosen for flag in _FLAGS) for chosen in _WRITTEN]},
        uses=["add_bias_linear", "disable_bias_linear"],
        why="one flag for each activation, erf GELU without any; the tanh form of GELU exists only fused with a bias",
    )


def _read_activation(args: Args, facts: Facts, notes: dict[str, Any]) -> None:
    flags = [key for key in ("swiglu", "quick_geglu", "squared_relu") if flag(args, key)]
    if len(flags) > 1:
        raise CkptError("more than one activation is asked for", found=", ".join(flags), expected="one")
    gelu = Activation.GELU_ERF
    # The fused kernel (the default since 2020) computes the tanh form, the function it replaces the erf form.
    # --openai-gelu is read by the legacy model alone; GPTModel of Megatron-Core never looks at it.
    fused = flag(args, "bias_gelu_fusion") and _is_fused(has_linear_biases(args))
    if fused or (flag(args, "use_legacy_models") and flag(args, "openai_gelu")):
        gelu = Activation.GELU_TANH
    named = {"swiglu": Activation.SILU, "quick_geglu": Activation.GELU_QUICK, "squared_relu": Activation.RELU_SQUARED}
    facts["mlp.activation"] = named[flags[0]] if flags else gelu
    facts["mlp.gated"] = flags in (["swiglu"], ["quick_geglu"])


def clamped(*replacing: str, left_out: bool = False) -> configs.Entry:
    """The clamp and the offset of a gated block. Core has them since 0.15, in all layers together.

    Only the kernels of quick GELU have them too, where activations are fused: with another activation, whether they count depends on how
    it is run. `replacing` are keys under which TransformerEngine computes the block, without them. `left_out`: a block
    that has neither is written without the keys.
    """
    no_clamp, no_offset = (configs.LEFT_OUT, configs.LEFT_OUT) if left_out else (None, 0.0)

    def read(args: Args, facts: Facts, notes: dict[str, Any]) -> None:
        clamp, offset = args.get(_CLAMP), given(args, _OFFSET, 0.0)
        facts["mlp.up_offset"] = offset
        if clamp is None and offset == 0.0:
            return
        key = _OFFSET if clamp is None else _CLAMP
        if not facts["mlp.gated"] or facts["mlp.activation"] is not Activation.GELU_QUICK:
            raise CkptError(
                f"key {key!r} is set, which only the fused kernels of a gated quick GELU look at",
                found=f"{key} = {args[key]!r}, {facts['mlp.activation']}",
                expected="a gated quick GELU, or null",
            )
        for name in replacing:
            if args.get(name):
                raise CkptError(f"key {name!r} leaves {key!r} out", found="True", expected="False")
        if clamp is not None:
            facts["mlp.clamp"] = positive(args, _CLAMP, 1.0)

    return decided(
        [_OFFSET, _CLAMP],
        ["mlp.clamp", "mlp.up_offset"],
        read=read,
        values={
            _OFFSET: [no_offset, configs.value_of("mlp.up_offset")],
            _CLAMP: [no_clamp, configs.value_of("mlp.clamp")],
        },
        uses=["mlp.gated", "mlp.activation", *replacing],
        why="of a gated quick GELU alone, as other fused kernels leave them out",
    )


def _is_fused(biased: bool) -> bool:
    """Whether bias_gelu_fusion does anything: a run without biases turns it off, and computes the erf form.

    So does validate_args of every Megatron-LM since add_bias_linear exists, up to core 0.16.1 (training/arguments.py,
    "Disable bias gelu fusion if we are disabling bias altogether"), also on args that are loaded.
    """
    return biased


EXPERTS = (
    "mlp.moe?", "mlp.moe.experts", "mlp.moe.ffn", "mlp.moe.shared?", "mlp.moe.shared.ffn", "mlp.moe.shared.gate", *ROUTER_FACTS,
)  # fmt: skip
"""The facts that the arguments of experts say, one by one: another one is refused by its name."""


def widths() -> configs.Custom:
    """The number of layers, the widths of their MLPs, and experts with their router in all layers or some."""
    claims = ["layers", "mlp.ffn", "mlp.ffn?", *EXPERTS]
    why = "which layers have experts decides what the widths mean, and each key of the router what the next one does"
    uses = ["hidden_size", "swiglu", "mlp.up_bias"]
    return custom([*_WIDTHS, *ROUTER_KEYS], claims, read=_read_widths, write=_write_widths, uses=uses, why=why)


def _read_widths(args: Args, facts: Facts, notes: dict[str, Any]) -> None:
    facts["layers"] = layer_count(args)
    width = args.get("ffn_hidden_size")
    if width is None:  # validate_args
        width = int(4 * args["hidden_size"] * 2 / 3 / 64) * 64 if flag(args, "swiglu") else 4 * args["hidden_size"]
    experts = args.get("num_experts")
    if isinstance(experts, list | tuple):  # core 0.4 and before: one number, or one per virtual stage
        (experts,) = set(experts)
    if experts is None:
        facts["mlp.ffn"] = width
    else:
        read_experts(args, facts, notes, experts, width)


def read_experts(args: Args, facts: Facts, notes: dict[str, Any], experts: object, width: object) -> None:
    """Enter the facts of a model with `experts`: which layers have them, how wide they are, and their router.

    `width` is that of the dense layers, and of experts without a width of their own.
    """
    every_nth = chosen_layers(args, "moe_layer_freq", lambda index, n: index % n == 0)  # the first included
    sparse = every_nth or [True] * layer_count(args)
    if not any(sparse):
        facts["mlp.ffn"] = width
        return
    if all(sparse):
        notes["unused_ffn"] = width
    else:
        facts["mlp.ffn"] = width
        facts["mlp.moe?"], facts["mlp.ffn?"] = schema.PerLayer(sparse), schema.PerLayer(not moe for moe in sparse)
    enter_experts(args, facts, experts, width)


def enter_experts(args: Args, facts: Facts, experts: object, width: object) -> None:
    """Enter what every layer with `experts` has; `width` is that of experts without a width of their own."""
    facts["mlp.moe.experts"] = experts
    facts["mlp.moe.ffn"] = given(args, "moe_ffn_hidden_size", width)
    shared = args.get("moe_shared_expert_intermediate_size")
    if shared is not None:
        facts["mlp.moe.shared.ffn"] = shared
        facts["mlp.moe.shared.gate"] = flag(args, "moe_shared_expert_gate")
    read_router(args, facts)


def _write_widths(facts: Facts, notes: Mapping[str, Any], args: dict[str, Any]) -> None:
    sparse, width = facts.present("mlp.moe"), configs.uniform(facts, "mlp.ffn")
    args["num_layers"] = facts["layers"]
    args |= {"num_experts": None, "moe_layer_freq": 1, "moe_ffn_hidden_size": None, "ffn_hidden_size": width}
    args |= {"moe_shared_expert_intermediate_size": None, "moe_shared_expert_gate": False}
    if sparse is False:
        args |= router_of_dense()
        return
    args["num_experts"] = configs.uniform(facts, "mlp.moe.experts")
    write_experts(facts, notes, args)


def write_experts(facts: Facts, notes: Mapping[str, Any], args: dict[str, Any]) -> None:
    """The args of a model with experts but for their number, which not all call alike."""
    sparse, width = facts.present("mlp.moe"), configs.uniform(facts, "mlp.ffn")
    args["moe_ffn_hidden_size"] = configs.uniform(facts, "mlp.moe.ffn")
    args["ffn_hidden_size"] = width if width is not None else notes.get("unused_ffn") or args["moe_ffn_hidden_size"]
    if isinstance(sparse, schema.PerLayer):
        args["moe_layer_freq"] = [int(moe) for moe in sparse]
    if facts.present("mlp.moe.shared"):
        args["moe_shared_expert_intermediate_size"] = configs.uniform(facts, "mlp.moe.shared.ffn")
        args["moe_shared_expert_gate"] = configs.uniform(facts, "mlp.moe.shared.gate")
    write_router(facts, args)
