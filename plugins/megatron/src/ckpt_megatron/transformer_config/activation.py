"""activation_func, a function by name, and the kernels that replace it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Activation, CkptError, Facts, configs, decided

_GELU = "torch.nn.functional.gelu"
_FUNCTIONS: dict[str, Activation] = {
    "torch.nn.functional.silu": Activation.SILU,
    _GELU: Activation.GELU_ERF,
    "torch.nn.functional.relu": Activation.RELU,
    "nemo.collections.llm.fn.activation.openai_gelu": Activation.GELU_TANH,
    "nemo.collections.llm.fn.activation.quick_gelu": Activation.GELU_QUICK,
    "nemo.collections.llm.fn.activation.squared_relu": Activation.RELU_SQUARED,
    "megatron.core.activations.fast_gelu": Activation.GELU_TANH,
    "megatron.core.activations.quick_gelu": Activation.GELU_QUICK,
    "megatron.core.activations.squared_relu": Activation.RELU_SQUARED,
    "megatron.core.fusions.fused_bias_geglu.quick_gelu": Activation.GELU_QUICK,
    "megatron.bridge.models.nemotron.nemotron_provider.squared_relu": Activation.RELU_SQUARED,  # Bridge 0.2 to 0.3.0
    "megatron.bridge.models.nemotron.nemotron_bridge.squared_relu": Activation.RELU_SQUARED,  # since 0.3.1
    "megatron.bridge.training.mlm_compat.activations.squared_relu": Activation.RELU_SQUARED,
}
# TransformerEngine's own GELU is the tanh form, so what these do to the erf form is another function.
ENGINE = ("use_te_activation_func", "use_transformer_engine_op_fuser")
"""The fields under which TransformerEngine computes the activation."""


def activation(package: str) -> configs.Entry:
    """The activation; `package` is where functions that torch does not have are looked up when writing."""
    names = {kind: name for name, kind in _FUNCTIONS.items() if name.startswith((f"{package}.", "torch."))}
    # Only for SiLU-GLU is the fused kernel the same function.
    rows = [
        (name, gated, configs.LEFT_OUT if kind is Activation.SILU and gated else False)
        for kind, name in names.items()
        for gated in (False, True)
    ]
    keys = ("activation_func", "gated_linear_unit", "bias_activation_fusion")
    return decided(
        [*keys, *ENGINE],
        ["mlp.activation", "mlp.gated"],
        read=_read,
        values={keys: rows},
        uses=["add_bias_linear"],
        why="activation_func by name, and the fused kernels that take its place: those of GELU compute the tanh form",
    )


def _read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    kind = _function(config.get("activation_func"))
    if kind is Activation.GELU_ERF:
        # The fused kernels of GELU, gated or not, compute the tanh form (fused_bias_gelu.py, fused_bias_geglu.py).
        if config.get("bias_activation_fusion"):
            _check_fusion(config)
            kind = Activation.GELU_TANH
        for key in ENGINE:
            if config.get(key):
                raise CkptError(f"key {key!r} replaces GELU by another form of it", found="True", expected="False")
    facts["mlp.activation"], facts["mlp.gated"] = kind, bool(config.get("gated_linear_unit", False))


def _check_fusion(config: Mapping[str, Any]) -> None:
    """TransformerConfig refuses a fused plain GELU without biases (__post_init__), so no run has had it."""
    biased, gated = config.get("add_bias_linear", True), config.get("gated_linear_unit", False)
    if not biased and not gated:
        raise CkptError(
            "a fused GELU needs a bias: Megatron-Core builds no such model",
            found="bias_activation_fusion = True, add_bias_linear = False",
            expected="bias_activation_fusion = False (the erf form), or biases",
        )


def _function(name: object) -> Activation:
    if name is None:
        return Activation.GELU_ERF  # the default of TransformerConfig
    if isinstance(name, dict) and name.get("_partial_") and name.get("_target_") == _GELU:
        form = {"tanh": Activation.GELU_TANH, "none": Activation.GELU_ERF}.get(str(name.get("approximate")))
        if form is not None:
            return form
    if not isinstance(name, str) or name not in _FUNCTIONS:
        found = repr(name)[:80]
        raise CkptError(
            "key 'activation_func' is a function we do not know", found=found, expected=", ".join(_FUNCTIONS)
        )
    return _FUNCTIONS[name]
