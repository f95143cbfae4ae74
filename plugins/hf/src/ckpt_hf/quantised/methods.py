"""What the configs of the tools that quantise say: the scheme, and how its tensors are called.

transformers keeps it as `quantization_config` in config.json; ModelOpt until 2025 in a file beside it alone, `hf_quant_config.json`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpt_core.sdk import CkptError, FormatError, Refusal, StoredTensor, dtypes, lazy, ledgers
from ckpt_hf.quantised.schemes import Scaled
from ckpt_hf.quantised.spelling import (
    WEIGHT,
    Parts,
    Spelling,
    as_exponents,
    blocks_of_scale,
    matrices_of,
    scaled_codes,
)

KEY = "quantization_config"


@dataclass(frozen=True)
class Method:
    """How a checkpoint is quantised: `what` in words, and the spellings of its tensors.

    `beside` are the endings of names that say nothing of weights, with the reason. `fates` are what became of the keys of the config.
    """

    what: str
    spellings: tuple[Spelling, ...]
    beside: Mapping[str, str] = field(default_factory=dict)
    fates: Mapping[str, tuple[ledgers.Fate, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Said:
    """What a config says of how the model was quantised: `settings` stand in `file`, below `key`; `dtype` is that of the weights that
    the tools make of it, by config.json."""

    settings: Mapping[str, Any]
    file: str
    key: str
    dtype: dtypes.DType

    def wrong(self, name: str, expected: str, fix: str | None = None) -> FormatError:
        """The error that a setting is none that can be."""
        found = repr(self.settings.get(name))[:80]
        return FormatError(f"{self.key}.{name} is not read", file=self.file, found=found, expected=expected, fix=fix)


ACTIVATIONS = "how activations are quantised, which no weight depends on"
_LISTS = "which modules are quantised: the tensors themselves show it"
_OF_ACTIVATIONS = {
    ".input_scale": ACTIVATIONS,
    ".activation_scale": ACTIVATIONS,
    "_activation_scale": ACTIVATIONS,
    ".output_scale": ACTIVATIONS,
    ".qscale_act": ACTIVATIONS,
    ".k_scale": "scales of the cache of keys and values, which no weight depends on",
    ".v_scale": "scales of the cache of keys and values, which no weight depends on",
    ".kv_scale": "scales of the cache of keys and values, which no weight depends on",
}


def method_of(said: Said) -> Method:
    """The method that a config names. `Refusal` for one that is not read."""
    name = said.settings.get("quant_method")
    if not isinstance(name, str) or name not in _METHODS:
        raise Refusal(
            f"weights quantised by {name!r:.80} are not read",
            file=said.file,
            expected=f"{said.key}.quant_method: {', '.join(_METHODS)}",
            fix=_ELSEWHERE.get(str(name), "dequantise it with the library that wrote it, and convert what that saves"),
        )
    return _METHODS[name](said)


_ELSEWHERE: dict[str, str] = {}


def _fates(said: Said, used: tuple[str, ...], ignored: Mapping[str, str]) -> dict[str, tuple[ledgers.Fate, str]]:
    """What became of each setting: one that is neither used nor known to say nothing of weights is named as left."""
    fates: dict[str, tuple[ledgers.Fate, str]] = {}
    for name in said.settings:
        if name in used:
            fates[name] = "used", ""
        elif name in ignored:
            fates[name] = "left", ignored[name]
        else:
            fates[name] = "left", ledgers.UNKNOWN_KEY.why
    return fates


# --- fp8: DeepSeek, Qwen, GLM, Kimi, MiniMax; and Ministral and AutoFP8, one scale for each tensor ----------------------


def _fp8(said: Said) -> Method:
    block = _block_size(said)
    if said.settings.get("fmt") not in (None, "e4m3", "float8_e4m3fn", "e5m2"):
        raise said.wrong("fmt", "e4m3")
    whole = "one for each tensor or row" if block is None else f"one for each block of {block[0]} x {block[1]}"
    return Method(
        f"FP8 with scales, {whole}",
        tuple(
            scaled_codes(
                lambda codes: (
                    f"{codes}_scale_inv",
                    f"{codes}_scale",
                    *((".scale", ".qscale_weight") if codes == WEIGHT else ()),
                ),
                functools.partial(_fp8_weight, block, said.dtype),
            )
        ),
        _OF_ACTIVATIONS,
        _fates(
            said,
            ("quant_method", "fmt", "weight_block_size", "scale_fmt"),
            {
                "activation_scheme": ACTIVATIONS,
                "modules_to_not_convert": _LISTS,
                "ignored_layers": _LISTS,
                "modules_to_convert": _LISTS,
            },
        ),
    )


def _block_size(said: Said) -> tuple[int, int] | None:
    size = said.settings.get("weight_block_size")
    if size is None:
        return None
    if (
        not isinstance(size, list)
        or len(size) != 2
        or any(type(one) is not int or not 0 < one < 1 << 31 for one in size)
    ):
        raise said.wrong(
            "weight_block_size", "how many rows and how many columns share a scale, such as [128, 128], or null"
        )
    return size[0], size[1]


def _fp8_weight(block: tuple[int, int] | None, dtype: dtypes.DType, parts: Parts) -> StoredTensor:
    codes, scale = parts.codes, as_exponents(parts.beside["scale"])
    matrices, rows, columns = matrices_of(codes)
    if block is None:
        raise CkptError("one scale for each tensor")
    operand, block = blocks_of_scale(scale, codes, block)
    scheme = Scaled(codes.stored.dtype, block)
    numbers = lazy.Quantised(scheme, (codes.operand(columns), operand), matrices, rows, columns)
    return numbers.tensor(dtype, codes.stored.shape)


_METHODS: dict[str, Callable[[Said], Method]] = {"fp8": _fp8}
