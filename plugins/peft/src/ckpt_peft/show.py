"""An adapter in words, for `ckpt inspect`: what it changes, by how much, and what keeps it from being merged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_core.sdk import Checkpoint, ReadRequest, errors, reading
from ckpt_peft.files import Files, open_files
from ckpt_peft.keys import MAGNITUDE, AdaptedModule, Contents, sorted_out
from ckpt_peft.read import lacks_base
from ckpt_peft.settings import LORA, Settings, problems_of, read_settings

_MOST = 8


def fragment(path: str, request: ReadRequest) -> reading.Fragment | None:
    """The adapter at `path`; None where its base is given, so that there is a model."""
    if isinstance(request.options.get("base"), Checkpoint):
        return None
    files = open_files(path, request)
    residual = bool(request.options.get("residual_base"))
    refused = [problem.problem for problem in problems_of(files.config, residual)]
    of_lora = files.config.get("peft_type") == LORA
    contents = sorted_out(files.named, files.weights) if of_lora else Contents()
    settings = None if refused else read_settings(files.config, files.config_file, residual)
    lines = {
        "adapter": [_kind(files.config, contents)],
        "rank": _ranks(files.config) if of_lora else [],
        "targets": _targets(contents, settings),
        "saved": _some(sorted(contents.saved)),
        "base": [f"{files.config.get('base_model_name_or_path') or 'not named'}" + _revision(files.config)],
        "parameters": [f"{_count(files):,}", *_dtypes(files)],
        "refused": refused,
    }
    facts = {
        "config": dict(files.config),
        "parameters": _count(files),
        "adapted": [_fact(adapted, settings) for adapted in contents.adapted],
        "saved": sorted(contents.saved),
        "refused": refused,
    }
    return reading.Fragment({label: said for label, said in lines.items() if said}, facts, lacks_base(files))


def _kind(config: Mapping[str, Any], contents: Contents) -> str:
    method = str(config.get("peft_type"))
    kind = "DoRA" if config.get("use_dora") else {LORA: "LoRA"}.get(method, method)
    said = [kind, *["rank-stabilised (rslora)"] * bool(config.get("use_rslora"))]
    said += ["lm_head and embedding tied"] * bool(config.get("ensure_weight_tying"))
    if method != LORA:
        return kind
    saved = len(contents.saved)
    return f"{', '.join(said)}: {errors.plural(len(contents.adapted), 'module')} adapted, {errors.plural(saved, 'tensor')} saved whole"


def _ranks(config: Mapping[str, Any]) -> list[str]:
    said = [f"{config.get('r')}, alpha {config.get('lora_alpha')}"]
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name)
        if isinstance(pattern, dict) and pattern:
            said.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in pattern.items()))
    return said


def _targets(contents: Contents, settings: Settings | None) -> list[str]:
    """One line for the modules that are alike but for their layer."""
    alike: Counter[str] = Counter()
    for adapted in contents.adapted:
        alike[f"{re.sub(r'[.][0-9]+(?=[.])', '.*', adapted.path)}: {_said(adapted, settings)}"] += 1
    return _some([f"{text}, {count} of them" if count > 1 else text for text, count in alike.items()])


def _said(adapted: AdaptedModule, settings: Settings | None) -> str:
    rank = f"A {list(adapted.down.shape)}, B {list(adapted.up.shape)}"
    scale = None if settings is None else _scale(adapted, settings)
    return f"{rank}{'' if scale is None else f', scale {scale:.6g}'}{', magnitudes' if MAGNITUDE in adapted.tensors else ''}"


def _scale(adapted: AdaptedModule, settings: Settings) -> float | None:
    """The scale of a module; None where a pattern may name the parameter, which only the base tells."""
    parameter = ".experts" in adapted.path and not adapted.path.endswith("_proj")
    return None if parameter and (settings.rank_pattern or settings.alpha_pattern) else settings.scale(adapted.path)


def _fact(adapted: AdaptedModule, settings: Settings | None) -> dict[str, Any]:
    return {
        "module": adapted.path,
        "tensors": {
            role: {"key": named.key, "shape": list(named.shape), "dtype": named.dtype.name}
            for role, named in adapted.tensors.items()
        },
        **({} if settings is None else {"scale": _scale(adapted, settings)}),
    }


def _revision(config: Mapping[str, Any]) -> str:
    return f", revision {config['revision']}" if config.get("revision") else ""


def _count(files: Files) -> int:
    return sum(stored.elements for stored in files.tensors.values())


def _dtypes(files: Files) -> Iterator[str]:
    for name, count in Counter(stored.dtype.name for stored in files.tensors.values()).items():
        yield f"{name}: {errors.plural(count, 'tensor')}"


def _some(lines: list[str]) -> list[str]:
    return [*lines[:_MOST], *[f"and {len(lines) - _MOST} more"] * (len(lines) > _MOST)]
