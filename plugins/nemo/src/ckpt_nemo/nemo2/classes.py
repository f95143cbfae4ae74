"""The config classes of NeMo 2, of whose fields `io.json` says only those that were given.

`classes.json` has the classes of NeMo 2.0 to 2.4: the fields in which each differs from its base, and under `older`
those that had other values in earlier versions. No class is imported; what one does besides having fields is in
`scales_embedding` and `refusal_of`.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from ckpt_core.sdk import documents

VERSIONS = ("v2.0.0", "v2.1.0", "v2.2.0", "v2.3.0", "v2.4.0")
PACKAGE = "nemo.collections.llm.gpt.model"
_FILE = "classes.json"
_ABSENT = "<absent>"  # the field did not exist, and TransformerConfig's holds
_REFUSED = {
    "Llama4Config": "it has chunked attention and layers of several kinds",
    "HeterogeneousTransformerConfig": "every layer has an architecture of its own",
    "Llama32EmbeddingConfig1B": "it is an embedding model, whose attention looks both ways",
    "Llama32EmbeddingConfig3B": "it is an embedding model, whose attention looks both ways",
    "Llama32Reranker1BConfig": "it is a ranking model, whose attention looks both ways",
}


@functools.cache
def _classes() -> dict[str, dict[str, Any]]:
    data = resources.files(__package__).joinpath(_FILE).read_bytes()
    held = documents.parse_json(data, _FILE)
    assert isinstance(held, dict)
    return held


def short(name: str) -> str:
    """The last part of a dotted name, by which classes are known here: a class may move between modules.

    >>> short("nemo.collections.llm.gpt.model.llama.Llama31Config8B")
    'Llama31Config8B'
    """
    return name.rpartition(".")[2]


def is_known(name: str) -> bool:
    """Whether a config class is one of NeMo's own."""
    return short(name) in _classes() and short(name) != "TransformerConfig"


def lineage(name: str) -> list[str]:
    """A class and its bases, known ones and others, in the order in which they are found."""
    found, pending = [], [short(name)]
    while pending:
        one = pending.pop(0)
        if one not in found:
            found.append(one)
            pending += [short(base) for base in _classes().get(one, {}).get("bases", [])]
    return found


def versions(name: str) -> list[str]:
    """The versions of NeMo that have a class."""
    held = _classes()[short(name)]
    return list(VERSIONS[VERSIONS.index(held["since"]) : VERSIONS.index(held["until"]) + 1])


def defaults(name: str, version: str) -> dict[str, Any]:
    """The fields of a class in one version, where nothing is given."""
    classes, common = _classes(), _classes()["TransformerConfig"]["fields"]
    fields = dict(common)
    own = [one for one in lineage(name) if one in classes]
    for one in reversed(own):
        fields |= classes[one]["fields"]
    for key, value in classes[short(name)].get("older", {}).get(version, {}).items():
        if value != _ABSENT:
            fields[key] = value
        elif key in common:
            fields[key] = common[key]
        else:
            fields.pop(key, None)
    return fields | ({"multi_latent_attention": True} if "MLATransformerConfig" in lineage(name) else {})


def scales_embedding(config: str, model: str | None) -> bool:
    """Whether the model multiplies its embedding by the square root of the hidden size: the models of Gemma do."""
    return gemma_of(config, model) != 0


def gemma_of(config: str, model: str | None) -> int:
    """Which generation of Gemma a model is by its classes, from 1 to 3; 0 of another model."""
    names = {*lineage(config), short(model or "")}
    found = {f"Gemma{generation}": number for generation, number in (("", 1), ("2", 2), ("3", 3))}
    return max((number for name, number in found.items() if names & {f"{name}Config", f"{name}Model"}), default=0)


def refusal_of(config: str) -> str | None:
    """Why a config class of NeMo's makes a model that we do not describe, or None."""
    names = lineage(config)
    reason = next((_REFUSED[name] for name in names if name in _REFUSED), None)
    if reason is None and is_known(config) and "GPTConfig" not in names:
        reason = "it is not a GPT"
    return reason
