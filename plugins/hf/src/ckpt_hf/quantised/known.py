"""The methods that are read, by the names that configs have for them, and what to do about the others."""

from __future__ import annotations

from collections.abc import Callable

from ckpt_core.sdk import Refusal
from ckpt_hf.quantised import compressed, modelopt
from ckpt_hf.quantised.methods import Method, fp8, mxfp4
from ckpt_hf.quantised.said import Said

METHODS: dict[str, Callable[[Said], Method]] = {
    "fp8": fp8,
    "mxfp4": mxfp4,
    "compressed-tensors": compressed.method,
    "modelopt": modelopt.method,
}
_DEQUANTISE = "load it with transformers and the library of that method, `dequantize()` it, and convert what that saves"
_OTHERS = {
    "awq": "AutoAWQ's packing: quantise with llm-compressor, which writes compressed-tensors, or convert the original model",
    "gptq": "GPTQModel's packing: quantise with llm-compressor, which writes compressed-tensors, or convert the original model",
    "bitsandbytes": _DEQUANTISE,
    "torchao": "torchao keeps Python objects in its files: convert the original model",
    "fbgemm_fp8": "convert the original model: the FP8 release says that it was made of it",
}


def method_of(said: Said) -> Method:
    """The method that a config names. `Refusal` for one that is not read."""
    name = said.settings.get("quant_method")
    if isinstance(name, str) and name in METHODS:
        return METHODS[name](said)
    raise Refusal(
        f"weights quantised by {name!r:.60} are not read",
        file=said.file,
        found=f"{said.key}.quant_method = {name!r:.60}",
        expected=", ".join(METHODS),
        fix=_OTHERS.get(
            str(name), "convert the model that it was quantised from, or dequantise it with the library that wrote it"
        ),
    )
