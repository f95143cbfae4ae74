"""compressed-tensors, which llm-compressor writes: `quant_method: "compressed-tensors"` (version 0.20).

Its config sorts modules into groups, by name, by a regular expression behind `re:`, or by the class of a layer. What a weight is stored as
shows in its tensors; the group says how many bits its codes have, and which values share a scale.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import FormatError, Refusal, StoredTensor, disk, dtypes, lazy, schema
from ckpt_hf.quantised.methods import Method, fates_of, of_activations, scaled
from ckpt_hf.quantised.said import FP8, WEIGHT, Said
from ckpt_hf.quantised.schemes import FourBit, Integers
from ckpt_hf.quantised.spelling import CHANNEL, TENSOR, Kind, Parts, Quantity, Spelling, matrices_of, shared_scale

_SCALE = ".weight_scale"
_SHAPE = ".weight_shape"
_MX = 32
_FORMATS = (
    "pack-quantized",
    "float-quantized",
    "int-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
)


@schema.dataclass(frozen=True)
class Group:
    """Modules that are quantised alike: which they are (`targets`), and how their weights are."""

    name: str
    targets: tuple[str, ...]
    type: str
    bits: int
    strategy: str
    size: int
    block: tuple[int, int] | None
    symmetric: bool

    def fits(self, module: str) -> int:
        """How well the group fits a module: by name (3), by a pattern (2), by the class of its layer (1), or not at all (0)."""
        best = 0
        for target in self.targets:
            if target == module:
                return 3
            if target.startswith("re:"):
                best = max(best, 2 if re.match(target[3:], module) else 0)
            elif "." not in target and target[:1].isupper():
                best = max(best, 1)  # the class of a linear layer: nothing else is packed
        return best

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Which values may share a scale."""
        if self.strategy in (TENSOR, CHANNEL):
            return (self.strategy,)
        return ((self.block or (1, 0)) if self.strategy == "block" else (1, self.size),)


def method(said: Said) -> Method:
    """The method that a config of compressed-tensors says. `Refusal` for what changes the weights otherwise, and for sparsity."""
    _check_plain(said)
    groups = _groups(said)
    found = functools.partial(_group_of, groups, said)
    spellings = (
        Spelling(
            ".weight_packed",
            WEIGHT,
            ("int32",),
            {
                "scale": (_SCALE,),
                "shape": (_SHAPE,),
                "zero point": (".weight_zero_point",),
                "order of the inputs": (".weight_g_idx",),
            },
            functools.partial(_packed, found),
            ("zero point", "order of the inputs"),
        ),
        Spelling(
            ".weight_packed",
            WEIGHT,
            ("uint8",),
            {"scale": (_SCALE,), "global scale": (".weight_global_scale",)},
            functools.partial(_four_bits, found),
            ("global scale",),
        ),
        Spelling(WEIGHT, WEIGHT, FP8, {"scale": (_SCALE,)}, functools.partial(_float, found)),
        Spelling(
            WEIGHT,
            WEIGHT,
            ("int8",),
            {"scale": (_SCALE,), "zero point": (".weight_zero_point",)},
            functools.partial(_int8, found),
            ("zero point",),
        ),
    )
    return Method(
        f"compressed-tensors, {said.settings.get('format') or 'format by group'}: {'; '.join(map(_in_words, groups))}",
        spellings,
        of_activations((".input_global_scale", ".input_zero_point", ".output_zero_point")),
        fates_of(
            said,
            ("quant_method", "config_groups", "format", "quantization_status", "sparsity_config", "transform_config"),
            ("ignore", "kv_cache_scheme", "version", "global_compression_ratio", "moe_sparsity_config"),
        ),
        functools.partial(_is_ignored, _ignored(said)),
    )


def _in_words(group: Group) -> str:
    each = {"group": f"{group.size} inputs", "tensor_group": f"{group.size} inputs", "channel": "row"}
    if group.block:
        each["block"] = f"{group.block[0]} x {group.block[1]}"
    return f"{group.type}{group.bits} with a scale for each {each.get(group.strategy, group.strategy)}"


def _check_plain(said: Said) -> None:
    settings = said.settings
    status = settings.get("quantization_status")
    if status not in (None, "compressed"):
        raise said.wrong(
            "quantization_status", '"compressed"', "save the model compressed (`save_pretrained` of llm-compressor)"
        )
    sparsity = settings.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise Refusal("sparse weights of compressed-tensors are not read", file=said.file, found=repr(sparsity)[:80])
    for name in ("transform_config", "moe_sparsity_config"):
        if settings.get(name):
            raise Refusal(
                f"weights that {said.key}.{name} turns are not read",
                file=said.file,
                found=repr(settings[name])[:80],
                fix="quantise the model without it, or convert the model that it was quantised from",
            )
    if settings.get("format") not in (None, *_FORMATS):
        raise said.wrong("format", ", ".join(_FORMATS))


def _groups(said: Said) -> list[Group]:
    given = said.settings.get("config_groups")
    if not isinstance(given, dict) or not given or not all(isinstance(one, dict) for one in given.values()):
        raise said.wrong("config_groups", "groups of modules")
    return [_group(said, name, one) for name, one in given.items()]


def _group(said: Said, name: str, given: Mapping[str, Any]) -> Group:
    def wrong(problem: str, expected: str) -> FormatError:
        return FormatError(
            f"{said.key}.config_groups.{name} {problem}", file=said.file, found=repr(given)[:120], expected=expected
        )

    weights, targets = given.get("weights"), given.get("targets")
    if not isinstance(weights, dict) or not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        raise wrong("says no weights or targets", "weights and targets")
    if given.get("format") not in (None, *_FORMATS):
        raise wrong("has a format that is not read", ", ".join(_FORMATS))
    kind, bits, strategy = weights.get("type", "int"), weights.get("num_bits", 8), weights.get("strategy")
    size, block = weights.get("group_size"), weights.get("block_structure")
    if size is not None and type(size) is not int:
        raise wrong("has a group_size that is none", "how many inputs share a scale")
    if strategy is None:  # as `QuantizationArgs` has it
        strategy = "tensor" if size is None else "group" if size > 0 else "channel"
    if kind not in ("int", "float") or type(bits) is not int or not 2 <= bits <= 8:
        raise wrong("has weights that are not read", "int of 2 to 8 bits, float of 4 or 8")
    if strategy not in ("tensor", "channel", "group", "tensor_group", "block"):
        raise wrong("has a strategy that is not read", "tensor, channel, group, tensor_group or block")
    if strategy in ("group", "tensor_group") and (type(size) is not int or size < 1):
        raise wrong("has no group_size", "how many inputs share a scale")
    sizes = _block(block) if strategy == "block" else None
    if strategy == "block" and sizes is None:
        raise wrong("has no block_structure", "[rows, columns]")
    for target in targets:
        _check_pattern(target, said, f"config_groups.{name}.targets")
    sized = size if size is not None and strategy in ("group", "tensor_group") else 0
    return Group(name, tuple(targets), kind, bits, strategy, sized, sizes, weights.get("symmetric", True) is not False)


def _block(given: object) -> tuple[int, int] | None:
    """The rows and columns of a block: `[128, 128]`, or `128x128`. None if it is neither."""
    if isinstance(given, str):
        given = [int(one) if one.isdecimal() and len(one) < 10 else None for one in given.split("x")]
    if not isinstance(given, list) or len(given) != 2 or any(type(one) is not int or one < 1 for one in given):
        return None
    return given[0], given[1]


def _group_of(groups: list[Group], said: Said, weight: Quantity, name: str) -> Group:
    """The group of a weight: that which fits it best."""
    module = name.removesuffix(WEIGHT)
    fitting = max(group.fits(module) for group in groups)
    found = [group for group in groups if group.fits(module) == fitting]
    if not fitting or len(found) > 1:
        which = "no group" if not fitting else "several groups alike"
        raise weight.wrong(
            f"is quantised, and {which} of {said.key}.config_groups may be its own",
            "one",
            None if not fitting else f"they are {', '.join(group.name for group in found)}",
        )
    return found[0]


def _ignored(said: Said) -> tuple[str, ...]:
    given = said.names("ignore")
    for one in given:
        _check_pattern(one, said, "ignore")
    return given


# A pattern from a stranger is matched against every name. One that repeats what is repeated, or repeats often, takes for ever.
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REPEATS = re.compile(r"[*+{]")
_MOST_REPEATS, _LONGEST = 6, 2000


def _check_pattern(given: str, said: Said, where: str) -> None:
    """`FormatError` for a regular expression that is none, or that could take for ever."""
    pattern = given.removeprefix("re:")
    if pattern == given:
        return

    def wrong(problem: str) -> FormatError:
        expected = f"at most {_MOST_REPEATS} repetitions, and none of a group"
        return FormatError(
            f"{said.key}.{where} has a pattern {problem}", file=said.file, found=given[:120], expected=expected
        )

    if len(pattern) > _LONGEST or _REPEATED_GROUP.search(pattern) or len(_REPEATS.findall(pattern)) > _MOST_REPEATS:
        raise wrong("that could take for ever")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise wrong(f"that is no regular expression ({error})") from None


def _is_ignored(ignored: tuple[str, ...], module: str) -> bool:
    """Whether a list names a module: exactly, or by a pattern that is matched from the start."""
    return any(re.match(one[3:], module) if one.startswith("re:") else one == module for one in ignored)


# --- weights -------------------------------------------------------------------------------------------------------------


def _checked(group: Group, codes: Quantity, type: str, *bits: int) -> None:
    if group.type != type or group.bits not in bits:
        expected = f"{group.type} of {group.bits} bits, as group {group.name!r} says"
        raise codes.wrong("is stored as its group is not", expected)


def _dtype_of(scale: Quantity) -> dtypes.DType:
    """The dtype that compressed-tensors dequantises to: that of the scales."""
    return scale.stored.dtype if scale.stored.dtype.name in ("fp16", "fp32") else dtypes.BF16


def _float(found: Any, parts: Parts) -> StoredTensor:
    group = found(parts.codes, parts.name)
    _checked(group, parts.codes, "float", 8)
    scale = parts.beside["scale"]
    return scaled(parts, _dtype_of(scale), *group.kinds)


def _int8(found: Any, parts: Parts) -> StoredTensor:
    group = found(parts.codes, parts.name)
    _checked(group, parts.codes, "int", *range(2, 9))
    scale, codes = parts.beside["scale"], parts.codes
    shared = shared_scale(scale, codes, *group.kinds)
    operands = [codes.operand(shared.columns), shared.operand]
    if zeros := _zeros(group, parts):
        if zeros.stored.dtype.name != "int8" or zeros.stored.shape != scale.stored.shape:
            raise zeros.wrong("is no zero point for each scale", f"int8 {list(scale.stored.shape)}")
        operands.append(zeros.operand(shared.operand.width, shared.operand.rows))
    if shared.block[0] > 1:
        raise scale.wrong("scales blocks of whole numbers, which are not read")
    scheme = Integers(8, False, shared.rows, shared.columns, shared.block[1], shared.block[0] == 1)
    numbers = lazy.Quantised(scheme, tuple(operands), shared.matrices, shared.rows, shared.columns, what=parts.what)
    return numbers.tensor(_dtype_of(scale), codes.stored.shape)


def _packed(found: Any, parts: Parts) -> StoredTensor:
    codes, scale, group = parts.codes, parts.beside["scale"], found(parts.codes, parts.name)
    _checked(group, codes, "int", *range(2, 9))
    if "order of the inputs" in parts.beside:
        raise Refusal(
            f"tensor {parts.beside['order of the inputs'].name!r} reorders inputs, which is not read",
            file=codes.stored.file,
            expected="groups of neighbouring inputs",
            fix="quantise it with actorder=weight, or none",
        )
    rows, columns = _shape_of(group, parts)
    words = -(-columns * group.bits // 32)
    if codes.stored.shape != (rows, words):
        raise codes.wrong(f"does not hold {rows} x {columns} codes of {group.bits} bits", f"int32 {[rows, words]}")
    shared = shared_scale(scale, codes, *group.kinds, columns=columns)
    if shared.block[0] > 1 or (shared.block[1] and columns % shared.block[1]):
        raise scale.wrong(f"does not divide {columns} inputs into whole groups", f"groups of {group.size}")
    operands = [codes.operand(words), shared.operand, parts.beside["shape"].operand(2, 0)]
    if zeros := _zeros(group, parts):
        channel = shared.block[0] == 1
        expected = (-(-(rows if channel else 1) * group.bits // 32), shared.operand.width)
        if zeros.stored.dtype.name != "int32" or zeros.stored.shape != expected:
            raise zeros.wrong("is no zero point for each scale, packed along the rows", f"int32 {list(expected)}")
        operands.append(zeros.operand(expected[1], 32 if channel else 0, group.bits))
    scheme = Integers(group.bits, True, rows, columns, shared.block[1], shared.block[0] == 1)
    numbers = lazy.Quantised(scheme, tuple(operands), 1, rows, columns, what=parts.what)
    return numbers.tensor(_dtype_of(scale), (rows, columns))


def _zeros(group: Group, parts: Parts) -> Quantity | None:
    """The zero points of an asymmetric weight."""
    zeros = parts.beside.get("zero point")
    if (zeros is None) != group.symmetric:
        said = "symmetric" if group.symmetric else "asymmetric"
        about = zeros or parts.codes
        raise about.wrong(f"{'is' if zeros else 'has no'} a zero point, and group {group.name!r} is {said}")
    return zeros


def _shape_of(group: Group, parts: Parts) -> tuple[int, int]:
    """How many rows and columns a weight has: words of codes do not show it. Groups of inputs do; else the tensor that says it is read
    now, and not with the weight, when what it says is compared."""
    shape, scale = parts.beside["shape"], parts.beside["scale"].stored.shape
    size = shape.stored.dtype.size
    if shape.stored.dtype.name != "int64" or shape.stored.shape != (2,):
        raise shape.wrong("is no shape of a matrix", "int64 [2]")
    if group.strategy == "group" and len(scale) == 2:
        return scale[0], scale[1] * group.size
    raw = disk.read_range(shape.stored.file, shape.stored.offset, 2 * size)
    rows, columns = (int.from_bytes(raw[start : start + size], "little", signed=True) for start in (0, size))
    if not 0 < rows < 1 << 31 or not 0 < columns < 1 << 31:
        raise shape.wrong(f"says an impossible shape, {rows} x {columns}")
    return rows, columns


def _four_bits(found: Any, parts: Parts) -> StoredTensor:
    codes, scale, group = parts.codes, parts.beside["scale"], found(parts.codes, parts.name)
    _checked(group, codes, "float", 4)
    if not group.size:
        expected = "group or tensor_group, with how many inputs share a scale"
        raise codes.wrong(
            f"has codes of four bits, and the strategy of group {group.name!r} is {group.strategy}", expected
        )
    whole = parts.beside.get("global scale")
    if whole is None:
        if scale.stored.dtype.name not in ("uint8", "fp8_e8m0") or group.size != _MX:
            raise scale.wrong("is no exponent for each 32 inputs, and there is no global scale", "uint8")
        return four_bit_codes(parts, FourBit(_MX), dtypes.BF16)
    return four_bit_codes(parts, FourBit(group.size, divided=True), dtypes.BF16)


def four_bit_codes(parts: Parts, scheme: FourBit, dtype: dtypes.DType) -> StoredTensor:
    """A weight of codes of four bits, two in a byte; where there is a global scale, it is that of its scales, which are E4M3."""
    codes, scale, whole = parts.codes, parts.beside["scale"], parts.beside.get("global scale")
    matrices, _, half = matrices_of(codes)
    columns = 2 * half
    if columns % scheme.group:
        raise codes.wrong(f"has rows that are no whole groups of {scheme.group}")
    if whole is not None and scale.stored.dtype.name != "fp8_e4m3":
        raise scale.wrong("is no scale of NVFP4 by its dtype", "fp8_e4m3")
    shared = shared_scale(scale, codes, (1, scheme.group), columns=columns)
    operands = [codes.operand(half), shared.operand]
    if whole is not None:
        each = shared_scale(whole, codes, TENSOR)
        if (each.matrices, each.rows) != (shared.matrices, shared.rows) and matrices > 1:
            shared = each  # one scale for all experts
        operands.append(each.operand)
    exact = whole is None  # a power of two times a number of two bits
    numbers = lazy.Quantised(
        scheme, tuple(operands), shared.matrices, shared.rows, columns, exact=exact, what=parts.what
    )
    return numbers.tensor(dtype, (*codes.stored.shape[:-1], columns))
