"""ModelOpt, NVIDIA's quantiser: `quant_method: "modelopt"`, and `hf_quant_config.json`, the only one of the two until 2025.

Both say the same. A weight of FP8 has a scale for itself, its rows or its blocks; one of NVFP4 has scales in E4M3 and a scale of those.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Refusal, StoredTensor, dtypes
from ckpt_hf.quantised.compressed import four_bit_codes
from ckpt_hf.quantised.methods import Method, fates_of, of_activations, scaled
from ckpt_hf.quantised.said import FP8, WEIGHT, Said
from ckpt_hf.quantised.schemes import FourBit
from ckpt_hf.quantised.spelling import CHANNEL, TENSOR, Kind, Parts, Quantity, Spelling

_BLOCK = (128, 128)
_NVFP4, _MIXED = "NVFP4", "MIXED_PRECISION"
_KINDS: Mapping[str, tuple[Kind, ...]] = {
    "FP8": (TENSOR, CHANNEL),
    "FP8_PB_WO": (_BLOCK,),
    "FP8_PER_CHANNEL_PER_TOKEN": (CHANNEL,),
    "FP8_PC_PT": (CHANNEL,),
}
_SCALE = ".weight_scale"
_OTHERS = (
    "kv_cache_quant_algo",
    "kv_cache_scheme",
    "exclude_modules",
    "ignore",
    "config_groups",
    "group_size",
    "producer",
)


def method(said: Said) -> Method:
    """The method that a config of ModelOpt says."""
    if said.settings.get("quant_algo") is None and said.settings.get("kv_cache_quant_algo"):
        fates = fates_of(said, ("quant_method", "quant_algo"), _OTHERS)
        return Method("the cache of keys and values alone", (), of_activations(), fates)
    algorithm = _algorithm(said, said.settings.get("quant_algo"))
    layers = _layers(said) if algorithm == _MIXED else {}
    for name in ("has_zero_point", "pre_quant_scale"):
        if said.settings.get(name):
            raise Refusal(
                f"ModelOpt's {name} is not read", file=said.file, fix="convert the model that it was quantised from"
            )
    chosen = functools.partial(_of_module, algorithm, layers)
    spellings = (
        Spelling(
            WEIGHT,
            WEIGHT,
            ("uint8",),
            {"scale": (_SCALE,), "global scale": (".weight_scale_2",)},
            functools.partial(_nvfp4, chosen, said.dtype),
        ),
        Spelling(WEIGHT, WEIGHT, FP8, {"scale": (_SCALE,)}, functools.partial(_fp8, chosen, said.dtype)),
    )
    listed = (*said.names("exclude_modules"), *said.names("ignore"))
    return Method(
        f"ModelOpt's {algorithm}",
        spellings,
        of_activations((".q_scale",)),
        fates_of(
            said,
            ("quant_method", "quant_algo", "quantized_layers", "has_zero_point", "pre_quant_scale"),
            _OTHERS,
        ),
        functools.partial(_is_excluded, listed),
    )


def _algorithm(said: Said, given: object) -> str:
    name = str(given).upper()
    if name not in (*_KINDS, _NVFP4, _MIXED):
        raise Refusal(
            f"ModelOpt's {given!r:.60} is not read",
            file=said.file,
            expected=f"{said.key}.quant_algo: {', '.join((*_KINDS, _NVFP4, _MIXED))}",
            fix="convert the model that it was quantised from",
        )
    return name


def _layers(said: Said) -> dict[str, str]:
    given = said.settings.get("quantized_layers")
    if not isinstance(given, dict) or not all(isinstance(one, dict) for one in given.values()):
        raise said.wrong("quantized_layers", "the quant_algo of each module")
    return {name: _algorithm(said, one.get("quant_algo")) for name, one in given.items()}


def _of_module(algorithm: str, layers: Mapping[str, str], codes: Quantity, name: str) -> str:
    """The algorithm of a weight."""
    if algorithm != _MIXED:
        return algorithm
    module = name.removesuffix(WEIGHT)
    # An entry may name a module above: that of all experts.
    above = [prefix for prefix in layers if module == prefix or module.startswith(f"{prefix}.")]
    if not above:
        raise codes.wrong("is quantised, and quantized_layers does not have its module")
    return layers[max(above, key=len)]


def _fp8(chosen: Any, dtype: dtypes.DType, parts: Parts) -> StoredTensor:
    algorithm = chosen(parts.codes, parts.name)
    if algorithm not in _KINDS:
        raise parts.codes.wrong(f"has codes of FP8, and its module is {algorithm}", "uint8")
    return scaled(parts, dtype, *_KINDS[algorithm])


def _nvfp4(chosen: Any, dtype: dtypes.DType, parts: Parts) -> StoredTensor:
    algorithm = chosen(parts.codes, parts.name)
    if algorithm != _NVFP4:
        raise parts.codes.wrong(f"has codes of four bits, and its module is {algorithm}", "fp8_e4m3")
    return four_bit_codes(parts, FourBit(_GROUP), dtype)


_GROUP = 16
"""The inputs that share a scale of NVFP4."""


def _is_excluded(patterns: tuple[str, ...], module: str) -> bool:
    """Whether a list names a module. `model.layers.1*` is layer 1 and what is in it; that it fits layer 10, too, nobody means."""
    return any(
        f"{module}.".startswith(f"{pattern[:-1]}.")
        if pattern.endswith("*") and pattern[-2:-1].isdigit()
        else fnmatch.fnmatchcase(module, pattern)
        for pattern in patterns
    )
