"""What the configs of the tools that quantise say: the scheme, and how its tensors are called.

transformers keeps it as `quantization_config` in config.json; ModelOpt until 2025 in a file beside it alone, `hf_quant_config.json`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import field, replace

from ckpt_core.sdk import StoredTensor, dtypes, lazy, ledgers, schema
from ckpt_hf.quantised.said import Said
from ckpt_hf.quantised.schemes import FourBit, Scaled
from ckpt_hf.quantised.spelling import (
    CHANNEL,
    TENSOR,
    WEIGHT,
    Kind,
    Parts,
    Spelling,
    scaled_codes,
    shared_scale,
)


@schema.dataclass(frozen=True)
class Method:
    """How a checkpoint is quantised: `what` in words, and the spellings of its tensors.

    `beside` are the endings of names that say nothing of weights, with the reason. `fates` are what became of the keys of the config, and
    `listed` tells whether that says of a module that it is not quantised.
    """

    what: str
    spellings: tuple[Spelling, ...]
    beside: Mapping[str, str] = field(default_factory=dict)
    fates: Mapping[str, tuple[ledgers.Fate, str]] = field(default_factory=dict)
    listed: Callable[[str], bool] = lambda module: False


_ACTIVATIONS = "how activations are quantised, which no weight depends on"
_CACHE = "how the cache of keys and values is quantised, which no weight depends on"
_OF_ACTIVATIONS = {
    ".input_scale": _ACTIVATIONS,
    ".activation_scale": _ACTIVATIONS,
    "_activation_scale": _ACTIVATIONS,
    ".output_scale": _ACTIVATIONS,
    ".qscale_act": _ACTIVATIONS,
    ".k_scale": _CACHE,
    ".v_scale": _CACHE,
    ".kv_scale": _CACHE,
}


def of_activations(more: Iterable[str] = ()) -> dict[str, str]:
    """The endings of names of scales that no weight depends on, and `more`, with the reason why they are left."""
    return {**_OF_ACTIVATIONS, **dict.fromkeys(more, _ACTIVATIONS)}


_HOW = "how a program is to run it, and which modules are quantised: the tensors themselves show it"


def fates_of(said: Said, used: Collection[str], ignored: Collection[str]) -> dict[str, tuple[ledgers.Fate, str]]:
    """What became of each setting: one that is neither used nor known to say nothing of weights is named as left."""
    known: dict[str, tuple[ledgers.Fate, str]] = {
        **dict.fromkeys(ignored, ("left", _HOW)),
        **dict.fromkeys(used, ("used", "")),
    }
    return {name: known.get(name, ("left", ledgers.UNKNOWN_KEY.why)) for name in said.settings}


# --- fp8: DeepSeek, Qwen, GLM, Kimi, MiniMax; and Ministral and AutoFP8, one scale for each tensor ----------------------


def fp8(said: Said) -> Method:
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
        of_activations(),
        fates_of(
            said,
            ("quant_method", "fmt", "weight_block_size", "scale_fmt"),
            ("activation_scheme", "modules_to_convert", *_LISTS),
        ),
        _exactly(said),
    )


_LISTS = ("modules_to_not_convert", "ignored_layers")


def _exactly(said: Said) -> Callable[[str], bool]:
    """Whether a list names a module. Programs differ in what else than the whole name fits."""
    return {name for key in _LISTS for name in said.names(key)}.__contains__


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
    kinds: tuple[Kind, ...] = (TENSOR, CHANNEL) if block is None else (block,)
    return scaled(parts, dtype, *kinds)


_scaled = functools.cache(Scaled)  # all weights of a model share one


def scaled(parts: Parts, dtype: dtypes.DType, *kinds: Kind) -> StoredTensor:
    """A weight of codes of one byte, times the scales that `kinds` of them share."""
    codes = parts.codes
    shared = shared_scale(parts.beside["scale"], codes, *kinds)
    operands = codes.operand(shared.columns), shared.operand
    scheme = _scaled(codes.stored.dtype, shared.block)
    numbers = lazy.Quantised(scheme, operands, shared.matrices, shared.rows, shared.columns, what=parts.what)
    return numbers.tensor(dtype, codes.stored.shape)


# --- mxfp4: gpt-oss ------------------------------------------------------------------------------------------------------


def mxfp4(said: Said) -> Method:
    return Method(
        "MXFP4 with a scale for each 32 inputs",
        (Spelling("_blocks", "", ("uint8",), {"scale": ("_scales",)}, _mxfp4_experts),),
        fates=fates_of(said, ("quant_method",), (*_LISTS, "dequantize")),
        listed=lambda weight: any(map(_exactly(said), (weight, weight.rpartition(".")[0]))),  # experts are one module
    )


_MX_GROUP = 32


def _mxfp4_experts(parts: Parts) -> StoredTensor:
    """Experts [E, in, out], as their class has them: their blocks are [E, out, in / 32, 16], transposed against it."""
    codes, scale = parts.codes, parts.beside["scale"]
    if len(codes.stored.shape) != 4 or codes.stored.shape[-1] != _MX_GROUP // 2 or not codes.stored.elements:
        raise codes.wrong("has no blocks of 32 codes", "[experts, outputs, inputs / 32, 16]")
    experts, rows, groups, _ = codes.stored.shape
    if scale.stored.shape != (experts, rows, groups) or scale.stored.dtype.name != "uint8":
        raise scale.wrong(f"has no scale for each block of {codes.name!r}", f"uint8 {[experts, rows, groups]}")
    columns = groups * _MX_GROUP
    operands = codes.operand(columns // 2), scale.operand(groups, scale=True)
    numbers = lazy.Quantised(FourBit(_MX_GROUP), operands, experts, rows, columns, exact=True, what=parts.what)
    whole = numbers.tensor(dtypes.BF16, (experts, rows, columns))
    return replace(whole, shape=(experts, columns, rows), strides=(rows * columns, 1, columns))
