"""Writes `docs/families.txt`, what becomes of a model of every family in every format: `python tools/families.py`.

Each family of `hf` is one of the tiny configs that the tests build models of. Every writer plans what it would write of it, on one
rank and without values; where it refuses, the same model with heads that fill its hidden size is tried, which some frameworks
insist on. Reading the other way, and the values, are what tests and `ckpt verify` show.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transformers import CONFIG_MAPPING

from ckpt_core.api import config_architecture, plan_conversion
from ckpt_core.architecture import Architecture, architecture_of, facts_of
from ckpt_core.errors import CkptError, ProblemsFound
from ckpt_core.explain import InFormat, in_format
from ckpt_core.plugins.discovery import require
from ckpt_core.plugins.installed import format_names
from ckpt_core.testing.examples import calm_numbers, changed, write_ir
from ckpt_hf.config import BY_TYPE, FAMILIES
from ckpt_tests import tiny, vision
from ckpt_tests.families import CASES, LING
from ckpt_tests.judged import OTHERS
from ckpt_tests.of_authors import MADE

FILE = Path(__file__).resolve().parents[1] / "docs/families.txt"
HEAD = """# What a writer makes of a model of each family: class | format | exact, rewritten or refused | what is rewritten, or why not
"""
_WRITES = re.compile(r"(-o \S+) writes it all the same")
_UNREAD = "the file can't be read"  # what a writer says that looks at values where there are none
# transformers has no class of these types: their configs are those of another one.
ALIKE = {
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "kimi_k2": "deepseek_v3",
    "mimo": "qwen2",
    "internlm3": "llama",
    "mt5": "t5",
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
# What the usual models of a family have where the small ones of the tests have a corner: DeepSeek-V2-Lite chooses among all experts,
# EXAONE 4 of 1.2 billion parameters has no window, Gemma 3 has five layers with one before each without, in SmolLM3 every fourth layer does
# not rotate, and DeepSeek's yarn has the bounds that its paper has, as gpt-oss's has. Of four layers of the hybrid ones the last has no window.
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
_RAMP = dict(_YARN)
_YARN |= {"mscale": 1.0, "mscale_all_dim": 1.0}
_OF_FOUR = {"num_hidden_layers": 4, "layer_types": [*[_SLIDING] * 3, _FULL]}
_TWO_THETAS = {
    _FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    _SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
}
USUAL: dict[str, dict[str, object]] = {
    "deepseek_v2": {
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": None,
        "rope_parameters": _YARN,
    },
    "deepseek_v3": {"rope_parameters": _YARN},
    "kimi_k2": {"rope_parameters": _YARN},
    "smollm3": {
        "num_hidden_layers": 4,
        "no_rope_layers": [1, 1, 1, 0],
        "no_rope_layer_interval": 4,
        "layer_types": [_FULL] * 4,
    },
    "exaone4": {"sliding_window": None, "layer_types": [_FULL, _FULL]},
    "gemma3_text": {
        "num_hidden_layers": 6,
        "layer_types": [*[_SLIDING] * 5, _FULL],
        "rope_parameters": _TWO_THETAS,
        "query_pre_attn_scalar": 10,
    },
    "gpt_oss": {"rope_parameters": {**_RAMP, "rope_theta": 150000.0, "truncate": False}},
    "ministral3": {"rope_parameters": {**_YARN, "llama_4_scaling_beta": 0.1}},
    "seed_oss": {"mlp_bias": False},
    "olmo3": {**_OF_FOUR, "rope_parameters": {_FULL: _RAMP, _SLIDING: {"rope_type": "default", "rope_theta": 10000.0}}},
    "exaone_moe": {**_OF_FOUR, "mlp_layer_types": ["dense", *["sparse"] * 3]},
    "afmoe": _OF_FOUR,
    "dots1": {"sliding_window": None, "layer_types": [_FULL, _FULL], "num_key_value_heads": 12},
    "jais2": {"num_key_value_heads": 12},
    "llama4_text": {
        "num_hidden_layers": 4,
        "no_rope_layers": [1, 1, 1, 0],
        "layer_types": [*["chunked_attention"] * 3, _FULL],
        "attention_chunk_size": 8192,
        "floor_scale": 8192,
        "attn_scale": 0.1,
        "moe_layers": [1, 3],
        "interleave_moe_layer_step": 2,
    },
    "nemotron_h": {"conv_kernel": 4, "n_group": 1},
    "qwen3_5_text": {"attention_bias": False},
}


def configs() -> dict[str, dict[str, object]]:
    """A small config of each `model_type`."""
    found = {name: tiny.config_of(name).to_dict() for name in tiny.CONFIGS}
    found |= {cls.config_class.model_type: config.to_dict() for cls, config in reversed(OTHERS.values())}
    for case in reversed(CASES.values()):
        found[case.model_type] = CONFIG_MAPPING[case.model_type](**copy.deepcopy(case.config)).to_dict()
    seeing = {kind: body for kind, body in vision.CONFIGS.items() if kind in BY_TYPE}
    found |= {kind: CONFIG_MAPPING[kind](**copy.deepcopy(body)).to_dict() for kind, body in seeing.items()}
    for kind, other in ALIKE.items():
        found.setdefault(kind, found[other])
    for kind, usual in USUAL.items():
        found[kind] = {**found[kind], **usual}
    return found | {"bailing_moe": LING} | dict(map(_of_authors, MADE))


def _of_authors(model_type: str) -> tuple[str, dict[str, object]]:
    """The config of a small model of a class that lies with its authors' weights, and not in transformers."""
    with tempfile.TemporaryDirectory() as folder:
        MADE[model_type](Path(folder) / "hf")
        return model_type, json.loads((Path(folder) / "hf/config.json").read_text())


def architecture(config: dict[str, object], model_type: str, class_name: str) -> Architecture:
    """What a config says of a class."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config | {"model_type": model_type, "architectures": [class_name]}, default=str))
        return config_architecture(str(path))


def filled(model: Architecture) -> Architecture | None:
    """The model with heads that fill its hidden size; None if they do, or are not of one size."""
    facts = facts_of(model)
    width = facts.get("attention.heads"), facts.get("attention.head_dim")
    if not all(type(one) is int for one in width) or facts["hidden"] == width[0] * width[1]:
        return None
    try:
        return architecture_of(changed(facts, {"hidden": width[0] * width[1]}), "filled")
    except CkptError:
        return None


def judged(format: str, model: Architecture) -> tuple[str, str]:
    """What a format makes of a model, in a word; and what it rewrites, or why it refuses."""
    found = planned(format, model)
    other = filled(model) if found.refused else None
    if other is not None:
        found = _better(found, planned(format, other))
    if found.refused:
        more = f", and {len(found.refused) - 1} more" if found.refused[1:] else ""
        return "refused", _sentence(found.refused[0]) + more + _remedy(found.refused)
    rewrites = [one for one in found.rewrites if not one.startswith("vocabulary table")]
    return ("rewritten" if rewrites else "exact"), "; ".join(rewrites)


def planned(format: str, model: Architecture) -> InFormat:
    """The plan of a writer: without values, unless it looks at some."""
    found = in_format(require(format), model)
    if not any(_UNREAD in problem for problem in found.refused):
        return found
    with tempfile.TemporaryDirectory() as folder:
        source = write_ir(Path(folder) / "ir", model, values=calm_numbers)
        try:
            plan = plan_conversion(source, Path(folder) / "out", to=format, options=dict(require(format).info.bare))
        except CkptError as refusal:
            problems = refusal.problems if isinstance(refusal, ProblemsFound) else [refusal]
            return InFormat(format, tuple(map(str, problems)))
        return InFormat(format, rewrites=tuple(plan.target.decisions.get("rewrites", ())))


def _remedy(refused: tuple[str, ...]) -> str:
    """The option under which the one thing that is refused is written all the same, where the refusal names one."""
    option = _WRITES.search(refused[0]) if not refused[1:] else None
    return f"; {option[1]} writes it all the same" if option else ""


def _better(one: InFormat, two: InFormat) -> InFormat:
    return two if len(two.refused) < len(one.refused) else one


def _sentence(problem: str) -> str:
    """The first line of a refusal; where no kind holds the model, what the nearest one lacks first."""
    lines = [line.strip().removeprefix("found: ") for line in problem.split("\n")]
    if "; the nearest is " in lines[0]:
        lines = lines[1:]
    if "cannot hold this architecture: " in lines[0]:
        lines = [line.removeprefix("- ") for line in lines[1:]]
    return lines[0].replace("|", "/")


def lines() -> Iterator[str]:
    known = configs()
    formats = [name for name in format_names() if require(name).info.writes]
    for family in FAMILIES:
        if not family.like:
            model = architecture(known[family.model_type], family.model_type, family.class_name)
            for format in formats:
                yield " | ".join((f"{family.class_name} ({family.model_type})", format, *judged(format, model)))


if __name__ == "__main__":
    text = HEAD + "".join(f"{line.rstrip()}\n" for line in lines())
    FILE.write_text(text, encoding="utf-8")
    print(f"{FILE}: {len(text.splitlines()) - 1} lines")
