"""The families: what a `config.json` of each model class means, and which tensors it comes with.

A family is a config table and one or more tensor tables, side by side in a module of `ckpt_hf.families`.
Defaults are those of the family's config class: old files leave out what was default when they were written.

A conversion needs one family of some hundred, so a module is imported when one of its types is asked for, and a class with another
head is made when a model may be one.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ckpt_core.sdk import Architecture
    from ckpt_hf.common import Family

T = TypeVar("T")

# The modules, and the values of `model_type` that each of them is for. The order is that of preference where several classes can hold a
# model exactly.
# fmt: off
_MODULES = {
    "llama": "llama mistral ministral3 ministral cwm iquestcoder smollm3",
    "qwen": "qwen2 qwen3 qwen2_moe qwen3_moe mimo",
    "mixtral": "mixtral",
    "starcoder2": "starcoder2",
    "gpt2": "gpt2",
    "gemma": "gemma gemma2 vaultgemma gemma3_text",
    "nemotron": "nemotron",
    "phi3": "phi3",
    "olmo2": "olmo2 flex_olmo",
    "deepseek": "deepseek_v2 deepseek_v3 youtu deepseek_v32 kimi_k2",
    "falcon": "falcon",
    "gpt_neox": "gpt_neox",
    "t5": "t5 umt5 mt5",
    "blenderbot": "blenderbot",
    "bloom": "bloom",
    "vit": "vit",
    "bert": "bert megatron-bert ernie roberta xlm-roberta camembert data2vec-text roberta-prelayernorm",
    "modernbert": "modernbert",
    "olmo3": "olmo3",
    "olmoe": "olmoe",
    "glm": "glm glm4 glm4_moe solar_open glm_moe_dsa glm4_moe_lite",
    "minimax": "minimax_m2",
    "seed_oss": "seed_oss",
    "arcee": "arcee",
    "internlm3": "internlm3",
    "cohere": "cohere cohere2",
    "ernie": "ernie4_5 ernie4_5_moe",
    "dots1": "dots1",
    "hy_v3": "hy_v3",
    "exaone4": "exaone4 exaone_moe",
    "stablelm": "stablelm",
    "opt": "opt",
    "hunyuan": "hunyuan_v1_dense hunyuan_v1_moe",
    "qwen3_next": "qwen3_next qwen3_5_text qwen3_5_moe_text",
    "gpt_oss": "gpt_oss",
    "granite": "granite granitemoe granitemoeshared",
    "llama4": "llama4_text",
    "bailing": "bailing_moe",
    "sarvam": "sarvam_moe sarvam_mla",
    "exaone": "exaone",
    "jais2": "jais2",
    "olmo": "olmo",
    "helium": "helium",
    "phi": "phi",
    "persimmon": "persimmon",
    "gptj": "gptj",
    "gpt_neo": "gpt_neo",
    "gpt_bigcode": "gpt_bigcode",
    "mpt": "mpt",
    "biogpt": "biogpt",
    "afmoe": "afmoe",
    "mellum": "mellum",
    "flint": "flint",
    "nemotron_h": "nemotron_h",
    "granite_hybrid": "granitemoehybrid",
    "bamba": "bamba",
    "falcon_h1": "falcon_h1",
    "olmo_hybrid": "olmo_hybrid",
    "apertus": "apertus",
    "phimoe": "phimoe",
    "mamba2": "mamba2",
    "kimi_linear": "kimi_linear",
    "hyperclovax": "hyperclovax",
    "granite_swa": "granite_swa granitemoe_swa",
    "eurobert": "eurobert",
    "distilbert": "distilbert",
    "llada": "llada",
    "decilm": "nemotron-nas",
    "qwen_vl": "qwen2_vl qwen2_5_vl exaone4_5 qwen3_vl qwen3_vl_moe qwen3_5 qwen3_5_moe",
    "gemma_vl": "gemma3",
    "mistral_vl": "mistral3",
    "glm_vl": "glm4v_moe",
}
# fmt: on
_MODULE_OF = {kind: module for module, kinds in _MODULES.items() for kind in kinds.split()}


def _said(module: str) -> list[Family]:
    """The families that a module says."""
    found: list[Family] = importlib.import_module(f"ckpt_hf.families.{module}").FAMILIES
    return found


@functools.cache
def _with_head(module: str, family: int, head: int) -> Family:
    """The class of a family of a module with one of its other heads."""
    said = _said(module)[family]
    return said.with_head(said.heads[head])


def classes_of(kind: str) -> list[Family]:
    """The classes whose configs have this `model_type`; empty where there are none. Those with other heads come last."""
    module = _MODULE_OF.get(kind)
    if module is None:
        return []
    said = [(number, family) for number, family in enumerate(_said(module)) if family.model_type == kind]
    headed = [_with_head(module, number, head) for number, family in said for head in range(len(family.heads))]
    return [*(family for _, family in said), *headed]


def classes_with_head_of(architecture: Architecture, first: str) -> Iterator[Family]:
    """The classes whose models have the kind of head that a model has, in the order of preference: those of the type `first` first."""
    from ckpt_hf.heads import is_language_model

    if is_language_model(architecture):
        modules = [_MODULE_OF[first]] if first in _MODULE_OF else []
        of_first = [one for module in modules for one in _said(module) if one.model_type == first]
        others = (
            one for module in _MODULES for one in _said(module) if one.model_type != first
        )  # mostly not looked at
        yield from (one for one in itertools.chain(of_first, others) if one.head is None)
        return
    said = [family for module in _MODULES for family in _said(module)]
    heads = {id(head): head for family in said for head in (*family.heads, family.head) if head is not None}
    known = {number for number, head in heads.items() if head.holds(architecture)}
    plain = [family for family in said if (id(family.head) in known if family.head is not None else not known)]
    headed = [
        _with_head(module, number, place)
        for module in _MODULES
        for number, family in enumerate(_said(module))
        for place, head in enumerate(family.heads)
        if id(head) in known
    ]
    yield from sorted([*plain, *headed], key=lambda family: family.model_type != first)


class OnDemand(Sequence[T]):
    """A sequence that is made when somebody looks at it."""

    def __init__(self, make: Callable[[], Iterable[T]]) -> None:
        self._make = make

    @functools.cached_property
    def _all(self) -> tuple[T, ...]:
        return tuple(self._make())

    def __getitem__(self, index: Any) -> Any:
        return self._all[index]

    def __len__(self) -> int:
        return len(self._all)


def _every_class() -> Iterator[Family]:
    """Those that are said, and then the classes of the same decoders with other heads."""
    for module in _MODULES:
        yield from _said(module)
    for module in _MODULES:
        for number, family in enumerate(_said(module)):
            for head in range(len(family.heads)):
                yield _with_head(module, number, head)


class _ByType(Mapping[str, "Family"]):
    """The family of each `model_type`: of classes that share a type, the first is meant by a config that names none."""

    def __getitem__(self, kind: str) -> Family:
        return next(family for family in _said(_MODULE_OF[kind]) if family.model_type == kind)

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULE_OF)

    def __len__(self) -> int:
        return len(_MODULE_OF)


FAMILIES: Sequence[Family] = OnDemand(_every_class)
CLASS_NAMES: Sequence[str] = OnDemand(lambda: dict.fromkeys(family.class_name for family in FAMILIES))
BY_TYPE: Mapping[str, Family] = _ByType()
