"""What `adapter_config.json` means for a merge, key by key: of PEFT 0.21, and of every version before.

A key changes the merge, or never does, or asks for something that is not done and is then refused by its name. A key that is
none of these is refused too, unless it is empty.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Refusal, errors, ledgers, schema
from ckpt_peft import patterns

LORA = "LORA"
_UNSAID_RELEASE = (0, 17)
"""The release that wrote a config without `peft_version`, or one before it: 0.18 was the first to say its own."""

# Keys that say how the adapter was trained, or how a framework makes its modules.
_SILENT = {
    "lora_dropout": "dropout is of training alone",
    "inference_mode": "it says whether the adapter is trained on",
    "task_type": "the keys of the tensors say which modules there are",
    "auto_mapping": "the keys of the tensors say which modules there are",
    "megatron_core": "it names a module, which megatron_config alone would use",
    "qalora_group_size": "use_qalora alone would use it",
    "loftq_config": "it says how A and B began; init_lora_weights says whether the base was changed",
    "eva_config": "it says how A and B began, and the base stays as it is",
    "corda_config": "it says how A and B began; init_lora_weights says whether the base was changed",
    "lora_ga_config": "it says how A and B began; init_lora_weights says whether the base was changed",
    "runtime_config": "it says how to run it",
    "merge_weights": "of PEFT before 0.3: whether its layers merge when they are evaluated",
}
# Keys by which the adapter is more, or something else, than a product of two matrices.
_NOT_DONE = {
    "megatron_config": "modules of Megatron, which have other names",
    "layer_replication": "layers of the base that are repeated",
    "trainable_token_indices": "single rows of the embedding, kept in a wrapper of their own",
    "alora_invocation_tokens": "activated LoRA, whose adapter holds for some positions alone",
    "arrow_config": "Arrow, which routes between adapters",
    "kasa_config": "KaSA, which changes the base",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA, whose adapter is random",
    "use_bdlora": "BD-LoRA, whose matrices are block-diagonal",
    "use_qalora": "QALoRA, whose A is of pooled inputs",
    "enable_lora": "LoRA on parts of a fused projection, of PEFT before 0.3",
}
_USED = (
    "peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
    "fan_in_fan_out", "bias", "lora_bias", "modules_to_save", "target_modules", "target_parameters", "exclude_modules",
    "layers_to_transform", "layers_pattern", "ensure_weight_tying", "init_lora_weights", "peft_version",
)  # fmt: skip
# What `init_lora_weights` may be where the base stays as it is: A and B are random then, or zero, or made of activations.
_UNCHANGED = ("gaussian", "orthogonal", "eva", "mica")
# And where the start of A @ B was taken from the base: the published one is another than the one that was trained on.
_CHANGED = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "loftq": "LoftQ", "lora_ga": "LoRA-GA"}


@schema.dataclass(frozen=True)
class Settings:
    """What a config says of a merge. Ranks and alphas are looked up by the path of a module: see `rank` and `scale`."""

    base: str | None
    revision: str | None
    default_rank: int
    default_alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    dora: bool
    bias: str
    lora_bias: bool
    saved_modules: tuple[str, ...]
    targets: str | tuple[str, ...] | None
    target_parameters: tuple[str, ...]
    excluded: str | tuple[str, ...]
    layers: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    tied: bool
    release: tuple[int, ...] | None = None

    def rank(self, module: str) -> int:
        """The rank that the config has for a module or a parameter."""
        return _matched(self.rank_pattern, module, self.default_rank)

    def scale(self, module: str) -> float:
        """What the product of a module's two matrices is multiplied by."""
        rank = self.rank(module)
        return _matched(self.alpha_pattern, module, self.default_alpha) / (math.sqrt(rank) if self.rslora else rank)

    def saves(self, name: str) -> bool:
        """Whether a tensor is one of a module of `modules_to_save`."""
        return any(saved_as(module, name) for module in self.saved_modules)

    def targets_module(self, name: str) -> bool:
        """Whether `target_modules` means a module of this path, as PEFT decides it (`check_target_module_exists`)."""
        if self.targets is None or _names(self.excluded, name):
            return False
        if any(patterns.match(rf"(^|.*\.){module}($|\..*)", name) for module in self.saved_modules):
            return False
        if isinstance(self.targets, str):
            return patterns.fits(self.targets, name)
        return _names(self.targets, name) and self._in_layers(name)

    def targets_parameter(self, name: str) -> bool:
        """Whether `target_parameters` means a parameter of this path."""
        return _names(self.target_parameters, name)

    def crosses_experts(self, straight: bool) -> bool | None:
        """Whether A of fused experts runs over their output, by the release of PEFT; None where transformers' release decides, too.

        `straight` experts are kept as [experts, out, in]. Until 0.19 PEFT took the first dimension for the input, and since 0.20 it takes
        the last; where the class says `is_transposed` (GPT-OSS of transformers 5), 0.19 takes the last one, and 0.20 the first
        (peft 0.17.1 to 0.21.2, tuners/lora/layer.py: `ParamWrapper.update_layer`).
        """
        if self.release is None:
            return None
        if straight:
            return self.release < (0, 20)
        return False if self.release < (0, 19) else None

    def _in_layers(self, name: str) -> bool:
        """Whether a module is in a layer that is adapted. The number is what the first group matched, as PEFT has it."""
        return self.layers is None or self.layer_of(name) in self.layers

    def layer_of(self, name: str) -> int | None:
        """The number of the layer of a module, by `layers_pattern`; None for one outside of layers."""
        ways = [rf"(?:^|.*?\.){one}\.(\d+)\." for one in self.layers_pattern] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((match for way in ways if (match := patterns.match(way, name))), None)
        if found is None:
            return None
        if not (found[1] or "").isdecimal():
            raise CkptError(
                f"layers_pattern {', '.join(self.layers_pattern)!r:.80} has a group of its own",
                found=f"{found[1]!r:.40} in {name}, where PEFT reads the number of the layer",
                fix="write the group as (?:...)",
            )
        return int(found[1])


def saved_as(module: str, name: str) -> bool:
    """Whether an entry of `modules_to_save` means the module of a tensor, or one around it. PEFT compares the ends of their paths without a dot
    (peft 0.21.2, utils/other.py, `_set_trainable`): "norm" means "input_layernorm" too."""
    parts = name.split(".")
    return any(".".join(parts[:count]).endswith(module) for count in range(1, len(parts)))


def _matched(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first key that is a module's path, or the end of it from a dot on; each key is a regular expression."""
    return next((value for key, value in pattern.items() if patterns.match(_of_modules(key), module)), default)


def _of_modules(key: str) -> str:
    """The regular expression that PEFT makes of a key of a pattern."""
    return rf"(.*\.)?({key})$"


def _names(targets: str | tuple[str, ...], name: str) -> bool:
    if isinstance(targets, str):
        return bool(targets) and patterns.fits(targets, name)
    return name in targets or any(name.endswith(f".{one}") for one in targets)


# --- reading -----------------------------------------------------------------------------------------------------------


def read_settings(config: Mapping[str, Any], file: str, residual_base: bool) -> Settings:
    """The settings of a config; every key that is refused, unknown or of a wrong type is raised at once."""
    problems = errors.Problems(f"reading {file}")
    for problem in problems_of(config, residual_base):
        problem.file = file
        problems.add(problem)
    problems.raise_any()
    return _settings(config)


def enter(config: Mapping[str, Any], file: str, ledger: ledgers.Ledger) -> None:
    """Enter every key in the ledger."""
    ledger.config(file, {key: ("left", _SILENT[key]) if key in _SILENT else ("used", "the merge") for key in config})


def problems_of(config: Mapping[str, Any], residual_base: bool) -> Iterator[CkptError]:
    """Everything in a config that keeps the adapter from being merged."""
    kind = config.get("peft_type")
    if kind != LORA:
        yield Refusal(f"adapters of peft_type {kind!r:.40} are not merged", expected=LORA)
        return
    for key, value in config.items():
        if key in _TYPES:
            wrong = list(_TYPES[key].problems(key, value))
            yield from wrong or _pattern_problems(key, value)
        elif key in _NOT_DONE and not _is_empty(value):
            yield Refusal(f"key {key!r} asks for {_NOT_DONE[key]}, which is not done", found=str(value)[:80])
        elif key not in (*_USED, *_SILENT, *_NOT_DONE) and not _is_empty(value):
            yield CkptError(
                f"unknown config key {key!r}",
                found=str(value)[:80],
                fix=errors.did_you_mean(
                    key, (*_USED, *_NOT_DONE), "if it changes no merge, name it in -o ignore_keys=..."
                ),
            )
    for key in ("r", "lora_alpha"):
        if key not in config:
            yield CkptError(f"config key {key!r} is missing", expected="the rank, or what the product is scaled with")
    yield from _start_problems(config.get("init_lora_weights"), residual_base)


def _pattern_problems(key: str, value: Any) -> Iterator[CkptError]:
    """What is wrong with the regular expressions of a key whose value is of the right type."""
    if key in ("rank_pattern", "alpha_pattern"):
        ways = [_of_modules(one) for one in value or ()]
    else:
        ways = [value] if key in ("target_modules", "exclude_modules") and isinstance(value, str) else []
    for way in ways:
        try:
            patterns.check(way)
        except CkptError as error:
            yield CkptError(
                f"config key {key!r}: {error.problem}", found=error.found, expected=error.expected, fix=error.fix
            )


def _start_problems(start: object, residual_base: bool) -> Iterator[CkptError]:
    if start is None or isinstance(start, bool) or start in _UNCHANGED:
        return
    known = next((name for key, name in _CHANGED.items() if str(start).lower().startswith(key)), None)
    if known is None:
        yield Refusal(
            f"key 'init_lora_weights' has an unknown value {start!r:.60}",
            expected=f"a start that leaves the base as it is: true, false, {', '.join(_UNCHANGED)}",
        )
    elif not residual_base:
        yield Refusal(
            f"the adapter began with {known} (init_lora_weights={start!r:.40}), which took a part of the base away: added to the "
            "published base it gives another model",
            fix="give the base that was left and -o residual_base=true, or convert the adapter with PEFT "
            "(save_pretrained with path_initial_model_for_weight_conversion)",
        )


def _is_empty(value: object) -> bool:
    return value is None or value is False or value in ([], {}, "")


@schema.dataclass(frozen=True)
class _Type:
    """What a value must be, in words, and whether it is."""

    said: str
    holds: Callable[[Any], bool]

    def problems(self, key: str, value: object) -> Iterator[CkptError]:
        if not self.holds(value):
            yield CkptError(f"config key {key!r} has a wrong value", found=f"{value!r}"[:80], expected=self.said)


def _is_rank(value: object) -> bool:
    return type(value) is int and value > 0


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _release(value: object) -> tuple[int, ...] | None:
    """A release as numbers: `0.18.1`, and `0.19.0.dev0` as 0.19.0; None for anything else."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", value) if isinstance(value, str) else None
    return tuple(int(part) for part in found.groups(default="0")) if found else None


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_FLAG = _Type("true or false", lambda value: value is None or isinstance(value, bool))
_NAMES = _Type("a list of names, or null", lambda value: value is None or _is_names(value))
_EITHER = _Type(
    "a list of names, a regular expression, or null", lambda v: v is None or isinstance(v, str) or _is_names(v)
)
_TEXT = _Type("a name, or null", lambda value: value is None or isinstance(value, str))
_TYPES = {
    "base_model_name_or_path": _TEXT,
    "revision": _TEXT,
    "r": _Type("a rank of at least 1", _is_rank),
    "lora_alpha": _Type("a number", _is_number),
    "rank_pattern": _Type(
        "ranks by regular expressions", lambda v: v is None or (isinstance(v, dict) and all(map(_is_rank, v.values())))
    ),
    "alpha_pattern": _Type(
        "numbers by regular expressions",
        lambda v: v is None or (isinstance(v, dict) and all(map(_is_number, v.values()))),
    ),
    "use_rslora": _FLAG,
    "use_dora": _FLAG,
    "fan_in_fan_out": _FLAG,
    "lora_bias": _FLAG,
    "ensure_weight_tying": _FLAG,
    "bias": _Type("none, all or lora_only", lambda value: value in (None, "none", "all", "lora_only")),
    "modules_to_save": _NAMES,
    "target_modules": _EITHER,
    "target_parameters": _NAMES,
    "exclude_modules": _EITHER,
    "layers_to_transform": _Type(
        "numbers of layers, or null",
        lambda v: v is None or type(v) is int or (isinstance(v, list) and all(type(one) is int for one in v)),
    ),
    "layers_pattern": _EITHER,
}


def _settings(config: Mapping[str, Any]) -> Settings:
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    excluded, pattern = config.get("exclude_modules") or (), config.get("layers_pattern") or ()
    return Settings(
        base=config.get("base_model_name_or_path") or None,
        revision=config.get("revision") or None,
        default_rank=config["r"],
        default_alpha=config["lora_alpha"],
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        bias=config.get("bias") or "none",
        lora_bias=bool(config.get("lora_bias")),
        saved_modules=tuple(config.get("modules_to_save") or ()),
        targets=targets if targets is None or isinstance(targets, str) else tuple(targets),
        target_parameters=tuple(config.get("target_parameters") or ()),
        excluded=excluded if isinstance(excluded, str) else tuple(excluded),
        layers=None if layers in (None, []) else (layers,) if isinstance(layers, int) else tuple(layers),
        layers_pattern=(pattern,) if isinstance(pattern, str) else tuple(pattern),
        tied=bool(config.get("ensure_weight_tying")),
        release=_release(config["peft_version"]) if "peft_version" in config else _UNSAID_RELEASE,
    )
