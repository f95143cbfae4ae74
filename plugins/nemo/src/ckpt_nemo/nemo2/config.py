"""What the fields of NeMo 2's config classes mean, and the classes that a model is written as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Config, Facts, Refusal, configs, schema
from ckpt_megatron.sdk import check_any_version, fiddle, transformer_config
from ckpt_nemo.nemo2.classes import PACKAGE, gemma_of, is_known, lineage
from ckpt_nemo.nemo2.gemma import FUNCTIONS, GEMMA2, GEMMA3

GPT = transformer_config.usual("NeMo 2's GPTConfig", FUNCTIONS)
MLA = transformer_config.latent("NeMo 2's GPTConfig with latent attention", FUNCTIONS)
GEMMA = GPT.replace("NeMo 2's GemmaConfig", transformer_config.scaled_embedding())

_GEMMAS = (GPT, GEMMA, GEMMA2, GEMMA3)

# Fields that the Megatron-Core of NeMo 2.4 (0.13) does not have: what it does without them, and the fact they would say
_LATER: dict[str, tuple[object, str]] = {
    "softmax_type": ("vanilla", "attention.sinks"),
    "activation_func_clamp_value": (None, "mlp.clamp"),
    "glu_linear_offset": (0.0, "mlp.up_offset"),
    "window_attn_skip_freq": (None, "attention.window?"),
    "moe_shared_expert_gate": (False, "mlp.moe.shared.gate"),
}


@schema.dataclass(frozen=True)
class Classes:
    """The config class and the model class of a checkpoint, by their full names."""

    config: str
    model: str


def _pair(module: str, config: str, model: str) -> Classes:
    return Classes(f"{PACKAGE}.{module}.{config}", f"{PACKAGE}.{module}.{model}")


def table_of(classes: Classes, config: Mapping[str, Any]) -> Config:
    """The table for what a class does with its fields."""
    if config.get("multi_latent_attention"):
        return MLA
    return _GEMMAS[gemma_of(classes.config, classes.model)]


def classes_for(facts: Facts, hint: Mapping[str, Any]) -> Classes:
    """The classes of a family that do what a model does; those of the source (`hint`) if they do.

    All fields are given, so a class counts for what it does besides having them. Raises `Refusal` where none does all of it.
    """
    families = [*([Classes(hint["config"], hint["model"])] if hint else []), _family_of(facts)]
    for classes in families:
        if _does(classes, facts):
            return classes
    alone = ("tokens.scale", "attention.rotary.scaling.kind", "latent_attention.heads")
    raise Refusal(
        "NeMo 2 has no config class for all of this together",
        found=", ".join(f"{path} = {facts[path]}" for path in alone if path in facts),
    )


def _does(classes: Classes, facts: Facts) -> bool:
    names = lineage(classes.config)
    llama31 = facts.get("attention.rotary.scaling.kind") is schema.RotaryKind.LLAMA3
    return (
        is_known(classes.config)
        and ("Llama31Config" in names) == llama31
        and ("MLATransformerConfig" in names) == facts.present("latent_attention")
        and gemma_of(classes.config, classes.model) == _generation(facts)
    )


def _generation(facts: Facts) -> int:
    """Which Gemma a model is; 0 of one whose embedding is not scaled."""
    if facts.get("tokens.scale", 1.0) == 1.0:
        return 0
    if facts.present("attention.out_norm") is False:
        return 1
    return 3 if facts.present("attention.qk_norm") is not False else 2


def _family_of(facts: Facts) -> Classes:
    def has(path: str) -> bool:
        return facts.present(path) is not False

    rms = configs.uniform(facts, "final_norm.kind") == "rms"
    if generation := _generation(facts):
        gemma = "gemma" if generation == 1 else f"gemma{generation}"
        return _pair(gemma, f"{gemma.title()}Config", f"{gemma.title()}Model")
    if has("latent_attention"):
        sigmoid = configs.uniform(facts, "mlp.moe.router.score") == "sigmoid"
        return _pair("deepseek", "DeepSeekV3Config" if sigmoid else "DeepSeekV2Config", "DeepSeekModel")
    if facts.get("attention.rotary.scaling.kind") is schema.RotaryKind.LLAMA3:
        return _pair("llama", "Llama31Config", "LlamaModel")
    if not has("attention.rotary"):
        return _pair("base", "GPTConfig", "GPTModel")
    if has("attention.qk_norm"):
        return _pair("qwen3", "Qwen3MoEConfig" if has("mlp.moe") else "Qwen3Config", "Qwen3Model")
    if has("mlp.moe"):
        return _pair("mixtral", "MixtralConfig", "MixtralModel")
    if not rms:
        squared = configs.uniform(facts, "mlp.activation") == "relu_squared"
        names = ("nemotron", "NemotronConfig", "NemotronModel")
        return _pair(*(names if squared else ("starcoder2", "Starcoder2Config", "Starcoder2Model")))
    if configs.uniform(facts, "attention.q_bias"):
        return _pair("qwen2", "Qwen2Config", "Qwen2Model")
    if has("attention.window"):
        return _pair("mistral", "MistralConfig7B", "MistralModel")
    return _pair("llama", "LlamaConfig", "LlamaModel")


def written_fields(facts: Facts, notes: Mapping[str, Any], classes: Classes) -> dict[str, Any]:
    """Every field that says what the model is, none of which is left to a default."""
    latent_attention = facts.present("latent_attention") is not False
    if not latent_attention and configs.uniform(facts, "attention.rotary.scaling.kind") is schema.RotaryKind.YARN:
        raise Refusal(
            "no config class of NeMo 2 says yarn: GPTModel has it since Megatron-Core 0.15, and NeMo 2.4 builds on 0.13",
            found="attention.rotary.scaling.kind = yarn",
        )
    table = table_of(classes, {"multi_latent_attention": latent_attention})
    fields = table.write(facts, {**notes, "interleaved": False})
    # rope_scaling is a field of GPTModel's later than NeMo 2; here the class is what scales
    later = (
        ("rope_scaling",) if table is GEMMA3 else ("rope_scaling", "rope_scaling_factor")
    )  # which Gemma 3 has of its own
    fields = {key: value for key, value in fields.items() if key not in later}
    fields.pop("original_max_position_embeddings", None)  # until core 0.13 called max_position_embeddings
    if latent_attention:  # NeMo 2.2 to 2.4 run with cores on both sides of 0.13
        check_any_version(fields)
    for key, (usual_value, path) in _LATER.items():
        value = fields.pop(key, usual_value)
        if value != usual_value:
            raise Refusal(f"NeMo 2.4 has no field {key!r}, and so no {path}", found=f"{key} = {value}")
    if "mtp_num_layers" in fields:
        fields["mtp_loss_scaling_factor"] = 0.1  # Megatron-Core's; DeepSeekV3Config has None, by which training fails
    settings = transformer_config.settings_of(fields.pop(transformer_config.GENERATION, None))
    return fields | (
        {transformer_config.GENERATION: fiddle.Call(transformer_config.GENERATION_CLASS, settings)} if settings else {}
    )
