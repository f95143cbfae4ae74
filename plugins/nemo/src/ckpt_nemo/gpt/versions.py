"""Which version of NeMo reads which key of `model_config.yaml`, and what a model needs of NeMo.

An older NeMo ignores a key that it does not know: it restores another model, and says nothing. So what a config asks for is
held against this table, and the oldest version that reads all of it is written and said. The table is of the sources of
megatron_gpt_model.py and megatron_base_model.py at the tags from v1.16.0 on, and, as NeMo copies the fields of core's
TransformerConfig by name, of the core that its Dockerfile installs:

    NeMo 1.21  375395c1    1.22  e122536b    1.23  240a8ef7    2.0  0.9    2.1  0.10    2.2  0.11    2.3  0.12    2.4  0.13
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import schema

Version = tuple[int, int]


@schema.dataclass(frozen=True)
class Since:
    """NeMo `version` is the first that reads `key`; older ones compute what `usual` values say.

    `among` are the values that came with it, where other values are older. `names` is the code that it is of: `legacy`,
    `mcore`, or both (empty). `also` is what it takes besides this version.
    """

    key: str
    version: Version
    usual: tuple[object, ...]
    among: tuple[object, ...] = ()
    names: str = ""
    also: str = ""

    @property
    def release(self) -> str:
        return f"NeMo {self.version[0]}.{self.version[1]}"

    def __str__(self) -> str:
        return f"{self.release} or later{self.also}"

    def wanted(self, config: Mapping[str, Any]) -> bool:
        """Whether a config says what an older version does not read."""
        value = config.get(self.key)
        return value in self.among if self.among else value not in (None, *self.usual)


# fmt: off
SINCE = (
    Since("bias",                       (1, 17), (True,)),
    Since("activation",                 (1, 17), ("gelu",)),
    Since("activation",                 (1, 22), (), ("approx-gelu",)),
    Since("openai_gelu",                (1, 17), (False,), names="legacy"),
    Since("position_embedding_type",    (1, 17), ("learned_absolute",)),
    Since("rotary_percentage",          (1, 17), (1.0,)),
    Since("normalize_attention_scores", (1, 17), (True,)),
    Since("share_embeddings_and_output_weights", (1, 17), (True,)),
    Since("override_vocab_size",        (1, 20), ()),
    Since("megatron_legacy",            (1, 20), (False,)),
    Since("mcore_gpt",                  (1, 21), (False,)),
    Since("seq_len_interpolation_factor", (1, 21), (1, 1.0)),
    Since("rotary_base",                (1, 22), (10000,)),
    Since("num_moe_experts",            (1, 23), (1,)),
    Since("window_size",                (1, 23), ()),
    Since("qkv_bias",                   (2, 0), (False,)),
    Since("openai_gelu",                (2, 0), (False,), names="mcore"),
    Since("scale_positional_embedding", (2, 0), (False,)),
    Since("apply_embedding_scaling",    (2, 0), (False,)),
    Since("layernorm_zero_centered_gamma", (2, 0), (False,)),
    Since("qk_layernorm",               (2, 0), (False,)),
    Since("rotary_interleaved",         (2, 0), (False,)),
    Since("moe_router_pre_softmax",     (2, 0), (False,)),
    Since("moe_layer_freq",             (2, 1), (1,)),
    Since("moe_shared_expert_intermediate_size", (2, 1), (0,)),
    Since("moe_router_score_function",  (2, 2), ("softmax",)),
    Since("moe_router_enable_expert_bias", (2, 2), (False,)),
    Since("moe_router_topk_scaling_factor", (2, 2), (1.0,)),
    Since("moe_router_group_topk",      (2, 2), (0,)),
    # Core before 0.16 has `params={"gate": False}` in its layer spec.
    Since("moe_shared_expert_gate",     (2, 4), (False,), also=" with Megatron-Core 0.16 or later"),
)
# fmt: on
_BY_LAYER = ("moe_layer_freq",)  # a list has a number for each layer, of which there may be a hundred
# How the weights are kept.
BACKENDS: Mapping[str, Version] = {"ranks": (1, 0), "zarr": (1, 21), "torch_dist": (2, 0)}


def needs(config: Mapping[str, Any], backend: str) -> dict[str, Since]:
    """What takes a newer NeMo than the one before it, as `qkv_bias = True`, newest first."""
    names = "mcore" if config.get("mcore_gpt") else "legacy"
    lines = [line for line in SINCE if line.names in ("", names) and line.wanted(config)]
    found = {_said(line.key, config[line.key]): line for line in lines}
    if _experts_narrower(config):
        key = "moe_ffn_hidden_size"
        found[_said(key, config[key])] = Since(key, (2, 1), ())
    if BACKENDS[backend] > BACKENDS["ranks"]:
        found[f"weights in {backend}"] = Since("", BACKENDS[backend], ())
    return dict(sorted(found.items(), key=lambda item: item[1].version, reverse=True))


def _said(key: str, value: object) -> str:
    return f"{key} by layer" if key in _BY_LAYER and isinstance(value, list) else f"{key} = {value}"


def by_version(needed: Mapping[str, Since]) -> list[str]:
    """A line for each version, the newest first.

    >>> by_version(needs({"bias": False, "openai_gelu": True, "rotary_base": 5000}, "ranks"))
    ['NeMo 1.22 or later: rotary_base = 5000', 'NeMo 1.17 or later: bias = False, openai_gelu = True']
    """
    versions = dict.fromkeys(map(str, needed.values()))
    return [f"{one}: {', '.join(what for what, line in needed.items() if str(line) == one)}" for one in versions]


def _experts_narrower(config: Mapping[str, Any]) -> bool:
    """Whether experts are of another width than ffn_hidden_size, which they are of before moe_ffn_hidden_size came."""
    return config.get("moe_ffn_hidden_size") not in (None, config.get("ffn_hidden_size"))


def version_of(text: str) -> Version | None:
    """The version that a text says.

    >>> version_of("1.23.0"), version_of("2.0.0rc1"), version_of("main")
    ((1, 23), (2, 0), None)
    """
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def newer(version: str, than: Version) -> bool:
    """Whether a version of NeMo is at least the given one.

    >>> newer("1.23.0", (2, 0)), newer("2.0.0rc1", (2, 0))
    (False, True)
    """
    found = version_of(version)
    return found is not None and found >= than
