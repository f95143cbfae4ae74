"""What the keys of a job's `config.json` mean: transformers' own, as far as NxDT's models follow it.

No checkpoint holds one. We write it beside the weights, for the job (`model.model_config`) and for the way back.
NxDT pins transformers 4.52, which reads `rope_theta` and `rope_scaling`, and knows no `rope_parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    Activation,
    Architecture,
    CkptError,
    Config,
    Facts,
    Ledger,
    Problems,
    Refusal,
    RotaryKind,
    architecture_of,
    custom,
    documents,
    fact_is,
    facts_of,
    ignore,
    key,
    key_is,
    note,
    one_of,
    same_as,
    uniform,
)

CONFIG = "config.json"
_NORMS = ("attention.norm", "mlp.norm", "final_norm")

# The kinds whose result is known to be that of transformers, and their keys in rope_scaling.
# fmt: off
_SCALING = {
    RotaryKind.LINEAR: {"factor": "factor"},
    RotaryKind.LLAMA3: {"factor": "factor", "low_freq_factor": "low_frequency_factor", "high_freq_factor": "high_frequency_factor",
                        "original_max_position_embeddings": "original_positions"},
}
# fmt: on


def _read_rotary(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    facts["attention.rotary.theta"] = float(config.get("rope_theta", 10000.0))
    scaling = config.get("rope_scaling")
    if scaling is None:
        return
    kinds = {str(kind): kind for kind in _SCALING}
    kind = kinds.get(str(scaling.get("rope_type", scaling.get("type"))))
    if kind is None or not {"rope_type", "type", *_SCALING[kind]} >= scaling.keys() >= _SCALING[kind].keys():
        known = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in _SCALING.items())
        raise CkptError("rope_scaling is not one of NxDT's", found=str(scaling)[:200], expected=known)
    facts["attention.rotary.scaling.kind"] = kind
    for setting, name in _SCALING[kind].items():
        value = scaling[setting]
        facts[f"attention.rotary.scaling.{name}"] = int(value) if name == "original_positions" else float(value)


def _write_rotary(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    if facts.present("attention.rotary") is not True:
        raise Refusal("every layer of it rotates", found=f"attention.rotary: {facts.present('attention.rotary')}")
    if uniform(facts, "attention.rotary.fraction") != 1.0:
        fraction = facts["attention.rotary.fraction"]
        raise Refusal("it rotates whole heads", found=f"attention.rotary.fraction = {fraction}")
    config["rope_theta"] = uniform(facts, "attention.rotary.theta")
    config["rope_scaling"] = None
    kind = uniform(facts, "attention.rotary.scaling.kind")
    if kind is None:
        return
    if kind not in _SCALING:
        found = f"attention.rotary.scaling.kind = {kind}"
        raise Refusal("its rotary scaling is none, linear or llama3", found=found)
    values = {key: uniform(facts, f"attention.rotary.scaling.{name}") for key, name in _SCALING[kind].items()}
    config["rope_scaling"] = {"rope_type": str(kind), **values}


def _read_head_dim(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    hidden, heads, given = (config.get(key) for key in ("hidden_size", "num_attention_heads", "head_dim"))
    if type(hidden) is not int or type(heads) is not int or heads < 1 or hidden % heads:
        raise CkptError("hidden_size is no multiple of num_attention_heads", found=f"{hidden} and {heads}")
    facts["attention.head_dim"] = hidden // heads
    if given not in (None, hidden // heads):
        raise CkptError("head_dim is not what NxDT computes with", found=given, expected=f"{hidden} / {heads}")


def _write_head_dim(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    head_dim, heads = uniform(facts, "attention.head_dim"), uniform(facts, "attention.heads")
    if head_dim * heads != facts["hidden"]:
        found = f"attention.head_dim = {head_dim}, {heads} heads, hidden {facts['hidden']}"
        raise Refusal("head_dim is always hidden_size / num_attention_heads", found=found)
    config["head_dim"] = head_dim


# fmt: off
LLAMA = Config("NxDT's LlamaForCausalLM", [
    ignore("architectures", "model_type", "transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache",
           "attention_dropout", why="names, dtypes and training settings"),
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    key("hidden_size", "hidden"),
    key("vocab_size", "tokens.vocabulary"),
    key("num_hidden_layers", "layers"),
    key("num_attention_heads", "attention.heads"),
    key("num_key_value_heads", "attention.groups", default=same_as("num_attention_heads")),
    custom(["head_dim"], ["attention.head_dim"], read=_read_head_dim, write=_write_head_dim),
    key("intermediate_size", "mlp.ffn"),
    key("hidden_act", "mlp.activation", default="silu", via=one_of({"silu": Activation.SILU})),
    fact_is("mlp.gated", True),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in _NORMS), default=1e-6),
    *(fact_is(f"{norm}.kind", "rms") for norm in _NORMS),
    key("tie_word_embeddings", "head.tied", default=False),
    custom(["rope_theta", "rope_scaling"], ["attention.rotary.*", "attention.rotary?"], read=_read_rotary, write=_write_rotary),
    # All linear layers of the job's model are built without biases, whatever these say.
    key_is("attention_bias", False, or_absent=True),
    key_is("mlp_bias", False, or_absent=True),
    key_is("pretraining_tp", 1, or_absent=True),
    note("max_position_embeddings", "max_positions", default=2048),
    note("initializer_range", "initializer_range", default=0.02),
    note("bos_token_id", "bos"),
    note("eos_token_id", "eos"),
    note("pad_token_id", "pad"),
])

MIXTRAL = LLAMA.replace("NxDT's MixtralForCausalLM",
    key("intermediate_size", "mlp.moe.ffn"),
    key("num_local_experts", "mlp.moe.experts"),
    key("num_experts_per_tok", "mlp.moe.router.top_k"),
    fact_is("mlp.moe.router.score", "softmax"),
    # moe.normalize_top_k_affinities
    fact_is("mlp.moe.router.normalise", True),
    key_is("sliding_window", None, or_absent=True),
    note("router_aux_loss_coef", "nxdt.router_aux_loss_coef"),
    ignore("output_router_logits", "router_jitter_noise", why="training only"),
    without=["mlp.ffn", "attention_bias", "mlp_bias", "pretraining_tp"],
)
# fmt: on
_TABLES = {"llama": LLAMA, "mixtral": MIXTRAL}


def table_for(kind: str) -> Config:
    """The table of a model_type."""
    return _TABLES[kind]


def read_config(path: str, ledger: Ledger) -> tuple[Architecture, dict[str, Any]]:
    """The architecture and the notes in a `config.json` that lies beside a checkpoint, whose keys enter `ledger`."""
    body = documents.read_json_object(path)
    kind = body.get("model_type")
    if not isinstance(kind, str) or kind not in _TABLES:
        raise CkptError(
            "no job has a model of this type",
            file=path,
            found=repr(kind),
            expected=", ".join(_TABLES),
            fix="take it away, and give the config of the model with --config",
        )
    facts, notes = _TABLES[kind].read(body, path)
    ledger.config(path, _TABLES[kind].fates(body))
    facts["tokens.padded_vocabulary"] = facts["tokens.vocabulary"]
    return architecture_of(facts, path), notes


def write_config(architecture: Architecture, notes: Mapping[str, Any], style: str) -> dict[str, Any]:
    """The `config.json` of a model, for transformers 4.52; `Refusal` naming every fact that a job of this style cannot have."""
    facts = facts_of(architecture)
    facts.pop("tokens.padded_vocabulary", None)
    kind = "mixtral" if facts.present("mlp.moe") is True else "llama"
    problems = Problems(f"{_TABLES[kind].name} cannot hold this architecture")
    body: dict[str, Any] = {}
    try:
        body = _TABLES[kind].write(facts, notes)
    except CkptError as problem:
        problems.add(problem)
    if style == "megatron" and facts.get("attention.rotary.scaling.kind") is RotaryKind.LLAMA3:
        found = "attention.rotary.scaling.kind = llama3"
        problems.add(Refusal("the megatron style has no llama3 scaling", found=found))
    problems.raise_any()
    name = {"llama": "LlamaForCausalLM", "mixtral": "MixtralForCausalLM"}[kind]
    # NxDT never ties, and its pipeline does not work with a config that asks for it.
    return {"architectures": [name], "model_type": kind, **body, "tie_word_embeddings": False}
