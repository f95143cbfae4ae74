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
    ReadRequest,
    Refusal,
    architecture_of,
    configs,
    decided,
    documents,
    errors,
    fact_is,
    facts_of,
    ignore,
    key,
    key_is,
    ledgers,
    note,
    one_of,
    reading,
    same_as,
    schema,
    values,
)

CONFIG = "config.json"
_NORMS = ("attention.norm", "mlp.norm", "final_norm")


def _read_head_dim(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    hidden, heads, given = (config.get(key) for key in ("hidden_size", "num_attention_heads", "head_dim"))
    if type(hidden) is not int or type(heads) is not int or heads < 1 or hidden % heads:
        raise CkptError("hidden_size is not a multiple of num_attention_heads", found=f"{hidden} and {heads}")
    facts["attention.head_dim"] = hidden // heads
    if given not in (None, hidden // heads):
        raise CkptError("head_dim is not what NxDT computes with", found=given, expected=f"{hidden} / {heads}")


_SCALING = "attention.rotary.scaling"

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
    decided(["head_dim"], ["attention.head_dim"], read=_read_head_dim, values={"head_dim": [configs.value_of("attention.head_dim")]},
            uses=["hidden_size", "num_attention_heads"], why="head_dim is always hidden_size / num_attention_heads"),
    key("intermediate_size", "mlp.ffn"),
    key("hidden_act", "mlp.activation", default="silu", via=one_of({"silu": Activation.SILU})),
    fact_is("mlp.gated", True),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in _NORMS), default=1e-6),
    *(fact_is(f"{norm}.kind", "rms") for norm in _NORMS),
    key("tie_word_embeddings", "head.tied", default=False),
    key("rope_theta", "attention.rotary.theta", default=10000.0, null=configs.REQUIRED, type=values.positive),
    fact_is("attention.rotary.fraction", 1.0),
    # the kinds whose result is known to be that of transformers
    configs.tagged("rope_scaling", f"{_SCALING}.kind", tag=["rope_type", "type"], via=one_of({str(kind): kind for kind in (schema.RotaryKind.LINEAR, schema.RotaryKind.LLAMA3)}), kinds={
        None: [],
        "linear": [key("factor", f"{_SCALING}.factor", type=values.number)],
        "llama3": [
            key("factor", f"{_SCALING}.factor", type=values.number),
            key("low_freq_factor", f"{_SCALING}.low_frequency_factor", type=values.number),
            key("high_freq_factor", f"{_SCALING}.high_frequency_factor", type=values.number),
            key("original_max_position_embeddings", f"{_SCALING}.original_positions", type=values.whole),
        ],
    }),
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


def read_config(path: str, request: ReadRequest, ledger: ledgers.Ledger) -> tuple[Architecture, dict[str, Any]]:
    """The architecture and the notes in a `config.json` that lies beside a checkpoint, whose keys enter `ledger`."""
    body = reading.without_ignored(documents.read_json_object(path), request, ledger, path)
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
    problems = errors.Problems(f"{_TABLES[kind].name} cannot hold this architecture")
    body: dict[str, Any] = {}
    try:
        body = _TABLES[kind].write(facts, notes)
    except CkptError as problem:
        problems.add(problem)
    if style == "megatron" and facts.get("attention.rotary.scaling.kind") is schema.RotaryKind.LLAMA3:
        found = "attention.rotary.scaling.kind = llama3"
        problems.add(Refusal("the megatron style has no llama3 scaling", found=found))
    problems.raise_any()
    name = {"llama": "LlamaForCausalLM", "mixtral": "MixtralForCausalLM"}[kind]
    # NxDT never ties, and its pipeline does not work with a config that asks for it.
    return {"architectures": [name], "model_type": kind, **body, "tie_word_embeddings": False}
