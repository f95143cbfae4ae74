"""torchtitan's own config of a model since 0.3, for `--config`: a tree of modules, as `to_dict()` has it.

`--debug.save_config_file` writes it with all settings of the run, as `model_spec.model` beside the model's name; `json.dumps(config.to_dict())`
writes it alone. Every layer has a config of its own there; a model whose layers are not built alike is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Config,
    Facts,
    Refusal,
    by_layer,
    configs,
    decided,
    derived,
    fact_is,
    ignore,
    key,
    key_is,
    nested,
    note,
    rules,
    same_as,
    schema,
    values,
)
from ckpt_fsdp.titan.common import (
    BIAS_ASKED_OF_TENSORS,
    BIAS_ON_SCORES,
    DECODER,
    LATENT,
    LATENT_SIZES,
    ROUTING,
    YARN,
    YARN_CLAIMS,
    YARN_USES,
    YARN_WHY,
    enter_yarn,
)
from ckpt_fsdp.titan.models import DEEPSEEK_V3, LLAMA3, QWEN3

_EITHER = ("feed_forward", "moe")
_OF_LAYERS = ("attention", "attention_norm", "ffn_norm", *_EITHER)
_SILENT = ("param_init", "sharding_config")  # of every module: how its parameters begin, and which ranks hold them
_FOLLOWS = "follows from the sizes of the model, to which the shapes of the tensors are held"
_ROTARY = "attention.rotary.scaling"
_LLAMA = {
    "scaling_factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "original_max_position_embeddings": "original_positions",
}
_SCALING = ["scaling", *_LLAMA, *YARN, "truncate"]


def _kind_of(config: Mapping[str, Any], *known: str) -> str:
    """The stretching of rotary frequencies; `none`, or one that the model's rotary module may have."""
    kind = config["scaling"]
    if kind not in ("none", *known):
        raise CkptError(
            "key 'scaling' has a value that is not supported",
            found=repr(kind)[:60],
            expected=", ".join(("none", *known)),
        )
    return str(kind)


def _read_llama(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if _kind_of(config, "llama") == "llama":
        facts[f"{_ROTARY}.kind"] = schema.RotaryKind.LLAMA3
        for key, fact in _LLAMA.items():
            facts[f"{_ROTARY}.{fact}"] = values.checked(key, config[key], values.positive)


def _read_yarn(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if _kind_of(config, "yarn") == "yarn" and config["rope_factor"] > 1:
        enter_yarn(config, facts)
        if not values.checked("truncate", config["truncate"], values.flag):
            facts[f"{LATENT}.rotary.scaling.truncate"] = False


# fmt: off
def _linear(name: str, *, optional: bool = False) -> configs.Entry:
    return nested(name, [key_is("bias", False), ignore("in_features", "out_features", why=_FOLLOWS)], optional=optional)


def _width(name: str, width: configs.Entry) -> configs.Entry:
    """A feed-forward, whose width the first of its linears says."""
    return nested(name, [
        nested("w1", [width, key_is("bias", False), ignore("in_features", why=_FOLLOWS)]),
        _linear("w2"),
        _linear("w3"),
    ], optional=True)


def _norm(name: str, *paths: str, optional: bool = False) -> configs.Entry:
    return nested(name, [
        *(fact_is(f"{path}.kind", "rms") for path in paths),
        key("eps", *(f"{path}.eps" for path in paths)),
        key_is("elementwise_affine", True),
        ignore("normalized_shape", why=_FOLLOWS),
    ], optional=optional)


def _rotary(path: str, scaling: configs.Entry) -> configs.Entry:
    return nested("rope", [
        key("theta", f"{path}.theta"),
        scaling,
        note("max_seq_len", "max_positions"),
        ignore("dim", why=_FOLLOWS),
    ])


_INNER = nested("inner_attention", [
    key_is("window_size", [-1, 0], or_absent=True, why="a window of attention"),
    ignore("block_size", "kernel_options", why="which function computes attention"),
])
_MODEL = [
    *DECODER,
    key("dim", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    nested("tok_embeddings", [ignore("num_embeddings", "embedding_dim", why=_FOLLOWS)]),
    _linear("lm_head"),
    key("enable_weight_tying", "head.tied"),
    _norm("norm", "final_norm"),
    _norm("ffn_norm", "mlp.norm"),
    key("layers", "layers", type=values.layers),
    by_layer("layers_with_experts", "mlp.moe", rules.each(having=True, lacking=False)),
    _width("feed_forward", configs.in_other_layers("out_features", "mlp.ffn", than="mlp.moe", unused="dense_ffn")),
]
_EXPERTS = [
    key("num_experts", "mlp.moe.experts"),
    nested("router", [
        nested("gate", [key_is("bias", False), ignore("in_features", "out_features", why=_FOLLOWS)]),
        *ROUTING,
        ignore("num_experts", why=_FOLLOWS),
    ]),
    nested("routed_experts", [
        nested("inner_experts", [key("hidden_dim", "mlp.moe.ffn"), ignore("dim", "num_experts", why=_FOLLOWS)]),
        ignore("token_dispatcher", why="how tokens reach the ranks of their experts"),
    ]),
    _width("shared_experts", key("out_features", "mlp.moe.shared.ffn")),
]

GROUPED = Config("torchtitan's config of llama3 or qwen3", [
    *_MODEL,
    _norm("attention_norm", "attention.norm"),
    nested("attention", [
        key("n_heads", "attention.heads"),
        key("n_kv_heads", "attention.groups", default=same_as("n_heads")),
        derived("head_dim", "attention.head_dim", "dim / n_heads"),
        ignore("dim", why=_FOLLOWS),
        nested("qkv_linear", [
            _linear("wqkv", optional=True),
            _linear("wq", optional=True),
            _linear("wkv", optional=True),
            ignore("head_dim", "n_heads", "n_kv_heads", why=_FOLLOWS),
        ]),
        _linear("wo"),
        _norm("qk_norm", "attention.qk_norm", optional=True),
        _INNER,
        _rotary("attention.rotary", decided(_SCALING, [f"{_ROTARY}.*"], read=_read_llama, values={}, why="how frequencies are stretched")),
    ]),
    nested("moe", [
        *_EXPERTS,
        BIAS_ASKED_OF_TENSORS,
    ], optional=True),
])

LATENT_V3 = Config("torchtitan's config of deepseek_v3", [
    *_MODEL,
    _norm("attention_norm", f"{LATENT}.norm"),
    nested("attention", [
        *LATENT_SIZES,
        *(_linear(name, optional=True) for name in ("wq", "wq_a", "wq_b")),
        *(_linear(name) for name in ("wkv_a", "wkv_b", "wo")),
        # transformers and DeepSeek's own code have 1e-6 here, whatever the other norms have; a query that is not compressed has no norm
        nested("q_norm", [
            configs.where(f"{LATENT}.q_rank", [fact_is(f"{LATENT}.q_norm.kind", "rms"), key("eps", f"{LATENT}.q_norm.eps")]),
            key_is("elementwise_affine", True),
            ignore("normalized_shape", why=_FOLLOWS),
        ]),
        _norm("kv_norm", f"{LATENT}.kv_norm"),
        _INNER,
        _rotary(f"{LATENT}.rotary", decided(_SCALING, YARN_CLAIMS, read=_read_yarn, uses=["mscale", *YARN_USES], values={}, why=YARN_WHY)),
        ignore("mscale", why="it enters the scale of the scores with yarn alone"),
        ignore("dim", why=_FOLLOWS),
    ]),
    nested("moe", [
        *_EXPERTS,
        BIAS_ON_SCORES,
    ]),
    ignore("mtp_layers", why="layers that predict further tokens, on which the model's own outputs do not depend"),
])
# fmt: on


def tree_in(document: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]] | None:
    """The name of a model, where a document says it, and its config; None if the document is not torchtitan's."""
    spec = document.get("model_spec")
    name, model = (spec.get("name"), spec.get("model")) if isinstance(spec, Mapping) else (None, document)
    if not isinstance(model, Mapping) or not {"tok_embeddings", "lm_head", "norm", "layers"} <= model.keys():
        return None
    return name, model


def read_tree(name: str | None, model: Mapping[str, Any], file: str) -> Facts:
    """The facts of a config. Raises `Refusal` for a model that is none of the three, or whose layers are not built alike."""
    if name not in (None, LLAMA3, QWEN3, DEEPSEEK_V3):
        raise Refusal(
            f"torchtitan's model {name!r:.60} is not read", file=file, expected=f"{LLAMA3}, {QWEN3} or {DEEPSEEK_V3}"
        )
    folded = _folded(_bare(model), file)
    attention = folded.get("attention")
    latent = isinstance(attention, Mapping) and "kv_lora_rank" in attention
    return (LATENT_V3 if latent else GROUPED).read(folded, file)[0]


def _bare(value: Any) -> Any:
    """A part of the tree without what every module has and no output depends on."""
    if isinstance(value, Mapping):
        return {key: _bare(one) for key, one in value.items() if key not in _SILENT}
    return [_bare(one) for one in value] if isinstance(value, list) else value


def _folded(model: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The config with one config of each kind of module in place of those of all layers."""
    layers = model["layers"]
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, Mapping) for layer in layers):
        raise CkptError("key 'layers' is not a list of layers", file=file, found=repr(layers)[:60])
    folded: dict[str, Any] = {}
    for number, layer in enumerate(layers):
        for part, config in layer.items():
            if part not in _OF_LAYERS:
                raise CkptError(f"unknown config key 'layers.{number}.{part}'", file=file)
            if config is None and part in _EITHER:
                continue
            if folded.setdefault(part, config) != config:
                raise Refusal(
                    f"the layers are not built alike: {part} of layer {number} is another one",
                    file=file,
                    fix="give a config.json of transformers",
                )
    moe = [layer.get("moe") is not None for layer in layers]
    return {**model, **folded, "layers": len(layers), "layers_with_experts": moe}
