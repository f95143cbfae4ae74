"""The activation that is really computed, the width of the MLP, and experts."""

from __future__ import annotations

from typing import Any

from ckpt_core.sdk import Activation, CkptError, Facts, Refusal, uniform
from ckpt_megatron.args.mlp import read_experts, write_experts
from ckpt_nemo.gpt.values import Values, given, since

_GATED = {"swiglu": Activation.SILU, "reglu": Activation.RELU, "geglu": Activation.GELU_ERF}
_PLAIN = {"gelu": Activation.GELU_ERF, "squared-relu": Activation.RELU_SQUARED, "approx-gelu": Activation.GELU_QUICK}


def _named_activation(config: Values) -> tuple[str, bool, Activation]:
    """The name without `fast-`, whether it is gated, and what it is called after."""
    name = given(config, "activation", "gelu")
    plain = str(name).removeprefix("fast-")
    found = _PLAIN.get(str(name)) or _GATED.get(plain)
    if found is None:
        expected = ", ".join([*_PLAIN, *_GATED, *(f"fast-{gated}" for gated in _GATED)])
        raise CkptError("key 'activation' has a value that is not supported", found=repr(name), expected=expected)
    return plain, plain in _GATED, found


def read_legacy_activation(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
    """ParallelMLP (mlp.py): the fused kernels are tanh; else openai_gelu takes the place of any activation."""
    name, gated, activation = _named_activation(config)
    fused = given(config, "bias_activation_fusion", given(config, "bias_gelu_fusion", True))
    if fused and given(config, "bias", True):
        if name not in ("gelu", "geglu"):
            raise CkptError(
                f"with bias_activation_fusion no {name} is applied",
                found=f"activation = {config.get('activation')}, bias_activation_fusion = {fused}",
                expected="bias_activation_fusion = False",
            )
        activation = Activation.GELU_TANH
    elif given(config, "openai_gelu", False):
        activation = Activation.GELU_TANH
    elif config.get("onnx_safe") and name not in ("gelu", "geglu"):
        raise CkptError(
            "with onnx_safe an approximate GELU takes the place of the activation",
            found=f"activation = {config['activation']}",
        )
    facts["mlp.gated"], facts["mlp.activation"] = gated, activation


def write_legacy_activation(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
    kind, gated = uniform(facts, "mlp.activation"), uniform(facts, "mlp.gated")
    config["activation"] = _activation_name(kind, gated)
    config |= {"openai_gelu": kind is Activation.GELU_TANH, "bias_activation_fusion": False, "onnx_safe": False}


def read_mcore_activation(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
    """Megatron-Core's MLP: its fused GELU needs a bias, and is tanh. openai_gelu is read since NeMo 2.0."""
    name, gated, activation = _named_activation(config)
    fused = given(config, "bias_activation_fusion", True)
    tanh = bool(given(config, "openai_gelu", False)) and since(config, (2, 0), "openai_gelu")
    if tanh:
        activation = Activation.GELU_TANH
    elif name in ("gelu", "geglu"):
        if fused and gated:
            raise CkptError(
                "which GELU a fused geglu computes depends on the version of Megatron-Core",
                found="bias_activation_fusion = True",
                expected="bias_activation_fusion = False, or openai_gelu = True",
            )
        fused_gelu = fused and given(config, "bias", True)
        activation = Activation.GELU_TANH if fused_gelu else Activation.GELU_ERF
    facts["mlp.gated"], facts["mlp.activation"] = gated, activation


def write_mcore_activation(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
    kind, gated, bias = uniform(facts, "mlp.activation"), uniform(facts, "mlp.gated"), uniform(facts, "mlp.up_bias")
    config["activation"] = _activation_name(kind, gated)
    tanh = kind is Activation.GELU_TANH
    # One flag gives the tanh form in all versions, but needs a bias; the other one is read since 2.0.
    config["bias_activation_fusion"] = tanh and not gated and bool(bias)
    config["openai_gelu"] = tanh and not config["bias_activation_fusion"]


def _activation_name(kind: Activation, gated: bool) -> str:
    kind = Activation.GELU_ERF if kind is Activation.GELU_TANH else kind
    name = next((name for name, known in (_GATED if gated else _PLAIN).items() if known is kind), None)
    if name is None:
        raise Refusal("no value of 'activation' says this", found=f"mlp.activation = {kind}, mlp.gated = {gated}")
    return f"fast-{name}" if gated else name


def read_widths(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
    width, experts = config["ffn_hidden_size"], config.get("num_moe_experts")
    if experts is None:
        facts["mlp.ffn"] = width
        return
    read_experts(config, facts, notes, experts, width)


def write_widths(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
    config["ffn_hidden_size"] = uniform(facts, "mlp.ffn")
    if facts.present("mlp.moe") is not False:
        if uniform(facts, "mlp.moe.router.bias"):  # since core 0.14, and no release with these models had it
            raise Refusal("no router has a bias", found="mlp.moe.router.bias = True")
        config["num_moe_experts"] = uniform(facts, "mlp.moe.experts")
        write_experts(facts, notes, config)
