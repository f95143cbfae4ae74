"""What run_config.yaml says about the model, and the provider classes that a model is written as."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Config, Facts, FormatError, Refusal, configs, documents, layouts, schema, torch_files
from ckpt_megatron import weights
from ckpt_megatron.bridge.classes import ORIGIN, unusual_for, unusual_table
from ckpt_megatron.bridge.seeing import Seeing, classes_of
from ckpt_megatron.bridge.uneven import is_uneven
from ckpt_megatron.transformer_config.config_fields import listed
from ckpt_megatron.transformer_config.delta import SPEC as DELTA_SPEC
from ckpt_megatron.transformer_config.delta import refuse_unwritten
from ckpt_megatron.transformer_config.falcon_h1 import falcon_h1, fields_of_the_class
from ckpt_megatron.transformer_config.fields import SPEC, latent, scaled_embedding, usual
from ckpt_megatron.transformer_config.hybrid import hybrid, refuse_unwritten_hybrid
from ckpt_megatron.transformer_config.indexer import indexers, refuse_unwritten_indexer
from ckpt_megatron.transformer_config.positions import LLAMA31_FIELDS
from ckpt_megatron.transformer_config.targets import plain

PACKAGE = "megatron.bridge.models"
_FUNCTIONS = "megatron.core.activations"
_SPECS = "megatron.core.models.gpt.gpt_layer_specs"
OLD = "0.2"
VERSIONS = (OLD, "0.4", "0.6")
"""Versions to write for. Those up to 0.3.0 are as 0.2; 0.4 stands for 0.3.1 to 0.5."""
GPT = usual("Megatron-Bridge's GPTModelProvider", _FUNCTIONS, yarn=True, delta=True).replace(
    "Megatron-Bridge's GPTModelProvider", ORIGIN
)
MLA = latent("Megatron-Bridge's MLAModelProvider", _FUNCTIONS).replace(
    "Megatron-Bridge's MLAModelProvider", ORIGIN, *indexers()
)
HYBRID = hybrid(GPT, "Megatron-Bridge's HybridModelProvider")
FALCON_H1 = falcon_h1(GPT, "Megatron-Bridge's FalconH1ModelProvider")
GEMMA = GPT.replace("Megatron-Bridge's GemmaModelProvider", scaled_embedding())

SEEING = {one.target: one for one in classes_of(GPT)}
"""The classes of models that see, by their dotted names."""

GPT_SEEING = next(iter(SEEING))
"""The class whose table refuses what none of them holds."""
GPT_CLASS = f"{PACKAGE}.gpt_provider.GPTModelProvider"
_GEMMA_CLASS = f"{PACKAGE}.gemma.gemma_provider.GemmaModelProvider"
_HYBRID_CLASS = f"{PACKAGE}.hybrid.hybrid_provider.HybridModelProvider"  # since 0.6
_FALCON_H1_CLASS = f"{PACKAGE}.falcon_h1.falconh1_provider.FalconH1ModelProvider"
_WITH_MAMBA = {_HYBRID_CLASS: HYBRID, _FALCON_H1_CLASS: FALCON_H1}
_MLA_CLASS = f"{PACKAGE}.mla_provider.MLAModelProvider"  # since 0.3.1
_DEEPSEEK = f"{PACKAGE}.deepseek.deepseek_provider"  # until 0.3.1
_LLAMA31_CLASS = f"{PACKAGE}.llama.llama_provider.Llama31ModelProvider"  # until 0.3.1

# Classes that build a GPTModel and do nothing to it but what their fields say, under the names of 0.2 to 0.6.
# Those of Gemma scale the embedding, too, and Gemma 2 and 3 have layers of their own (`classes`).
_PLAIN = re.compile(
    r"(GPT|MLA|(Code)?Llama[23]?|Llama3[123]|Llama31Nemotron(70B|Nano8B)|Mistral(Small3)?|Qwen(2|25|3|3MoE)|Nemotron[34]?"
    r"|DeepSeek(V2|V2Lite|V3)?|Moonlight|GLM(MoE|45|45Air)|(Code)?Gemma|Gemma[23]|LLaDA15|LlamaNemotronHeterogeneous)(Model)?(Provider|Builder|Config)(\d+(P\d+)?[MB](_A\d+B)?)?"
)


def run_config(data: bytes, file: str) -> dict[str, Any]:
    """The sections of run_config.yaml."""
    body = plain(documents.parse_yaml(data, file))
    if not isinstance(body, dict):
        raise FormatError("the run config has no sections", file=file, found=torch_files.brief(body), expected="model:")
    return body


def model_section(sections: Mapping[str, Any], file: str) -> tuple[str, dict[str, Any]]:
    """The provider class in the sections of run_config.yaml, and all its fields."""
    model = sections.get("model")
    if not isinstance(model, dict):
        raise FormatError(
            "the run config describes no model", file=file, found=torch_files.brief(model), expected="model:"
        )
    fields = {key: value for key, value in model.items() if key not in ("_target_", "_builder_")}
    inner = fields.pop("transformer", None)  # since 0.6, with _builder_: TransformerConfig as a field of its own
    if isinstance(inner, dict):
        fields = {key: value for key, value in inner.items() if key != "_target_"} | fields
    target = model.get("_target_", model.get("_builder_"))
    if not isinstance(target, str):
        raise FormatError(
            "the model of the run config has no class", file=file, found=torch_files.brief(target), expected="_target_"
        )
    return target, fields


def short(target: str) -> str:
    """The last part of a dotted name."""
    return target.rpartition(".")[2]


def is_plain(target: str) -> bool:
    """Whether all that a provider class does is in its fields.

    >>> is_plain("megatron.bridge.models.qwen.qwen_provider.Qwen3MoEModelProvider30B_A3B")
    True
    >>> is_plain("megatron.bridge.models.gemma_vl.gemma4_vl_provider.Gemma4VLModelProvider")
    False
    """
    return (
        target in _WITH_MAMBA
        or target in SEEING
        or (target.startswith("megatron.bridge.") and _PLAIN.fullmatch(short(target)) is not None)
    )


def scales_embedding(target: str) -> bool:
    return short(target).removeprefix("Code").startswith("GemmaModelProvider")


def table_of(target: str, fields: Mapping[str, Any]) -> Config:
    """The table for what a provider class does with its fields."""
    if target in SEEING:
        return SEEING[target].config
    if fields.get("multi_latent_attention"):
        return MLA
    if target in _WITH_MAMBA:
        return _WITH_MAMBA[target]
    unusual = unusual_table(short(target), fields)
    if unusual is not None:
        return unusual
    return GEMMA if scales_embedding(target) else GPT


def tables_of(target: str) -> layouts.Tables:
    """The tables of the tensors of a provider class."""
    return SEEING[target].tables if target in SEEING else weights.TABLES


def version_of(target: str, fields: Mapping[str, Any]) -> str:
    """The oldest of `VERSIONS` that is not older than a class and these fields."""
    of_class = (0, 3, 1) if target == _MLA_CLASS else _parts(OLD)
    newest = max([of_class, *(since for key, since in _since().items() if key in fields)])
    return next((version for version in VERSIONS if newest <= _parts(version)), VERSIONS[-1])


@functools.cache
def _since() -> dict[str, tuple[int, ...]]:
    """The first version with a field, of fields that are Bridge's own: others may come with a newer Megatron-Core."""
    rows, _ = listed()
    return {row.name: _parts(row.bridge.partition("-")[0]) for row in rows if row.bridge and not row.core}


def _parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def newest_for(facts: Facts) -> str:
    """The newest of `VERSIONS` in which the model is what it is."""
    return VERSIONS[-2] if _uncompressed(facts) else VERSIONS[-1]


def _uncompressed(facts: Facts) -> bool:
    return facts.present("latent_attention") is not False and configs.uniform(facts, "latent_attention.q_rank") is None


def needs(target: str, fields: Mapping[str, Any]) -> str | None:
    """What of a written config older versions do not have, and stop at."""
    if target == _MLA_CLASS:
        return short(target)
    return next((key for key in ("rope_scaling", "yarn_rotary_scaling_factor") if fields.get(key)), None)


def written_fields(
    facts: Facts, notes: Mapping[str, Any], version: str, hint: str | None, names: str
) -> tuple[str, dict[str, Any]]:
    """The provider class, that of the source (`hint`) if it can, and every field that says what the model is.

    `names` says whose modules the layers are made of, TransformerEngine's ("te") or Megatron's own ("local").
    """
    target, table = _class_and_table(facts, version, hint, names)
    # an indexer as that of GLM-5, the only model with one that Bridge exports
    fields = table.write(facts, {**notes, "interleaved": False, "index_interleaved": True})
    if facts.get("attention.rotary.scaling.kind") is schema.RotaryKind.LLAMA3:
        of_class = short(target).startswith(("Llama31", "Llama32"))
        unwanted = ("rope_scaling", "rope_scaling_factor") if of_class else tuple(LLAMA31_FIELDS)
        if not of_class and "rope_scaling" not in fields:
            raise Refusal(
                "since Bridge 0.3.1 all numbers of Llama 3.1's scaling but the factor are built in",
                found=", ".join(f"{key} = {fields[key]}" for key in LLAMA31_FIELDS),
                expected="low_freq_factor = 1.0, high_freq_factor = 4.0, old_context_len = 8192",
                fix="-o bridge_version=0.2 writes a class that has them as fields",
            )
        fields = {key: value for key, value in fields.items() if key not in unwanted}
    if fields["position_embedding_type"] == "yarn" and version == OLD:
        raise Refusal(
            "GPTModelProvider has no fields for yarn until Bridge 0.4",
            found="attention.rotary.scaling.kind = yarn",
            fix="-o bridge_version=0.4 or 0.6",
        )
    if _uncompressed(facts) and version == VERSIONS[-1]:
        raise Refusal(
            "with qk_layernorm, core 0.19 norms the input of linear_q_proj twice where queries are not compressed",
            found="latent_attention.q_rank = null",
            fix="-o bridge_version=0.4 writes for Bridge up to 0.5, which builds on core 0.18",
        )
    refuse_unwritten(facts, version, VERSIONS[-1], names)
    refuse_unwritten_indexer(facts, version, VERSIONS[-1], names)
    if target in _WITH_MAMBA:
        refuse_unwritten_hybrid(version, VERSIONS[-1], names)
        if target == _FALCON_H1_CLASS:
            return target, fields_of_the_class(fields)
        return target, fields | ({"moe_grouped_gemm": True} if fields["num_moe_experts"] else {})
    if facts.present("latent_attention") is not False:
        fields.pop("max_position_embeddings", None)
    fields |= _experts(fields, names, alike="vision_config" in fields and short(target) != "GLM45VModelProvider")
    if is_uneven(facts):
        fields["hetereogenous_dist_checkpoint"] = True  # keys by layer
    sparse = facts.present("latent_attention.indexer")
    if facts.present("delta") is not False or sparse is not False:
        fields[SPEC] = {"_call_": False, "_target_": DELTA_SPEC}
    if facts.present("delta") is not False or isinstance(sparse, schema.PerLayer):
        fields["hetereogenous_dist_checkpoint"] = True  # keys by layer
    return target, fields


def _class_and_table(facts: Facts, version: str, hint: str | None, names: str) -> tuple[str, Config]:
    if facts.present("vision") is not False:
        seeing = _seeing(facts, version, names)
        return seeing.target, seeing.config
    unusual = unusual_for(facts)
    if unusual is None:
        target = _class_for(facts, version, hint)
        return target, table_of(target, {"multi_latent_attention": facts.present("latent_attention") is not False})
    if version != VERSIONS[-1] or names != "te":
        raise Refusal(
            "layers with norms on their outputs, or on the whole width of q and k, are written for the newest Bridge and TransformerEngine's modules alone",
            found=f"bridge_version = {version}, names = {names}",
            fix=f"-o bridge_version={VERSIONS[-1]} -o names=te",
        )
    own, table = unusual
    return own or GPT_CLASS, table


def _seeing(facts: Facts, version: str, names: str) -> Seeing:
    """The class of a model that sees: by its mixture, and by what the layers of its tower are."""
    if version != VERSIONS[-1] or names != "te":
        raise Refusal(
            "models that see are written for the newest Bridge and TransformerEngine's modules alone",
            found=f"bridge_version = {version}, names = {names}",
            fix=f"-o bridge_version={VERSIONS[-1]} -o names=te",
            fact="vision.*",
        )
    kind = "Qwen25VL" if facts.get("vision.mlp.gated") else "Qwen3VL"
    kind = "Gemma3VL" if facts.get("vision.both_ways") else kind
    kind = "Ministral3" if facts.present("vision.projector.folded") is not False else kind
    kind = "Exaone45" if facts.present("attention.norm") is False else kind
    kind = "Qwen35VL" if facts.present("delta") is not False else kind
    kind = f"{kind}MoE" if facts.present("mlp.moe") is not False else kind
    kind = "GLM45V" if facts.present("vision.projector.refined") is not False else kind
    found = (one for target, one in SEEING.items() if short(target) == f"{kind}ModelProvider")
    return next(found, None) or SEEING[GPT_SEEING]


def _experts(fields: Mapping[str, Any], names: str, *, alike: bool) -> dict[str, Any]:
    """Fields about the modules that experts are; the keys in the checkpoint are the same either way. `alike`: the class makes layers
    of one kind alone."""
    said: dict[str, Any] = {}
    if fields["num_moe_experts"] is None or names != "te":
        return said
    said["moe_grouped_gemm"] = True  # Bridge 0.2 exports no experts that are modules of their own
    if isinstance(fields["moe_layer_freq"], list):
        if alike:
            raise Refusal(
                "the layers of a model that sees are all with experts or all without",
                found=f"moe_layer_freq = {fields['moe_layer_freq']}",
                fact="mlp.moe?",
            )
        if SPEC in fields:
            raise Refusal(
                "its layers are all with experts or all without",
                found=f"moe_layer_freq = {fields['moe_layer_freq']}",
                fact="attention.qk_norm_whole",
            )
        # The spec that is the default of GPTModelProvider makes all layers of one kind, those with experts.
        said[SPEC] = {
            "_args_": [],
            "_partial_": True,
            "_target_": f"{_SPECS}.get_gpt_decoder_block_spec",
            "use_transformer_engine": True,
        }
    return said


def _class_for(facts: Facts, version: str, hint: str | None) -> str:
    scaled = facts.get("tokens.scale", 1.0) != 1.0
    llama31 = facts.get("attention.rotary.scaling.kind") is schema.RotaryKind.LLAMA3
    if facts.present("mamba") is not False:
        beside = facts.present("mamba") is True and facts.present("attention") is True
        return _FALCON_H1_CLASS if beside else _HYBRID_CLASS
    if scaled:
        return hint if hint is not None and scales_embedding(hint) else _GEMMA_CLASS
    if facts.present("latent_attention") is not False:
        if version != OLD:
            return _MLA_CLASS
        sigmoid = configs.uniform(facts, "mlp.moe.router.score") == "sigmoid"
        return f"{_DEEPSEEK}.DeepSeekV{3 if sigmoid else 2}ModelProvider"
    if llama31 and version == OLD:
        return hint if hint is not None and short(hint).startswith(("Llama31", "Llama32")) else _LLAMA31_CLASS
    fits = (
        hint is not None
        and is_plain(hint)
        and hint not in _WITH_MAMBA
        and not scales_embedding(hint)
        and not short(hint).startswith(("Llama31", "Llama32", "MLA"))
    )
    return hint if hint is not None and fits else GPT_CLASS
