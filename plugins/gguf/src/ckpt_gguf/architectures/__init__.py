"""The architectures of llama.cpp that are read and written: those of `ckpt_gguf.config`, and a module for each lineage of others.

A module holds the tables of its tensors, its configs, and `MODELS`. Names of files, facts in the code of llama.cpp: src/models, b10605.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts
from ckpt_gguf import config
from ckpt_gguf.architectures import (
    alibi,
    arcee,
    cohere,
    ernie,
    exaone,
    falcon,
    glm,
    gpt_oss,
    granite,
    hunyuan,
    jais2,
    llamas,
    mixtures,
    nemotron,
    olmo,
    phi,
    starcoder,
)
from ckpt_gguf.config import Model

_MODULES = (
    config, granite, cohere, nemotron, olmo, glm, falcon, alibi, phi, starcoder,
    gpt_oss, exaone, ernie, hunyuan, mixtures, arcee, jais2, llamas,
)  # fmt: skip
MODELS: list[Model] = [model for module in _MODULES for model in module.MODELS]
"""The architectures; of several that hold a model, the first is written."""


def in_order(facts: Facts, origin: str) -> list[Model]:
    """The models, those first that a model of these facts most likely is: what `origin`, a model type of transformers, is converted
    to, and for biases of queries, keys and values alone Qwen 2."""
    alone = facts.get("attention.q_bias") is True and not facts.get("attention.out_bias")
    likely = origin or ("qwen2" if alone else "")
    return sorted(MODELS, key=lambda model: likely not in model.of)


def model_of(metadata: Mapping[str, Any], file: str) -> Model:
    """The model that a file's metadata names. `CkptError` for an architecture that is not read."""
    name = metadata.get("general.architecture")
    found = [model for model in MODELS if model.architecture == name]
    if not found:
        known = ", ".join(dict.fromkeys(model.architecture for model in MODELS))
        raise CkptError(
            "general.architecture is one that is not read", file=file, found=repr(name)[:60], expected=known
        )
    experts = bool(metadata.get(f"{name}.expert_count"))
    return next(model for model in found if model.experts in (None, experts))
