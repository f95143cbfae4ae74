"""The order in which classes of transformers register their parameters: what an optimizer has in place of names.

It is the order in which the `__init__` of a module makes its parts, which neither their names nor the order in files tell. Each entry is that of
`named_parameters()` in transformers 5.24; a class that has none is refused. Those of dense classes are the same in transformers 4.57. Its mixtures of
experts have a module for each expert, one after the other, and some make the router first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckpt_core.sdk import errors, layouts

_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "post_self_attn_layernorm",
    "post_mlp_layernorm",
)
_USUAL = ("linear_attn", "self_attn", "mlp", *_NORMS)
_ROUTER_LAST = ("self_attn", "mlp.experts", "mlp.gate", "mlp", *_NORMS)
_SINKS_FIRST = ("self_attn.sinks", "self_attn", "mlp", *_NORMS)
_EXPERTS_LAST = ("self_attn", *_NORMS, "block_sparse_moe", "shared_mlp")

# The parts of a layer, in their order, by model_type. What has no part of its own follows, in the order of the tables.
_ORDERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *(
                "llama",
                "mistral",
                "ministral",
                "ministral3",
                "smollm3",
                "cwm",
                "iquestcoder",
                "mixtral",
                "qwen2",
                "qwen3",
            ),
            *("gemma", "gemma2", "gemma3_text", "nemotron", "phi3", "olmo", "olmo2", "olmo3", "olmoe", "glm", "glm4"),
            *(
                "seed_oss",
                "arcee",
                "internlm3",
                "cohere",
                "cohere2",
                "ernie4_5",
                "exaone4",
                "stablelm",
                "granite",
                "helium",
            ),
        ),
        _USUAL,
    ),
    **dict.fromkeys(("qwen3_moe", "mellum", "deepseek_v2"), _ROUTER_LAST),
    **dict.fromkeys(("granitemoe", "granitemoeshared"), _EXPERTS_LAST),
    "gpt_oss": _SINKS_FIRST,
}
# The same in transformers 4.57, of classes whose experts have other names there, one each or fused.
_ORDERS_OF_4: dict[str, tuple[str, ...]] = {
    "mixtral": ("self_attn", "block_sparse_moe.gate", "block_sparse_moe.experts", *_NORMS),
    **dict.fromkeys(("qwen3_moe", "olmoe"), ("self_attn", "mlp.gate", "mlp.experts", "mlp", *_NORMS)),
    "deepseek_v2": _ROUTER_LAST,
    **dict.fromkeys(
        ("granitemoe", "granitemoeshared"),
        (
            "self_attn",
            *(f"block_sparse_moe.{part}" for part in ("input_linear", "output_linear", "router")),
            *_NORMS,
            "shared_mlp",
        ),
    ),
}

# `get_decay_parameter_names` in trainer.py: what is not decayed, besides the modules of torch.nn.LayerNorm, whose names say the same here.
_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
_LAYER = re.compile(r"\.\d+\.(.*)")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_OF_4 = re.compile(_EXPERT.pattern + r"|\.block_sparse_moe\.input_linear\.")


def registered(model_type: str, class_name: str, natives: Mapping[str, layouts.Native]) -> list[str]:
    """The names of `natives` in the order of `named_parameters()`, without copies. `NotCarried` for a class whose order is not known.

    Where experts are called as transformers 4 has them in memory, it is that of transformers 4.
    """
    orders = _ORDERS_OF_4 if any(map(_OF_4.search, natives)) else _ORDERS
    order = orders.get(model_type)
    if order is None or not class_name.endswith("ForCausalLM"):
        raise errors.NotCarried(
            f"an optimizer names no parameters, and the order in which {class_name} registers them is not known here",
            fix="convert the weights alone, with --training-state drop",
        )

    def place(numbered: tuple[int, str]) -> tuple[int, ...]:
        number, name = numbered
        native = natives[name]
        if native.layer is None:
            holds = {piece.parameter.partition(".")[0] for piece in native.pieces}
            return {frozenset({"embedding"}): 0, frozenset({"head"}): 3}.get(frozenset(holds), 2), 0, 0, 0, number
        found = _LAYER.search(name)
        rest = found[1] if found else name
        parts = (part for part, begin in enumerate(order) if rest == begin or rest.startswith(f"{begin}."))
        expert = _EXPERT.search(name)
        return 1, native.layer, next(parts, len(order)), int(expert[1]) if expert else 0, number

    names = [name for name, native in natives.items() if not native.row.copy]
    return [name for _, name in sorted(enumerate(names), key=place)]


def is_decayed(name: str) -> bool:
    """Whether the Trainer decays a parameter: all but biases and norms, by their names.

    >>> is_decayed("model.layers.0.mlp.up_proj.weight"), is_decayed("model.layers.0.self_attn.q_norm.weight"), is_decayed("model.norm.weight")
    (True, False, False)
    """
    return _NOT_DECAYED.search(name.lower()) is None
