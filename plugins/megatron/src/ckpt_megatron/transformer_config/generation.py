"""The field `generation_config`: the defaults of transformers' `generate`, ids of special tokens among them.

Importers of Hugging Face models fill it, and nothing else of a config class has room for such ids.

    {_target_: ...GenerationConfig.from_dict, _call_: true, config_dict: {eos_token_id: 2, ...}}    Megatron-Bridge
    GenerationConfig(eos_token_id=2, ...)                                                           NeMo 2, where it is built
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Facts, company, configs, custom

FIELD = "generation_config"
"""The field that holds them."""
CLASS = "transformers.generation.configuration_utils.GenerationConfig"
"""The class of transformers that is in it."""
_IDS = {role: f"{name}_id" for role, name in company.ROLES.items()}


def generation() -> configs.Custom:
    """The ids are notes of their own; the other settings, if there are any, go along as the note `generation`."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        settings = settings_of(config.get(FIELD))
        notes |= {role: settings[key] for role, key in _IDS.items() if company.is_token(settings.get(key))}
        if settings.keys() - _IDS.values() - {"transformers_version"}:
            notes["generation"] = settings

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        settings = dict(notes.get("generation") or {})
        settings |= {key: notes[role] for role, key in _IDS.items() if notes.get(role) is not None}
        if settings:
            config[FIELD] = {"_target_": f"{CLASS}.from_dict", "_call_": True, "config_dict": settings}

    return custom(
        [FIELD], [], read=read, write=write, uses=[], why="ids of special tokens, each a note, inside of an object"
    )


def settings_of(value: object) -> dict[str, Any]:
    """The settings in the field that say something, in either form."""
    held = value.get("config_dict", value) if isinstance(value, Mapping) else None
    if not isinstance(held, Mapping):
        return {}
    return {key: item for key, item in held.items() if item is not None and not key.startswith("_") and _plain(item)}


def _plain(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return all(isinstance(item, str | int | float | bool) for item in items)
